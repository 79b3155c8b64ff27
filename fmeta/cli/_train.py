"""One run from its recipe to its test figures."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmeta.cli import _show as show
from fmeta.cli._group import ended_by_sigterm, goes_on, process_group
from fmeta.cli._recipe import Experiment, Recipe
from fmeta.cli._run import Run, change_run, check_resume, create_run, new_folder, open_run
from fmeta.cli._trained import Trained, measure
from fmeta.core import InputError, Tree
from fmeta.evaluation import evaluate
from fmeta.execution._compile import compiler_problem
from fmeta.execution._interrupt import interruptible
from fmeta.gradients import skipping
from fmeta.training import Logger, Logging, SaveError, Saving, TrainState, Validation, fit, tensorboard, trainer
from fmeta.training._checkpoint import best_checkpoint, checkpoints
from fmeta.training._ranks import Ranks
from fmeta.training._run_files import claimed, write_whole


def train_run(recipe: Recipe, run_dir: Path | None = None, resume: bool = False, *, events: bool = True) -> Run:
    """Trains, evaluates and plots, in the folder of the run. With `resume` goes on with what is there.

    With `events` TensorBoard can show it too, where that is installed. Started by torchrun, the process of rank 0 keeps
    the run; started anew by it, all go on with what is there.

    Raises InputError for choices that do not fit, before the folder is made or changed; NonFiniteError and
    KeyboardInterrupt as `fit`; SystemExit at SIGTERM, after the state was saved.
    """
    with process_group(run_dir) as ranks:
        resume = resume or goes_on(run_dir)
        with _opened(recipe, run_dir, resume, ranks) as (run, experiment):
            found = checkpoints(run.folder / "checkpoints") if resume and ranks.rank == 0 else []
            since = found[-1][0] if found else 0
            loggers = _events(run.folder, since) if events and ranks.rank == 0 else []
            over = f", {ranks.count} processes" if ranks.count > 1 else ""
            show.say(f"{recipe.name}: {recipe.learner}, compile {run.scope}{over}, run folder {run.folder}")
            with _resumable(run.folder), _measurements(), show.Bar(show.console, recipe.iterations, since) as bar:
                state = fit_run(run, experiment, resume=resume, loggers=[bar, *loggers])
    if ranks.rank == 0:
        with _resumable(run.folder):
            _conclude(run.folder, Trained(recipe, experiment.learner, state.meta, int(state.step)), loggers)
    return run


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Says how to go on after Ctrl-C or SIGTERM."""
    try:
        with ended_by_sigterm(), interruptible():
            yield
    except (KeyboardInterrupt, SystemExit):
        show.say(f"interrupted; go on with: fmeta train --resume --run-dir {shlex.quote(str(folder))}")
        raise


@contextlib.contextmanager
def _opened(recipe: Recipe, run_dir: Path | None, resume: bool, ranks: Ranks) -> Iterator[tuple[Run, Experiment]]:
    """The run, made or changed by the process of rank 0, which holds its folder."""
    with contextlib.ExitStack() as stack:
        device = recipe.where()
        with ranks.together(device):
            old = open_run(run_dir) if resume and run_dir is not None else None
            if old is not None:
                check_resume(old, recipe)
            experiment = recipe.experiment()  # before the folder: bad choices leave none behind
            run = Run(run_dir or new_folder(recipe), recipe, scope_here(recipe) if old is None else old.scope)
        with ranks.together(device):
            if ranks.rank == 0:
                stack.enter_context(claimed(run.folder, resume))
                run = create_run(recipe, run.scope, run.folder) if old is None else change_run(old, recipe)
        yield run._replace(scope=ranks.one(run.scope)), experiment


def fit_run(
    run: Run,
    experiment: Experiment,
    *,
    monitor: str | None = None,
    validate_every: int = 0,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
) -> TrainState:
    """`fit` as the recipe says, in the folder of the run. The options go before the recipe's; `fit` says what is
    raised."""
    recipe, learner = run.recipe, experiment.learner

    def validate(meta: Tree) -> dict[str, float]:
        found = evaluate(learner, meta, experiment.validation)
        return {name: found.mean(name)[0] for name in dict.fromkeys(("loss", experiment.metric))}

    phases = {first: skipping(g) if recipe.skip_nonfinite else g for first, g in experiment.gradient.items()}
    every = validate_every or recipe.validate_every or None
    return fit(
        trainer(learner, experiment.optimizer, phases),
        experiment.train,
        key=recipe.key(),
        iterations=recipe.iterations,
        meta_batch=recipe.meta_batch,
        scope=run.scope,
        run_dir=run.folder,
        resume=resume,
        validate=Validation(validate, every, monitor or recipe.monitor, patience=recipe.patience),
        saving=Saving(recipe.save_every),
        logging=Logging(recipe.log_every, loggers),
    )


def scope_here(recipe: Recipe) -> str:
    """The recipe's scope, or "none", with a word, where there is no compiler."""
    problem = compiler_problem()
    if problem and recipe.compile != "none":
        show.say(f"running eager: {problem}")
    return "none" if problem else recipe.compile


def _events(folder: Path, since: int) -> list[Logger]:
    """TensorBoard's logger, where that is installed."""
    try:
        return [tensorboard(folder / "tensorboard", since=since)]
    except InputError:
        return []


def _conclude(folder: Path, trained: Trained, loggers: Sequence[Logger]) -> None:
    recipe = trained.recipe
    if trained.step < recipe.iterations:
        best = best_checkpoint(checkpoints(folder / "checkpoints"))
        command = f"fmeta evaluate {shlex.quote(str(folder))} --checkpoint best"
        other = "" if best is None else f"; the best, {best}, by {command}"
        show.say(
            f"stopped at step {trained.step}: {recipe.patience} validations in a row were no better by "
            f"{recipe.monitor}; tested is that step{other}"
        )
    result, metric = measure(trained, recipe.eval_tasks), recipe.metric()
    show.console.print(show.evaluation_table(result, metric))
    if metric == "loss":
        steps = max(1, *recipe.eval_steps)
        figure = show.plot_regression(trained.learner, trained.meta, recipe.test_tasks(3), steps)
    else:
        figure = show.plot_curve(result, metric)
    plot = folder / "adaptation.png"
    try:
        write_whole(folder / "evaluation.json", json.dumps(result.summary(), indent=1) + "\n")
        figure.savefig(plot, dpi=110)
    except OSError as error:
        raise SaveError(
            f"train: what the test found could not be written: {error}; the run is trained and kept; make room there, "
            f"then: fmeta train --resume --run-dir {shlex.quote(str(folder))}"
        ) from error
    for log in loggers:
        log(trained.step, {"adaptation": figure})
    show.say(f"plot: {plot}")


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show.say(record.getMessage())


@contextlib.contextmanager
def _measurements() -> Iterator[None]:
    """Says what fmeta measured and chose."""
    logger, saying = logging.getLogger("fmeta"), _Saying(logging.INFO)
    logger.addHandler(saying)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(saying)
