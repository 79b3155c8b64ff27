"""`adjoint`, `truncated` and `first_order`: one recursion that carries a cotangent back through the inner loop.

With states sₖ = (fastₖ, optimizer stateₖ) and sₖ₊₁ = Φₖ(sₖ, meta), the meta-gradient is

    λ_K = ∂loss/∂s_K,    λₖ = (∂Φₖ/∂sₖ)ᵀ λₖ₊₁,    d/dmeta = ∂loss/∂meta + Σₖ (∂Φₖ/∂meta)ᵀ λₖ₊₁ + (∂s₀/∂meta)ᵀ λ₀.

The states are kept on the way out; on the way back each Φₖ is recomputed alone and pulled back, so memory holds the
trajectory of parameters and the activations of ONE step (Maclaurin et al. 2015, https://arxiv.org/abs/1502.03492;
Kemaev et al. 2025, https://arxiv.org/abs/2505.00793). Where the inner gradient counts as a constant, its value from
the way out is kept and nothing is recomputed.

Stages act on the whole batch with vmap inside vjp, so the cotangent of the shared meta comes out summed over tasks and
no `[task, meta]` copy of it exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp

from fmeta.core import _inner
from fmeta.core import _tree as tree
from fmeta.core._checks import InputError
from fmeta.core._inner import at_step, over_tasks
from fmeta.core._types import Examples, GradFn, Info, Inner, Learner, MetaGradient, Stage, Task, Tree


def adjoint() -> MetaGradient:
    """The exact meta-gradient in the memory of one inner step (plus one copy of the fast weights per step)."""

    def gradient(learner: Learner, stage: Stage) -> GradFn:
        inner = inner_of(learner, "adjoint()")
        return _replayed(learner, inner, stage, exact_from=0)

    return gradient


def truncated(last: int) -> MetaGradient:
    """The exact recursion in the last `last` inner steps; before them the inner gradient counts as a constant.

    `truncated(0)` is `first_order()`, `truncated(steps)` is `adjoint()`. The path of the parameters themselves is never
    cut, so MAML's initialisation keeps a gradient. Shaban et al. 2019, https://arxiv.org/abs/1810.10667.
    """

    def gradient(learner: Learner, stage: Stage) -> GradFn:
        inner = inner_of(learner, f"truncated({last})")
        if not 0 <= last <= inner.steps:
            raise InputError(
                f"truncated(last={last}): {learner.name} takes {inner.steps} inner steps; expected 0 to {inner.steps}"
            )
        return _replayed(learner, inner, stage, exact_from=inner.steps - last)

    return gradient


def first_order() -> MetaGradient:
    """FOMAML: all inner gradients count as constants. Finn et al. 2017, section 5.2; Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999."""

    def gradient(learner: Learner, stage: Stage) -> GradFn:
        inner = inner_of(learner, "first_order()")
        return _replayed(learner, inner, stage, exact_from=inner.steps)

    return gradient


def inner_of(learner: Learner, name: str) -> Inner:
    """The inner problem that a meta-gradient of that name needs; InputError if the learner has none."""
    if learner.inner is None:
        raise InputError(
            f"meta_grad({learner.name}, {name}): it differentiates an inner loop, and {learner.name} has none; "
            "expected a meta-gradient that fits; these do: unrolled()"
        )
    return learner.inner


def _plain(values: Tree) -> Tree:
    """Copies in the standard layout: any other at the next step, even in an axis of size 1, would compile again."""
    return tree.tree_map(lambda t: t.clone(memory_format=torch.contiguous_format), values)


def _replayed(learner: Learner, inner: Inner, stage: Stage, exact_from: int) -> GradFn:
    def begin(meta: Tree, support: Examples) -> tuple[Tree, Tree]:
        return over_tasks(lambda m, s: _inner.begin(inner, m, s))(meta, support)

    def slope(fast: Tree, meta: Tree, tasks: Task, index: Tensor) -> Tree:
        def one(f: Tree, m: Tree, task: Task, i: Tensor) -> Tree:
            return _inner.slope(inner, f, m, task.support, at_step(i, task.key))

        return over_tasks(one, shared=(1, 3))(fast, meta, tasks, index)

    def move(grads: Tree, fast: Tree, state: Tree, meta: Tree) -> tuple[Tree, Tree]:
        return over_tasks(lambda g, f, s, m: _inner.move(inner, g, f, s, m), shared=(3,))(grads, fast, state, meta)

    @stage
    def start(meta: Tree, support: Examples) -> tuple[Tree, Tree]:
        return _plain(begin(meta, support))

    @stage
    def advance(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor) -> tuple[Tree, Tree]:
        return _plain(move(slope(fast, meta, tasks, index), fast, state, meta))

    @stage
    def advance_keeping(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor) -> tuple[Tree, Any]:
        grads = slope(fast, meta, tasks, index)
        return _plain((grads, move(grads, fast, state, meta)))

    @stage
    def finish(fast: Tree, meta: Tree, query: Examples) -> tuple[Tree, Tree, Info]:
        def mean_loss(f: Tree, m: Tree) -> tuple[Tensor, Info]:
            losses, metrics = over_tasks(learner.loss, shared=(1,))(f, m, query)
            return losses.mean(), Info(losses.mean(), losses, metrics)

        (d_fast, d_meta), (_, info) = grad_and_value(mean_loss, argnums=(0, 1), has_aux=True)(fast, meta)
        return _plain(d_fast), d_meta, info

    @stage
    def pull(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor, d: Tree) -> Tree:
        def step(f: Tree, s: Tree, m: Tree) -> tuple[Tree, Tree]:
            return move(slope(f, m, tasks, index), f, s, m)

        return _plain(vjp(step, fast, state, meta)[1](d))

    @stage
    def pull_constant(grads: Tree, fast: Tree, state: Tree, meta: Tree, d: Tree) -> Tree:
        return _plain(vjp(lambda f, s, m: move(grads, f, s, m), fast, state, meta)[1](d))

    @stage
    def close(meta: Tree, support: Examples, d: Tree) -> Tree:
        return vjp(lambda m: begin(m, support), meta)[1](d)[0]

    def replayed_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
        device = tree.tree_leaves(meta)[0].device
        indices = [torch.full((), k, dtype=torch.int64, device=device) for k in range(inner.steps)]
        fast, state = start(meta, tasks.support)
        trail: list[Any] = []
        for index in indices:
            if len(trail) < exact_from:
                grads, (after, after_state) = advance_keeping(fast, state, meta, tasks, index)
                trail.append((grads, fast, state))
                fast, state = after, after_state
            else:
                trail.append((fast, state))
                fast, state = advance(fast, state, meta, tasks, index)
        d_fast, d_meta, info = finish(fast, meta, tasks.query)
        d = d_fast, tree.zeros_like(state)
        for index in reversed(indices):
            step = trail.pop()
            if len(trail) < exact_from:
                *d, more = pull_constant(*step, meta, tuple(d))
            else:
                *d, more = pull(*step, meta, tasks, index, tuple(d))
            d_meta = tree.add(d_meta, more)
        return tree.add(d_meta, close(meta, tasks.support, tuple(d))), info

    return replayed_grads
