"""Reptile: move the initialisation towards where plain training takes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts, check_model, check_optimizer
from fmeta.core._random import fold, permutation
from fmeta.core._types import At, Examples, Learner, Loss, MetaGradient, Model, Optimizer
from fmeta.gradients import difference
from fmeta.gradients._batched import inner_of
from fmeta.learners._factories import Metrics, with_inner
from fmeta.learners._maml import maml


def reptile(
    model: Model,
    loss: Loss,
    *,
    optimizer: Optimizer,
    steps: int,
    batch: int | None = None,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Reptile (Nichol et al. 2018, https://arxiv.org/abs/1803.02999): meta ← meta − ε·mean(meta − fast).

    Train it with `sgd(ε)` outside, ε annealed from 1 to 0 in the paper (`linear_decay`).

    Args:
        model: the network; `meta` and `fast` are its parameters.
        loss: `(prediction, y) -> [example]` (or a mean).
        optimizer: of the inner loop; `adam(1e-3, b1=0)` in the paper.
        steps: inner steps, at least 1; with `steps=1` and a full batch it is joint training.
        batch: examples per inner step, drawn epoch by epoch from the support set in an order that the task's key
            decides; None takes all of them every time.
        metrics: more functions to report on the query, by name.
    """
    check_model("reptile", model)
    check_optimizer("reptile", optimizer)
    check_counts("reptile", steps=steps, batch=1 if batch is None else batch)
    learner = maml(model, loss, optimizer=optimizer, steps=steps, gradient=gradient or difference(), metrics=metrics)
    learner = learner._replace(name="reptile")
    if batch is None:
        return learner
    return with_inner(learner, inner_of(learner, "reptile")._replace(batch=minibatches(batch)))


def minibatches(size: int) -> Callable[[Examples, At], Examples]:
    """`Inner.batch` that walks through the support set in shuffled epochs of minibatches, `size` examples a step."""

    def batch(support: Examples, at: At) -> Examples:
        if not isinstance(at.task_key, Tensor):
            raise InputError(
                f"reptile(batch={size}): minibatches are drawn from the task's key, and the task has none; expected "
                "Task(support, query, key); use fmeta.split(key, number_of_tasks)"
            )
        count = tree.tree_leaves(support.x)[0].shape[0]
        if size > count:
            raise InputError(f"reptile(batch={size}): the support set has {count} examples; expected at most {count}")
        first = at.index * size
        epoch = first // count
        # a minibatch crosses the end of an epoch at most once
        shuffles = fold(at.task_key, "minibatches")
        order = torch.cat([permutation(fold(shuffles, epoch + e), count) for e in (0, 1)])
        rows = order.index_select(0, first - epoch * count + torch.arange(size, device=first.device))
        return tree.tree_map(lambda leaf: leaf.index_select(0, rows), support)

    return batch
