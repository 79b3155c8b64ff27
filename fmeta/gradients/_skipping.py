"""`skipping`: a meta-gradient that leaves out tasks whose loss or gradient is not finite."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import hidden
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


def skipping(gradient: MetaGradient | None = None) -> MetaGradient:
    """`gradient`, or the learner's own, over the tasks of a batch whose loss and gradient are finite.

        mean of gₜ over the good tasks t

    A batch without a bad task costs one look at the result; one with a bad task is done again task by task, which finds
    it wherever it broke. `info.skipped` is bool `[task]`, and the losses and metrics of a task left out are the mean of
    the others. A batch without any good task gives NaN, which stops training.

    That look is a decision in Python: under `fmeta.compile` take the scope "step"; `fit(gradient=skipping())` compiles
    the meta-gradient inside by itself.
    """
    return Skipping(gradient, None if gradient is None else loss_weights_of(gradient))


@dataclass(frozen=True)
class Skipping(WeighingSteps):
    gradient: MetaGradient | None
    loss_weights: tuple[float, ...] | None

    @property
    def order(self) -> Order:  # type: ignore[override]
        return "neither" if self.gradient is None else order_of(self.gradient)  # the learner's own is not known here

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        gradient = self.gradient or learner.gradient
        grads_of = gradient(learner, stage)
        of_one = functools.cache(lambda: gradient(learner, stage))  # compiled for one task, if it is ever needed

        def skipping_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            grads, info = grads_of(meta, tasks)
            if hidden(info.losses) or _finite(grads, info):
                return grads, info._replace(skipped=torch.zeros_like(info.losses, dtype=torch.bool))
            found = [of_one()(meta, task) for task in _each(tasks)]
            bad = torch.stack([~_finite(*one) for one in found])
            good = [one for one, out in zip(found, bad.tolist(), strict=True) if not out]
            if not good:
                return grads, info._replace(skipped=bad)
            grads = tree.scale(functools.reduce(tree.add, (each for each, _ in good)), 1 / len(good))

            def filled(values: list[Tensor]) -> Tensor:
                known = torch.cat(values)
                return known.mean().repeat(len(bad)).masked_scatter(~bad, known)

            infos = [one for _, one in good]
            losses = filled([one.losses for one in infos])
            metrics = {name: filled([one.metrics[name] for one in infos]) for name in infos[0].metrics}
            return grads, Info(losses.mean(), losses, metrics, bad)

        return skipping_grads


def _each(tasks: Task) -> Iterator[Task]:
    """Batches of one task, in tensors of their own."""
    for i in range(tree.tree_leaves(tasks)[0].shape[0]):
        yield tree.tree_map(lambda leaf, i=i: leaf[i : i + 1].clone(), tasks)


def _finite(grads: Tree, info: Info) -> Tensor:
    return torch.stack([leaf.isfinite().all() for leaf in (info.losses, *tree.tree_leaves(grads))]).all()
