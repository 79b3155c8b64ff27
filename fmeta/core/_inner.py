"""The inner loop of one task, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from fmeta.core import tree
from fmeta.core._checks import InputError, check_support
from fmeta.core._random import fold
from fmeta.core._types import At, Examples, Inner, Tree


def at_step(index: Tensor, task_key: Tree) -> At:
    """Where step `index` of the adaptation with this key stands."""
    return At(index, fold(task_key, index) if isinstance(task_key, Tensor) else (), task_key)


def begin(inner: Inner, meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree]:
    """The fast weights and the optimizer's state before the first step."""
    check_support("inner loop", support)
    fast = inner.start(meta, support, key)
    return fast, inner.optimizer(meta).init(fast)


def slope(inner: Inner, fast: Tree, meta: Tree, support: Examples, at: At) -> Tree:
    """The gradient of the inner loss in the fast weights."""
    return grad(inner.loss)(fast, meta, inner.batch(support, at), at)


def move(inner: Inner, grads: Tree, fast: Tree, state: Tree, meta: Tree) -> tuple[Tree, Tree]:
    """One update of the inner optimizer."""
    updates, state = inner.optimizer(meta).update(grads, state, fast)
    return tree.add(fast, updates), state


def advance(inner: Inner, fast: Tree, state: Tree, meta: Tree, support: Examples, at: At) -> tuple[Tree, Tree]:
    """One inner step: `slope`, then `move`."""
    return move(inner, slope(inner, fast, meta, support, at), fast, state, meta)


def trajectory(inner: Inner, steps: int | None = None) -> Callable[..., list[Tree]]:
    """`(meta, support, key=()) -> [fast before step 0, after step 1, …]`, one task, `steps + 1` entries."""
    total = inner.steps if steps is None else steps
    if total < 0:
        raise InputError(f"trajectory(steps={total}): expected 0 or more")

    def run(meta: Tree, support: Examples, key: Tree = ()) -> list[Tree]:
        fast, state = begin(inner, meta, support, key)
        path = [fast]
        for k in range(total):
            index = torch.full((), k, dtype=torch.int64, device=_device(fast))
            fast, state = advance(inner, fast, state, meta, support, at_step(index, key))
            path.append(fast)
        return path

    return run


def descend(inner: Inner) -> Callable[[Tree, Examples, Tree], Tree]:
    """The `adapt` of a learner with an inner loop: all its steps, one task."""
    run = trajectory(inner)
    return lambda meta, support, key: run(meta, support, key)[-1]


def _device(fast: Tree) -> torch.device:
    return tree.tree_leaves(fast)[0].device
