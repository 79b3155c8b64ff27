"""`evaluate`: a learner on a fixed list of tasks, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import InputError, Learner, Task, Tree, check_meta, check_tasks
from fmeta.core import _tree as tree
from fmeta.core._inner import over_tasks, trajectory


class Evaluation(NamedTuple):
    """Query values after adaptation, per task and number of adaptation steps."""

    steps: tuple[int, ...]  # inner steps taken; (0,) for learners that do not step
    values: dict[str, Tensor]  # "loss" and the learner's metrics -> [task, step]
    protocol: dict[str, Any]  # what was measured and how

    def mean(self, name: str) -> list[float]:
        return self.values[name].mean(0).tolist()

    def median(self, name: str) -> list[float]:
        return self.values[name].quantile(0.5, 0).tolist()

    def interval(self, name: str) -> list[float]:
        """Half the width of the normal 95% interval of the mean, 1.96·sd/√tasks."""
        values = self.values[name]
        return (1.96 * values.std(0) / math.sqrt(len(values))).tolist()

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        figures = {
            name: {"mean": self.mean(name), "interval95": self.interval(name), "median": self.median(name)}
            for name in self.values
        }
        return {"protocol": self.protocol, "steps": list(self.steps), **figures}


def evaluate(
    learner: Learner,
    meta: Tree,
    tasks: Task,
    *,
    steps: Sequence[int] | None = None,
    chunk: int = 100,
    protocol: dict[str, Any] | None = None,
) -> Evaluation:
    """Adapts to each task of a fixed list and measures the query loss and metrics along the way.

    Args:
        learner: what adapts.
        meta: the trained meta-parameters.
        tasks: a batch of tasks; the same list gives the same numbers.
        steps: after how many inner steps to measure, any numbers >= 0, more than in training too; None is the learner's
            own number. A learner without an inner loop is measured once.
        chunk: tasks adapted at a time; it bounds the memory.
        protocol: what else to record beside the numbers (ways, shots, split, seed …).

    Raises:
        InputError: bad meta or tasks, negative or no steps, steps for a learner that takes none.
    """
    check_meta("evaluate", meta)
    count = check_tasks("evaluate", tasks)
    if steps is not None and learner.inner is None:
        raise InputError(f"evaluate(steps={list(steps)}): {learner.name} takes no inner steps; leave steps out")
    at = tuple(steps) if steps is not None else (learner.inner.steps if learner.inner else 0,)
    if not at or min(at) < 0 or chunk < 1:
        raise InputError(
            f"evaluate(steps={list(at)}, chunk={chunk}): expected steps >= 0, at least one, and chunk >= 1"
        )

    def one(m: Tree, task: Task) -> dict[str, Tensor]:
        if learner.inner is None:
            found = [learner.adapt(m, task.support, task.key)]
        else:
            path = trajectory(learner.inner, max(at))(m, task.support, task.key)
            found = [path[k] for k in at]
        pairs = [learner.loss(fast, m, task.query) for fast in found]
        named = [{"loss": loss, **metrics} for loss, metrics in pairs]
        return {name: torch.stack([values[name] for values in named]) for name in named[0]}

    parts = []
    with torch.no_grad():
        for begin in range(0, count, chunk):
            piece = tree.tree_map(lambda t, begin=begin: t[begin : begin + chunk], tasks)
            parts.append(over_tasks(one)(meta, piece))
    values = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
    return Evaluation(at, values, {"tasks": count, **(protocol or {})})
