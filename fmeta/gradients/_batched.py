"""The pieces of an adaptation over a batch of tasks.

vmap is inside and reverse mode outside, so the cotangent of the shared meta comes out summed over tasks and no
`[task, meta]` copy of it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from fmeta.core import _inner, tree
from fmeta.core._checks import InputError
from fmeta.core._inner import at_step
from fmeta.core._types import Examples, Info, Inner, Learner, Task, Tree, as_it_is
from fmeta.operators._over_tasks import over_tasks


class Batched(NamedTuple):
    prepare: Callable[[Tree, Examples, Tree], Examples]  # meta, support, keys -> what the steps see in its place
    begin: Callable[[Tree, Examples, Tree], tuple[Tree, Tree]]  # meta, prepared support, keys -> fast, state
    slope: Callable[[Tree, Tree, Task, Tensor], Tree]  # fast, meta, tasks, index -> the inner gradient
    move: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]]  # grads, fast, state, meta -> fast, state
    judge: Callable[[Tree, Tree, Examples], tuple[Tensor, Info]]  # fast, meta, query -> mean loss, info


def batched(learner: Learner, inner: Inner) -> Batched:
    """The functions of one task, over a batch of them."""

    def prepare(meta: Tree, support: Examples, key: Tree) -> Examples:
        if inner.prepare is as_it_is:
            return support
        return over_tasks(lambda m, s, k: _inner.prepare(inner, m, s, k))(meta, support, key)

    def begin(meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree]:
        return over_tasks(lambda m, s, k: _inner.begin(inner, m, s, k))(meta, support, key)

    def slope(fast: Tree, meta: Tree, tasks: Task, index: Tensor) -> Tree:
        def one(f: Tree, m: Tree, task: Task, i: Tensor) -> Tree:
            return _inner.slope(inner, f, m, task.support, at_step(i, task.key))

        return over_tasks(one, shared=(1, 3))(fast, meta, tasks, index)

    def move(grads: Tree, fast: Tree, state: Tree, meta: Tree) -> tuple[Tree, Tree]:
        if not tree.tree_leaves((fast, state)):
            return fast, state  # nothing adapts, and vmap needs something to batch
        return over_tasks(lambda g, f, s, m: _inner.move(inner, g, f, s, m), shared=(3,))(grads, fast, state, meta)

    def judge(fast: Tree, meta: Tree, query: Examples) -> tuple[Tensor, Info]:
        losses, metrics = over_tasks(learner.loss, shared=(1,))(fast, meta, query)
        return losses.mean(), Info(losses.mean(), losses, metrics)

    return Batched(prepare, begin, slope, move, judge)


def inner_of(learner: Learner, name: str) -> Inner:
    """The inner problem that a meta-gradient of that name needs; InputError if the learner has none."""
    if learner.inner is None:
        raise InputError(
            f"meta_grad({learner.name}, {name}): it differentiates an inner loop, and {learner.name} has none; "
            "expected a meta-gradient that fits; these do: unrolled(), evolution(sigma, pairs)"
        )
    return learner.inner


def indices(steps: int, tasks: Task) -> list[Tensor]:
    """The index of each inner step, as tensors, so that one compiled step serves all."""
    device = tree.tree_leaves(tasks)[0].device
    return [torch.full((), k, dtype=torch.int64, device=device) for k in range(steps)]


def made(inner: Inner, support: Examples) -> Tree:
    """What `prepare` made of the inputs; `()` where it makes nothing."""
    return () if inner.prepare is as_it_is else support.x


def seeing(tasks: Task, x: Tree) -> Task:
    """The tasks as the inner steps see them, given what was `made`."""
    return tasks._replace(support=tasks.support._replace(x=x)) if tree.tree_leaves(x) else tasks


def floating(x: Tree) -> dict[str, Tensor]:
    """The leaves that have a derivative, by name."""
    return {name: leaf for name, leaf in tree.named_leaves(x).items() if leaf.is_floating_point()}


def pull_back(function: Callable[..., Tree], d: Tree, *at: Tree) -> tuple[Tree, ...]:
    """The cotangents of the arguments `at` from that of what the function gives; zeros where it gives nothing."""
    return vjp(function, *at)[1](d) if tree.tree_leaves(d) else tree.zeros_like(at)


def plain(values: Tree) -> Tree:
    """Copies in the standard layout: any other at the next step, even in an axis of size 1, would compile again."""
    return tree.tree_map(lambda t: t.clone(memory_format=torch.contiguous_format), values)


def as_weights(name: str, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """`loss_weights` as a value that cannot change."""
    try:
        return None if weights is None else tuple(float(w) for w in weights)
    except TypeError as error:
        raise InputError(f"{name}(loss_weights={weights!r}): expected one number for each inner step") from error


def step_weights(name: str, given: tuple[float, ...] | None, learner: Learner) -> tuple[float, ...] | None:
    """`given` if it has one weight for the loss after each inner step; None is for the last step's loss alone."""
    if given is None:
        return None
    steps = inner_of(learner, name).steps
    if len(given) != steps:
        raise InputError(
            f"{name}: {len(given)} loss_weights, and {learner.name} takes {steps} inner steps; expected one weight for "
            f"the query loss after each step; fmeta.multi_step({steps}) makes them"
        )
    if not all(0 <= w < float("inf") for w in given) or not any(given):
        raise InputError(f"{name}: loss_weights {list(given)}; expected finite weights >= 0, not all 0")
    return given


def multi_step(steps: int, progress: float = 0.0) -> tuple[float, ...]:
    """MAML++'s `loss_weights`: equal at progress 0; at 1 all but the last have shrunk to 3%.

    wₖ = max(1 − progress, 0.03)/steps for all steps but the last, which takes the rest (Antoniou et al. 2019,
    section 4, https://arxiv.org/abs/1810.09502).
    """
    if steps < 1 or not 0 <= progress <= 1:
        raise InputError(f"multi_step(steps={steps}, progress={progress}): expected steps >= 1 and 0 <= progress <= 1")
    early = max(1.0 - progress, 0.03) / steps
    return (*(early for _ in range(steps - 1)), 1.0 - early * (steps - 1))
