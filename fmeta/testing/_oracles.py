"""What a meta-gradient is held against: plain loops over tasks, plain autograd, finite differences. No torch.func."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmeta.core import At, InputError, Learner, Task, Tree, fold
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from fmeta.gradients._check import believed


def distance(a: Tree, b: Tree) -> float:
    """The largest difference of two trees of one structure, relative to the second's largest entry or 1e-12."""
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    wrong = [(tuple(u.shape), tuple(v.shape)) for u, v in pairs if u.shape != v.shape]
    if wrong:
        raise AssertionError(f"shapes {wrong[0][0]} and {wrong[0][1]} differ")
    scale = max((float(v.abs().max()) for _, v in pairs if v.numel()), default=0.0)
    gaps = [float((u - v).abs().max()) for u, v in pairs if u.numel()]
    return float("nan") if any(g != g for g in gaps) else max(gaps, default=0.0) / max(scale, 1e-12)


def tasks_of(tasks: Task) -> list[Task]:
    """The tasks of a batch, one by one, without the task axis."""
    count = tree_leaves(tasks.query.x)[0].shape[0]
    return [tree_map(lambda leaf, i=i: leaf[i], tasks) for i in range(count)]


def losses_by_loop(learner: Learner, meta: Tree, tasks: Task) -> Tensor:
    """The query loss after adaptation of each task, `[task]`, one after another."""
    with torch.no_grad():
        each = [learner.loss(learner.adapt(meta, t.support, t.key), meta, t.query)[0] for t in tasks_of(tasks)]
    return torch.stack(each)


def plain_meta_grad(
    learner: Learner,
    meta: Tree,
    tasks: Task,
    *,
    last: int | None = None,
    loss_weights: Sequence[float] | None = None,
) -> Tree:
    """The meta-gradient by torch.autograd with `create_graph`, a Python loop over tasks and inner steps.

    Args:
        learner: with or without an inner loop.
        meta: where.
        tasks: a batch of tasks.
        last: inner steps whose gradient is differentiated; before them it is a constant. None is all of them, 0 is
            first order.
        loss_weights: for the query loss after each inner step; None counts the last alone.
    """
    leaves, structure = tree_flatten(meta)
    if not leaves:
        return meta
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    own = tree_unflatten(leaves, structure)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        each = [_task_loss(learner, own, task, last, loss_weights) for task in tasks_of(tasks)]
        grads = torch.autograd.grad(torch.stack(each).mean(), leaves, materialize_grads=True)
    return tree_unflatten(list(grads), structure)


def _task_loss(
    learner: Learner, meta: Tree, task: Task, last: int | None, loss_weights: Sequence[float] | None
) -> Tensor:
    inner = learner.inner
    if inner is None:
        if last is not None or loss_weights is not None:
            raise InputError(f"plain_meta_grad({learner.name}): it has no inner steps; leave last and loss_weights out")
        return learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)[0]
    weights = loss_weights or [0.0] * (inner.steps - 1) + [1.0]
    support = inner.prepare(meta, task.support, task.key)
    fast = inner.start(meta, support, task.key)
    optimizer = inner.optimizer(meta)
    state, total = optimizer.init(fast), []
    for k in range(inner.steps):
        index = torch.tensor(k, device=tree_leaves(task)[0].device)
        at = At(index, fold(task.key, index) if isinstance(task.key, Tensor) else (), task.key)
        leaves, structure = tree_flatten(fast)
        # copies, because one part of fast may have been computed from another (a head from the encoder's prototypes)
        leaves = [c if (c := leaf.clone()).requires_grad else c.requires_grad_() for leaf in leaves]
        value = inner.loss(tree_unflatten(leaves, structure), meta, inner.batch(support, at), at)
        exact = last is None or k >= inner.steps - last
        grads = torch.autograd.grad(value, leaves, create_graph=exact, retain_graph=True, materialize_grads=True)
        updates, state = optimizer.update(tree_unflatten(list(grads), structure), state, fast)
        fast = tree_map(lambda w, u: w + u, tree_unflatten(leaves, structure), updates)
        if weights[k]:
            total.append(weights[k] * learner.loss(fast, meta, task.query)[0])
    return torch.stack(total).sum()


def finite_difference(function: Callable[[Tree], Tensor], at: Tree, move: Tree, step: float = 1e-5) -> float:
    """The derivative of a scalar function in a direction, by central differences.

    Three lengths are tried and the two that agree best are believed, because within one of them a kink (ReLU) may lie.
    """
    return steady_difference(function, at, move, step)[0]


def steady_difference(
    function: Callable[[Tree], Tensor], at: Tree, move: Tree, step: float = 1e-5
) -> tuple[float, bool]:
    """The same, and whether two lengths agree."""

    def value(length: float) -> Tensor:
        with torch.no_grad():
            return function(tree_map(lambda a, d: a + length * d, at, move))

    return believed([float((value(h) - value(-h)) / (2 * h)) for h in (step, step / 10, step / 100)])


def least_curvature(learner: Learner, meta: Tree, tasks: Task) -> float:
    """The smallest eigenvalue of the inner loss's Hessian where adaptation ends, over tasks; row by row."""
    inner, found = learner.inner, []
    if inner is None:
        raise InputError(f"least_curvature({learner.name}): it has no inner loop; expected a learner with one")
    for task in tasks_of(tasks):
        leaves, structure = tree_flatten(learner.adapt(meta, task.support, task.key))
        index = torch.tensor(inner.steps, device=leaves[0].device)
        at = At(index, fold(task.key, index) if isinstance(task.key, Tensor) else (), task.key)

        def value(
            flat: Tensor, leaves: list[Tensor] = leaves, structure: Any = structure, task: Task = task, at: At = at
        ) -> Tensor:
            pieces = flat.split([leaf.numel() for leaf in leaves])
            fast = [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)]
            support = inner.prepare(meta, task.support, task.key)
            return inner.loss(tree_unflatten(fast, structure), meta, inner.batch(support, at), at)

        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        hessian = torch.autograd.functional.hessian(value, flat)
        found.append(float(torch.linalg.eigvalsh(hessian)[0]))
    return min(found)
