"""A trained run: read back from its folder, and measured."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fmeta._errors import InputError, nearest
from fmeta.core import Learner, Tree
from fmeta.evaluation import Evaluation, evaluate
from fmeta.runs._experiment import Experiment
from fmeta.runs._folder import Run, open_run
from fmeta.training._checkpoint import best_checkpoint, checkpoints, load_meta

T = TypeVar("T")


class Trained(NamedTuple):
    """A run at one of its checkpoints."""

    run: Run
    experiment: Experiment  # the run's, on the device and with the data that were asked for
    learner: Learner
    meta: Tree
    step: int  # of the checkpoint


def load(
    run: str | Path, *, checkpoint: str = "last", device: str | None = None, data_dir: str | None = None
) -> Trained:
    """A trained run from its folder.

        trained = fmeta.runs.load("runs/NAME", checkpoint="best")
        trained.learner, trained.meta

    Args:
        run: the folder: of `fmeta train`, `fmeta.runs.train`, or of `fmeta.fit` with `recipe="module:object"`.
        checkpoint: "last", "best" (on the validation tasks), or the number of a step.
        device: where to run; None is the run's.
        data_dir: where the data of its recipe is now; None is the run's.

    Raises:
        InputError: no run there, not that checkpoint, a recipe that is not installed or brings no learner.
    """
    opened = open_run(run)
    found = moved(opened.experiment, device, data_dir)
    found.use_threads()
    learner = found.build_learner()
    like = found.initial(learner)
    meta, step = read_chosen(opened.folder, checkpoint, lambda path: (load_meta(path, like), int(path.name)))
    return Trained(opened, found, learner, meta, step)


def moved(of: Experiment, device: str | None, data_dir: str | None) -> Experiment:
    """The experiment on another device, and with its data elsewhere."""
    if data_dir is not None:
        if not of.recipe.movable:
            raise InputError(f"run of {of.recipe.name}: its recipe takes no data folder; leave data_dir out")
        of = dataclasses.replace(of, recipe=dataclasses.replace(of.recipe, **{of.recipe.movable[0]: data_dir}))  # type: ignore[type-var]
    return of if device is None else dataclasses.replace(of, run=dataclasses.replace(of.run, device=device))


def measure(
    run: Trained | str | Path,
    tasks: int | None = None,
    steps: Sequence[int] | None = None,
    *,
    inductive: bool = False,
    source: Experiment | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """The test figures of a run.

        found = fmeta.runs.measure(fmeta.runs.load("runs/NAME"), tasks=600)
        found.mean("loss"), found.interval("loss")

    Args:
        trained: from `load`.
        tasks: test tasks, at least 2; None is the run's number.
        steps: adaptation steps after which to measure; None is the run's.
        inductive: measure each query example by itself too (see `fmeta.evaluate`).
        source: whose test tasks; None is the run's own.
        tell: takes lines for people, where it takes longer than a few seconds.

    Raises:
        InputError: as `load` and `fmeta.evaluate`; fewer than two tasks.
    """
    trained = run if isinstance(run, Trained) else load(run)
    tasks = trained.experiment.run.eval_tasks if tasks is None else tasks
    if tasks < 2:
        raise InputError(f"measure(tasks={tasks}): expected at least 2, for an interval")
    if steps is None and trained.learner.inner is not None:
        steps = trained.experiment.run.eval_steps
    source = source or trained.experiment
    return evaluate(
        trained.learner,
        trained.meta,
        source.test_tasks(tasks),
        steps=steps,
        classes=source.test_classes(tasks),
        inductive=inductive,
        protocol=trained.experiment.facts() | {"seed": source.run.seed},
        progress=None if tell is None else _counting(tell),
    )


def _counting(tell: Callable[[str], None], seconds: float = 2.5) -> Callable[[int, int], None]:
    """Tells how many tasks are done, at most so often."""
    last = time.monotonic()

    def count(done: int, of: int) -> None:
        nonlocal last
        if done < of and time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(f"{done} of {of} test tasks")

    return count


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


def stored_evaluation(folder: Path) -> dict[str, Any] | None:
    """What the test found at the end of the run; None where there is none, or a damaged one."""
    try:
        return json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) or None
    except (OSError, ValueError):
        return None


def _chosen(folder: Path, which: str) -> Path:
    saved = checkpoints(folder)
    steps = {str(step): step for step, _ in saved}
    if steps:
        steps["last"] = max(steps.values())
    best = best_checkpoint(saved)
    if best is not None:
        steps["best"] = best
    elif which == "best" and steps:
        raise InputError(
            f"run(checkpoint='best'): no checkpoint in {folder} was validated with a finite figure; expected one; take "
            "the last, or the number of a step"
        )
    if which not in steps:
        raise InputError(
            f"run(checkpoint={which!r}): not in {folder}; {nearest(which, steps) if steps else 'it is empty'}"
        )
    return folder / f"{steps[which]:08d}"
