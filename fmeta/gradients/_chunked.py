"""`chunked`: a meta-gradient that takes the meta-batch in slices."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts, hidden
from fmeta.core._types import (
    GradFn,
    Info,
    Learner,
    MetaGradient,
    Order,
    Stage,
    Task,
    Tree,
    WeighingSteps,
    loss_weights_of,
    order_of,
)
from fmeta.gradients._skipping import Skipping
from fmeta.operators._choices import fastest

Sized = Callable[[int], GradFn]  # the number of tasks -> the meta-gradient of so many


def chunked(gradient: MetaGradient, size: int | Literal["auto"]) -> MetaGradient:
    """`gradient` over slices of the meta-batch, one after another: the same result, the memory of one slice.

        1/T Σₜ gₜ = Σ over slices of |slice|/T · (mean of gₜ over the slice)

    On a CPU this is often faster too, because a slice of tasks fits the cache.

    Args:
        gradient: any meta-gradient.
        size: tasks in a slice; the last one may be smaller (and is compiled for itself). "auto" measures a few sizes at
            the first call and remembers the fastest for this machine and these shapes; where pieces are compiled, each
            size measured is compiled first.
    """
    if size != "auto":
        check_counts("chunked", size=size)
    if isinstance(gradient, Skipping):
        raise InputError(
            "chunked(skipping(…)): slices do not know each other's bad tasks; expected skipping(chunked(…))"
        )
    return _Chunked(gradient, size, loss_weights_of(gradient))


@dataclass(frozen=True)
class _Chunked(WeighingSteps):
    gradient: MetaGradient
    size: int | Literal["auto"]
    loss_weights: tuple[float, ...] | None

    @property
    def order(self) -> Order:  # type: ignore[override]
        return order_of(self.gradient)

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        @functools.cache
        def grads_of(count: int) -> GradFn:
            return self.gradient(learner, stage)  # compiled for slices of that many tasks

        grads_of(1)  # complains now of a learner that does not fit

        def chunked_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            count = tree.tree_leaves(tasks)[0].shape[0]
            size = _measured(grads_of, meta, tasks, learner.name) if self.size == "auto" else self.size
            return _in_slices(grads_of, meta, tasks, count, min(size, count))

        return chunked_grads


def _in_slices(grads_of: Sized, meta: Tree, tasks: Task, count: int, size: int) -> tuple[Tree, Info]:
    if size >= count:
        return grads_of(count)(meta, tasks)
    total: Any = None
    infos: list[Info] = []
    for first in range(0, count, size):
        # contiguous and of their own, as a compiled piece saw them the first time
        part = tree.tree_map(lambda leaf: leaf[first : first + size].clone(), tasks)  # noqa: B023
        grads, info = grads_of(min(size, count - first))(meta, part)
        share = tree.scale(grads, len(info.losses) / count)
        total = share if total is None else tree.add(total, share)
        infos.append(info)
    losses = torch.cat([info.losses for info in infos])
    metrics = {name: torch.cat([info.metrics[name] for info in infos]) for name in infos[0].metrics}
    return total, Info(losses.mean(), losses, metrics)


def _measured(grads_of: Sized, meta: Tree, tasks: Task, name: str) -> int:
    leaves = tree.tree_leaves((meta, tasks))
    count = tree.tree_leaves(tasks)[0].shape[0]
    if hidden(leaves[0]):
        return count  # a graph cannot measure itself, nor can tensors without data
    sizes = sorted({count, max(1, count // 4), max(1, count // 16), 1}, reverse=True)
    shapes = [f"{tuple(leaf.shape)}" for leaf in leaves]
    question = f"chunk of {name}: {' '.join(shapes)} {leaves[0].dtype}"
    ways = {str(size): functools.partial(_in_slices, grads_of, meta, tasks, count, size) for size in sizes}
    return int(fastest(question, ways, leaves[0].device, level=logging.INFO))
