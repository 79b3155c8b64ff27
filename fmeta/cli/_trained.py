"""A trained run: read back from its folder, and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from fmeta.cli._recipe import Recipe
from fmeta.cli._run import open_run
from fmeta.core import InputError, Learner, Tree
from fmeta.core._checks import nearest
from fmeta.evaluation import Evaluation, evaluate
from fmeta.training import load_checkpoint, trainer
from fmeta.training._checkpoint import best_checkpoint, checkpoints

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Which state of a run, and where."""

    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""
    device: str | None = None
    """where to run; the recipe's if left out"""
    data_dir: str | None = None
    """where the data is now; the recipe's if left out"""


class Trained(NamedTuple):
    recipe: Recipe
    learner: Learner
    meta: Tree
    step: int  # of the checkpoint


def load(folder: Path, options: LoadOptions) -> Trained:
    """Raises InputError where the folder holds no run, or not that checkpoint."""
    recipe = moved(open_run(folder).recipe, options)
    recipe.prepare()
    learner = recipe.build_learner()
    like = trainer(learner, recipe.outer(), recipe.meta_gradient()).init(recipe.key())
    state = read_chosen(folder, options.checkpoint, lambda path: load_checkpoint(path, like))
    return Trained(recipe, learner, state.meta, int(state.step))


def moved(recipe: Recipe, options: LoadOptions) -> Recipe:
    """The recipe on the device and with the data of the options."""
    given = {n: v for n in ("device", "data_dir") if (v := getattr(options, n)) is not None and hasattr(recipe, n)}
    return dataclasses.replace(recipe, **given)


def measure(
    trained: Trained,
    tasks: int,
    steps: tuple[int, ...] | None = None,
    *,
    inductive: bool = False,
    source: Recipe | None = None,
) -> Evaluation:
    """On the test tasks of its own recipe, or of another as `source`; after the steps of its own."""
    if steps is None and trained.learner.inner is not None:
        steps = trained.recipe.eval_steps
    source = source or trained.recipe
    return evaluate(
        trained.learner,
        trained.meta,
        source.test_tasks(tasks),
        steps=steps,
        classes=source.test_classes(tasks),
        inductive=inductive,
        protocol=trained.recipe.facts(),
    )


def read_chosen(folder: Path, which: str, read: Callable[[Path], T]) -> T:
    """What `read` finds in the last or the best checkpoint of a run, or in that of a step.

    Raises InputError where it is not there, or damaged.
    """
    before = None
    while True:
        path = _chosen(folder / "checkpoints", which)
        try:
            return read(path)
        except InputError:
            if path.is_dir() or path == before:
                raise  # otherwise the run goes on, and has a newer one in its place
        before = path


def _chosen(folder: Path, which: str) -> Path:
    saved = checkpoints(folder)
    steps = {str(step): step for step, _ in saved}
    if steps:
        steps["last"] = max(steps.values())
    best = best_checkpoint(saved)
    if best is not None:
        steps["best"] = best
    if which not in steps:
        raise InputError(
            f"run(checkpoint={which!r}): not in {folder}; {nearest(which, steps) if steps else 'it is empty'}"
        )
    return folder / f"{steps[which]:08d}"
