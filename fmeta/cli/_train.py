"""One run from its recipe to its test figures."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmeta.cli import _show as show
from fmeta.cli._recipe import Recipe
from fmeta.cli._run import Run, change_run, check_resume, create_run, open_run
from fmeta.cli._trained import Trained, measure
from fmeta.core import InputError
from fmeta.evaluation import evaluate
from fmeta.execution import compiler_problem
from fmeta.training import Logger, checkpoints, fit, tensorboard


def train_run(recipe: Recipe, run_dir: Path | None = None, resume: bool = False, *, events: bool = True) -> Run:
    """Trains, evaluates and plots, in the folder of the run. With `resume` goes on with what is there.

    With `events` TensorBoard can show it too, where that is installed.

    Raises InputError for choices that do not fit, before the folder is made or changed; NonFiniteError and
    KeyboardInterrupt as `fit`.
    """
    if resume:
        assert run_dir is not None
        run = open_run(run_dir)
        check_resume(run, recipe)
        experiment = recipe.experiment()
        run = change_run(run, recipe)
    else:
        experiment = recipe.experiment()  # before the folder: bad choices leave none behind
        scope = "none" if compiler_problem() else recipe.compile
        if scope != recipe.compile:
            show.say(f"running eager: {compiler_problem()}")
        run = create_run(recipe, scope, run_dir)
    show.say(f"{recipe.name}: {recipe.learner}, compile {run.scope}, run folder {run.folder}")
    found = checkpoints(run.folder / "checkpoints") if resume else []
    since, learner = found[-1][0] if found else 0, experiment.learner
    loggers = _events(run.folder, since) if events else []
    with _measurements(), show.Bar(show.console, recipe.iterations, since) as bar:
        try:
            state = fit(
                learner,
                experiment.optimizer,
                experiment.train,
                key=recipe.key(),
                iterations=recipe.iterations,
                meta_batch=recipe.meta_batch,
                gradient=experiment.gradient,
                scope=run.scope,
                run_dir=run.folder,
                resume=resume,
                validate=lambda meta: evaluate(learner, meta, experiment.validation).mean("loss")[0],
                log_every=recipe.log_every,
                save_every=recipe.save_every,
                loggers=[bar, *loggers],
            )
        except KeyboardInterrupt:
            show.say(f"interrupted; go on with: fmeta train --resume --run-dir {run.folder}")
            raise
    _conclude(run.folder, Trained(recipe, learner, state.meta, int(state.step)), loggers)
    return run


def _events(folder: Path, since: int) -> list[Logger]:
    """TensorBoard's logger, where that is installed."""
    try:
        return [tensorboard(folder / "tensorboard", since=since)]
    except InputError:
        return []


def _conclude(folder: Path, trained: Trained, loggers: Sequence[Logger]) -> None:
    recipe = trained.recipe
    result, metric = measure(trained, recipe.eval_tasks), recipe.metric()
    (folder / "evaluation.json").write_text(json.dumps(result.summary(), indent=1) + "\n")
    if metric == "loss":
        steps = max(1, *recipe.eval_steps)
        figure = show.plot_regression(trained.learner, trained.meta, recipe.test_tasks(3), steps)
    else:
        figure = show.plot_curve(result, metric)
    plot = folder / "adaptation.png"
    figure.savefig(plot, dpi=110)
    for log in loggers:
        log(trained.step, {"adaptation": figure})
    show.console.print(show.evaluation_table(result, metric))
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
