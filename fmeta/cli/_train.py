"""One run from its recipe to its test figures."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from fmeta.cli import _show as show
from fmeta.cli._group import from_first, process_group, restarted
from fmeta.cli._recipe import Experiment, Recipe
from fmeta.cli._run import Run, change_run, check_resume, create_run, new_folder, open_run
from fmeta.cli._trained import Trained, measure
from fmeta.core import Tree
from fmeta.evaluation import evaluate
from fmeta.execution import compiler_problem
from fmeta.training import Ranks, TrainState, checkpoints, claimed, fit


def train_run(recipe: Recipe, run_dir: Path | None = None, resume: bool = False) -> Run:
    """Trains, evaluates and plots, in the folder of the run. With `resume` goes on with what is there.

    Raises InputError for choices that do not fit, before the folder is made or changed; NonFiniteError and
    KeyboardInterrupt as `fit`.
    """
    with process_group(run_dir) as ranks:
        resume = resume or (restarted() and run_dir is not None and (run_dir / "recipe.json").exists())
        with _opened(recipe, run_dir, resume, ranks) as (run, experiment):
            state = _trained(run, experiment, resume, ranks)
        if ranks.rank == 0:
            _conclude(run.folder, Trained(recipe, experiment.learner, state.meta))
    return run


@contextlib.contextmanager
def _opened(recipe: Recipe, run_dir: Path | None, resume: bool, ranks: Ranks) -> Iterator[tuple[Run, Experiment]]:
    """The run, made or changed by the process of rank 0, which holds its folder."""
    old = open_run(run_dir) if resume and run_dir is not None else None
    if old is not None:
        check_resume(old, recipe)
    experiment = recipe.experiment()  # before the folder: bad choices leave none behind
    problem = compiler_problem()
    scope = old.scope if old is not None else "none" if problem else recipe.compile
    if problem and old is None and recipe.compile != "none":
        show.say(f"running eager: {problem}")
    folder = run_dir or new_folder(recipe)
    if ranks.rank > 0:
        yield Run(folder, recipe, from_first(ranks, scope)), experiment
        return
    with claimed(folder, resume):
        run = change_run(old, recipe) if old is not None else create_run(recipe, scope, folder)
        yield run._replace(scope=from_first(ranks, run.scope)), experiment


def _trained(run: Run, experiment: Experiment, resume: bool, ranks: Ranks) -> TrainState:
    recipe, learner, metric = run.recipe, experiment.learner, experiment.metric
    over = f", {ranks.count} processes" if ranks.count > 1 else ""
    show.say(f"{recipe.name}: {recipe.learner}, compile {run.scope}{over}, run folder {run.folder}")

    def validate(meta: Tree) -> dict[str, float]:
        found = evaluate(learner, meta, experiment.validation)
        return {name: found.mean(name)[0] for name in dict.fromkeys(("loss", metric))}

    found = checkpoints(run.folder / "checkpoints") if resume else []
    with _measurements(), show.Bar(show.console, recipe.iterations, found[-1][0] if found else 0) as bar:
        try:
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
                resume=resume,
                validate=validate,
                validate_every=recipe.validate_every or None,
                monitor=recipe.monitor,
                mode="min" if recipe.monitor == "loss" else "max",
                patience=recipe.patience,
                skip_nonfinite=recipe.skip_nonfinite,
                log_every=recipe.log_every,
                save_every=recipe.save_every,
                loggers=[bar],
            )
        except KeyboardInterrupt:
            show.say(f"interrupted; go on with: fmeta train --resume --run-dir {run.folder}")
            raise


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
