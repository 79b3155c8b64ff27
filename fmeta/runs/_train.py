"""One run from its experiment to its test figures."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from fmeta._errors import InputError
from fmeta.core import Tree
from fmeta.evaluation import Evaluation, evaluate
from fmeta.execution._compile import compiler_problem
from fmeta.execution._interrupt import interruptible
from fmeta.gradients import skipping
from fmeta.runs._answers import answered, shown_steps
from fmeta.runs._evaluations import write_evaluation
from fmeta.runs._experiment import Experiment, Ready, experiment
from fmeta.runs._folder import DIGEST, Run, change_run, check_resume, create_run, new_folder, open_run
from fmeta.runs._load import Trained, measure
from fmeta.runs._plots import curve_figure
from fmeta.runs._processes import ended_by_sigterm, goes_on, process_group
from fmeta.runs._recipe import Recipe
from fmeta.runs._shown import Chart
from fmeta.training import Logger, Logging, SaveError, Saving, Validation, fit, tensorboard, trainer
from fmeta.training._checkpoint import best_checkpoint, checkpoints
from fmeta.training._ranks import Ranks
from fmeta.training._run_files import claimed

Tell = Callable[[str], None]
Progress = Callable[[int, int], AbstractContextManager[Logger]]  # meta-steps in all, and done -> what shows them


class Finished(NamedTuple):
    """A run that has come to its end."""

    trained: Trained
    evaluation: Evaluation | None  # on the test tasks; None in the processes beside that of rank 0
    plot: Path | None


def train(
    recipe: Experiment | Recipe | type[Recipe] | str,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Trains, tests and plots, in the folder of the run.

        of = fmeta.runs.experiment("sinusoid", inner_steps=5, iterations=100, compile="none", eval_tasks=100)
        done = fmeta.runs.train(of, "runs/five")
        print(done.evaluation.mean("loss"))

    Where TensorBoard is installed it can show the run too. Started by torchrun, the process of rank 0 keeps the run;
    started anew by it, all go on with what is there.

    Args:
        recipe: what to train: `experiment(…)`, or a recipe with the defaults of everything else.
        run_dir: where to keep the run; None is a new folder below runs/.
        resume: go on with the run that is there.
        loggers: called with the step and the values of each line of metrics.
        tell: takes lines for people: what is begun, what is measured, how to go on after Ctrl-C.
        progress: makes what shows the steps, itself a logger.

    Raises:
        InputError: choices that do not fit, before the folder is made or changed.
        NonFiniteError: (and what else `fmeta.fit` raises) in training.
        KeyboardInterrupt: (SystemExit at SIGTERM) after the state was saved.
    """
    if resume and run_dir is None:
        raise InputError("train(resume=True): no run to go on with; expected run_dir, the folder of one")
    asked = recipe if isinstance(recipe, Experiment) else experiment(recipe)
    tell = tell or _silent
    place = None if run_dir is None else Path(run_dir)
    with process_group(place) as ranks:
        say = tell if ranks.rank == 0 else _silent
        resume = resume or goes_on(place)
        with _opened(asked, place, resume, ranks, say) as (run, ready):
            found = checkpoints(run.folder / "checkpoints") if resume and ranks.rank == 0 else []
            since = found[-1][0] if found else 0
            events = _events(run.folder, since) if ranks.rank == 0 and asked.run.tensorboard else []
            over = f", {ranks.count} processes" if ranks.count > 1 else ""
            say(f"{asked.recipe.name}: {ready.learner.name}, compile {run.scope}{over}, run folder {run.folder}")
            with contextlib.ExitStack() as stack:
                stack.enter_context(_resumable(run.folder, say))
                told = [*loggers, *events]
                if progress is not None and ranks.rank == 0:
                    told.insert(0, stack.enter_context(progress(asked.run.iterations, since)))
                state = fit_run(run, ready, resume=resume, loggers=told)
    trained = Trained(run, asked, ready.learner, state.meta, int(state.step))
    if ranks.rank:
        return Finished(trained, None, None)
    with _resumable(run.folder, say):
        return _conclude(trained, [*loggers, *events], say)


def fit_run(
    run: Run,
    ready: Ready,
    *,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    validation: Validation | None = None,
) -> Any:
    """`fmeta.fit` as the experiment says, in the folder of the run; it says what is raised."""
    of, metric, options = run.experiment, run.experiment.recipe.metric, run.experiment.run

    def figures(meta: Tree) -> dict[str, float]:
        found = evaluate(ready.learner, meta, ready.validation)
        return {name: found.mean(name)[0] for name in dict.fromkeys(("loss", metric.name))}

    chosen = Validation(
        figures,
        every=options.validate_every or None,
        monitor=options.monitor,
        mode=mode_of(of, options.monitor),
        patience=options.patience,
    )
    if validation is not None:
        chosen = validation._replace(figures=figures)
    phases = {at: skipping(g) if options.skip_nonfinite else g for at, g in ready.phases.items()}
    return fit(
        trainer(ready.learner, ready.optimizer, phases),
        ready.train,
        key=of.key(),
        iterations=options.iterations,
        meta_batch=options.meta_batch,
        scope=run.scope,
        run_dir=run.folder,
        resume=resume,
        validate=chosen,
        saving=Saving(every=options.save_every, facts={DIGEST: of.digest()}),
        logging=Logging(every=options.log_every, loggers=loggers),
    )


def mode_of(of: Experiment, figure: str) -> Any:
    """Whether less or more of a figure is better."""
    metric = of.recipe.metric
    return "max" if figure == metric.name and metric.better == "higher" else "min"


def scope_here(of: Experiment, tell: Tell) -> str:
    """The run's scope, or "none", with a word, where there is no compiler."""
    if of.run.compile == "none":
        return "none"
    problem = compiler_problem()
    if problem:
        tell(f"running eager: {problem}")
    return "none" if problem else of.run.compile


@contextlib.contextmanager
def _resumable(folder: Path, tell: Tell) -> Iterator[None]:
    """Says how to go on after Ctrl-C or SIGTERM."""
    try:
        with ended_by_sigterm(), interruptible():
            yield
    except (KeyboardInterrupt, SystemExit):
        tell(f"interrupted; go on with: fmeta train --resume --run-dir {shlex.quote(str(folder))}")
        raise


@contextlib.contextmanager
def _opened(
    asked: Experiment, run_dir: Path | None, resume: bool, ranks: Ranks, tell: Tell
) -> Iterator[tuple[Run, Ready]]:
    """The run, made or changed by the process of rank 0, which holds its folder."""
    with contextlib.ExitStack() as stack:
        device = asked.device()
        with ranks.together(device):
            old = open_run(run_dir) if resume and run_dir is not None else None
            if old is not None:
                check_resume(old, asked)
            tell(f"{asked.recipe.name}: reading what it needs, and trying one task")
            ready = asked.ready()  # before the folder: bad choices leave none behind
            scope = scope_here(asked, tell) if old is None else old.scope
            run = Run(run_dir or new_folder(asked), asked, scope)
        with ranks.together(device):
            if ranks.rank == 0:
                stack.enter_context(claimed(run.folder, resume))
                run = (
                    create_run(asked, run.scope, run.folder, ready.validation)
                    if old is None
                    else change_run(old, asked)
                )
        yield run._replace(scope=ranks.one(run.scope)), ready


def _events(folder: Path, since: int) -> list[Logger]:
    """TensorBoard's logger, where that is installed."""
    try:
        return [tensorboard(folder / "tensorboard", since=since)]
    except InputError:
        return []


def _conclude(trained: Trained, loggers: Sequence[Logger], tell: Tell) -> Finished:
    folder, options = trained.run.folder, trained.experiment.run
    if trained.step < options.iterations:
        best = best_checkpoint(checkpoints(folder / "checkpoints"))
        command = f"fmeta evaluate {shlex.quote(str(folder))} --checkpoint best"
        other = "" if best is None else f"; the best, {best}, by {command}"
        tell(
            f"stopped at step {trained.step}: {options.patience} validations in a row were no better by "
            f"{options.monitor}; tested is that step{other}"
        )
    tell(f"testing on {options.eval_tasks} tasks")
    result = measure(trained, tell=tell)
    figure = _figure(trained, result)
    plot = folder / "adaptation.png"
    try:
        write_evaluation(folder, trained, result)
        figure.savefig(plot, dpi=110)
    except OSError as error:
        raise SaveError(
            f"train: what the test found could not be written: {error}; the run is trained and kept; make room there, "
            f"then: fmeta train --resume --run-dir {shlex.quote(str(folder))}"
        ) from error
    for log in loggers:
        log(trained.step, {"adaptation": figure})
    return Finished(trained, result, plot)


def _figure(trained: Trained, result: Evaluation) -> Any:
    """What the recipe draws of the first test task, or its figure over adaptation steps."""
    shown = trained.experiment.recipe.show(answered(trained, 1, shown_steps(trained, result))[0])
    return shown.figure if isinstance(shown, Chart) else curve_figure(result, trained.experiment.recipe.metric)


def _silent(text: str) -> None:
    """Where nobody listens."""
