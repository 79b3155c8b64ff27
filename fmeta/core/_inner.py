"""The inner loop of one task, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import grad

from fmeta.core import tree
from fmeta.core._checks import InputError, check_prepared, check_support
from fmeta.core._random import fold
from fmeta.core._types import At, Examples, Inner, Tree, as_it_is


def at_step(index: Tensor, task_key: Tree) -> At:
    """Where step `index` of the adaptation with this key stands."""
    return At(index, fold(task_key, index) if isinstance(task_key, Tensor) else (), task_key)


def prepare(inner: Inner, meta: Tree, support: Examples, key: Tree) -> Examples:
    """What the inner loop sees in place of the support set."""
    check_support("inner loop", support)
    if inner.prepare is as_it_is:
        return support
    prepared = inner.prepare(meta, support, key)
    check_prepared(support, prepared)
    return prepared


def begin(inner: Inner, meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree]:
    """The fast weights and the optimizer's state before the first step, for a support set that is prepared."""
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


def walk(inner: Inner, meta: Tree, support: Examples, key: Tree, steps: int) -> Iterator[Tree]:
    """The fast weights of one task before step 0, after it, after step 1 …: `steps + 1` trees, none of them kept."""
    support = prepare(inner, meta, support, key)
    fast, state = begin(inner, meta, support, key)
    yield fast
    for k in range(steps):
        index = torch.full((), k, dtype=torch.int64, device=tree.tree_leaves(support)[0].device)
        fast, state = advance(inner, fast, state, meta, support, at_step(index, key))
        yield fast


def trajectory(inner: Inner, steps: int | None = None, *, at: Sequence[int] | None = None) -> Callable[..., list[Tree]]:
    """`(meta, support, key=()) -> [fast before step 0, after step 1, …]`, one task, `steps + 1` entries.

        run = fmeta.trajectory(learner.inner, at=(0, 10, 1000))
        before, early, late = run(meta, task.support, task.key)

    Args:
        inner: what to descend.
        steps: how many steps to take; None is the inner loop's own number, or with `at` the last that is asked for.
        at: numbers of steps taken, 0 for the start: the fast weights there and in this order, and no others are kept.

    Raises:
        InputError: negative steps; `at` empty, or with a number below 0 or above `steps`.
    """
    if at is not None and not at:
        raise InputError("trajectory(at=()): expected at least one number of steps")
    last = steps if steps is not None else inner.steps if at is None else max(at)
    if last < 0:
        raise InputError(f"trajectory(steps={last}): expected 0 or more")
    wanted = tuple(range(last + 1)) if at is None else tuple(at)
    if min(wanted) < 0 or max(wanted) > last:
        raise InputError(f"trajectory(steps={last}, at={list(wanted)}): expected numbers of steps from 0 to {last}")

    def run(meta: Tree, support: Examples, key: Tree = ()) -> list[Tree]:
        path = enumerate(walk(inner, meta, support, key, max(wanted)))
        kept = {k: fast for k, fast in path if k in wanted}
        return [kept[k] for k in wanted]

    return run


def descend(inner: Inner) -> Callable[[Tree, Examples, Tree], Tree]:
    """The `adapt` of a learner with an inner loop: all its steps, one task."""
    run = trajectory(inner, at=(inner.steps,))
    return lambda meta, support, key: run(meta, support, key)[0]
