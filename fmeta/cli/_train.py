"""One run from its recipe to its test figures."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmeta.cli import _show as show
from fmeta.cli._recipe import Experiment, Recipe
from fmeta.cli._run import Run, change_run, check_resume, create_run, open_run
from fmeta.cli._trained import Trained, measure
from fmeta.evaluation import evaluate
from fmeta.execution import compiler_problem
from fmeta.training import TrainState, checkpoints, fit


def train_run(recipe: Recipe, run_dir: Path | None = None, resume: bool = False) -> Run:
    """Trains, evaluates and plots, in the folder of the run. With `resume` goes on with what is there.

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
        run = create_run(recipe, scope_here(recipe), run_dir)
    show.say(f"{recipe.name}: {recipe.learner}, compile {run.scope}, run folder {run.folder}")
    found = checkpoints(run.folder / "checkpoints") if resume else []
    with _measurements(), show.Bar(show.console, recipe.iterations, found[-1][0] if found else 0) as bar:
        try:
            state = fit_run(run, experiment, resume=resume, loggers=[bar])
        except KeyboardInterrupt:
            show.say(f"interrupted; go on with: fmeta train --resume --run-dir {run.folder}")
            raise
    _conclude(run.folder, Trained(recipe, experiment.learner, state.meta))
    return run


def fit_run(run: Run, experiment: Experiment, *, monitor: str = "loss", **options: Any) -> TrainState:
    """`fit` as the recipe says, in the folder of the run; `monitor` is measured on the validation tasks.

    Options are more of `fit`, which says what is raised.
    """
    recipe, learner = run.recipe, experiment.learner
    return fit(
        learner,
        experiment.optimizer,
        experiment.train,
        key=recipe.key(),
        iterations=recipe.iterations,
        meta_batch=recipe.meta_batch,
        gradient=experiment.gradient,
        scope=run.scope,
        run_dir=run.folder,
        validate=lambda meta: {monitor: evaluate(learner, meta, experiment.validation).mean(monitor)[0]},
        monitor=monitor,
        log_every=recipe.log_every,
        save_every=recipe.save_every,
        **options,
    )


def scope_here(recipe: Recipe) -> str:
    """The recipe's scope, or "none", with a word, where there is no compiler."""
    problem = compiler_problem()
    if problem and recipe.compile != "none":
        show.say(f"running eager: {problem}")
    return "none" if problem else recipe.compile


def _conclude(folder: Path, trained: Trained) -> None:
    recipe = trained.recipe
    result, metric = measure(trained, recipe.eval_tasks), recipe.metric()
    (folder / "evaluation.json").write_text(json.dumps(result.summary(), indent=1) + "\n")
    plot = folder / "adaptation.png"
    if metric == "loss":
        show.plot_regression(plot, trained.learner, trained.meta, recipe.test_tasks(3), max(1, *recipe.eval_steps))
    else:
        show.plot_curve(plot, result, metric)
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
