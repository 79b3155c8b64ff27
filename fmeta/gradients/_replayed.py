"""`adjoint`, `truncated` and `first_order`: one recursion that carries a cotangent back through the inner loop.

With states sₖ = (fastₖ, optimizer stateₖ) and sₖ₊₁ = Φₖ(sₖ, meta), the meta-gradient is

    λ_K = ∂loss/∂s_K,    λₖ = (∂Φₖ/∂sₖ)ᵀ λₖ₊₁,    d/dmeta = ∂loss/∂meta + Σₖ (∂Φₖ/∂meta)ᵀ λₖ₊₁ + (∂s₀/∂meta)ᵀ λ₀.

The states are kept on the way out; on the way back each Φₖ is recomputed alone and pulled back, so memory holds the
trajectory of parameters and the activations of ONE step (Maclaurin et al. 2015, https://arxiv.org/abs/1502.03492;
Kemaev et al. 2025, https://arxiv.org/abs/2505.00793). Where the inner gradient counts as a constant, its value from
the way out is kept and nothing is recomputed. A loss after step k adds its weight times ∂loss/∂sₖ to λₖ. What
`Inner.prepare` made is a part of s₀ that no step changes: its cotangents are summed over the steps and pulled back
with λ₀.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from fmeta.core import tree
from fmeta.core._checks import InputError
from fmeta.core._types import (
    Examples,
    GradFn,
    Info,
    Inner,
    Learner,
    MetaGradient,
    Order,
    Stage,
    Task,
    Tree,
    WeighingSteps,
)
from fmeta.gradients._batched import (
    as_weights,
    batched,
    floating,
    indices,
    inner_of,
    made,
    plain,
    pull_back,
    seeing,
    step_weights,
)


def adjoint(loss_weights: Sequence[float] | None = None) -> MetaGradient:
    """The exact meta-gradient in the memory of one inner step (plus one copy of the fast weights per step).

    Args:
        loss_weights: one weight for the query loss after each inner step, as in `unrolled`.
    """
    return _Replayed("adjoint", None, as_weights("adjoint", loss_weights))


def truncated(last: int, loss_weights: Sequence[float] | None = None) -> MetaGradient:
    """The exact recursion in the last `last` inner steps; before them the inner gradient counts as a constant.

    `truncated(0)` is `first_order()`, `truncated(steps)` is `adjoint()`. The path of the parameters themselves is never
    cut, so MAML's initialisation keeps a gradient. Shaban et al. 2019, https://arxiv.org/abs/1810.10667.

    Args:
        last: inner steps that keep their second-order term.
        loss_weights: as in `unrolled`.
    """
    return _Replayed("truncated", last, as_weights("truncated", loss_weights))


def first_order(loss_weights: Sequence[float] | None = None) -> MetaGradient:
    """FOMAML: all inner gradients count as constants. Finn et al. 2017, section 5.2; Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999.

    Args:
        loss_weights: as in `unrolled`.
    """
    return _Replayed("first_order", 0, as_weights("first_order", loss_weights))


@dataclass(frozen=True)
class _Replayed(WeighingSteps):
    name: str
    last: int | None  # steps that keep their second-order term; None keeps all
    loss_weights: tuple[float, ...] | None

    @property
    def order(self) -> Order:  # type: ignore[override]  # of a truncated one it depends on the learner's steps
        return "exact" if self.last is None else "neither" if self.last else "first order"

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        inner = inner_of(learner, f"{self.name}({'' if self.name != 'truncated' else self.last})")
        last = inner.steps if self.last is None else self.last
        if last not in range(inner.steps + 1):
            raise InputError(
                f"truncated(last={last}): {learner.name} takes {inner.steps} inner steps; expected a whole number, "
                f"0 to {inner.steps}"
            )
        weights = step_weights(self.name, self.loss_weights, learner)
        return _replayed(learner, inner, stage, inner.steps - last, weights or (0.0,) * (inner.steps - 1) + (1.0,))


def _replayed(learner: Learner, inner: Inner, stage: Stage, exact_from: int, loss_weights: tuple[float, ...]) -> GradFn:
    prepare, begin, slope, move, judge = batched(learner, inner)

    def opening(meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree, Tree]:
        support = prepare(meta, support, key)
        return *begin(meta, support, key), made(inner, support)

    @stage
    def start(meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree, Tree]:
        return plain(opening(meta, support, key))

    @stage
    def advance(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor) -> tuple[Tree, Tree]:
        return plain(move(slope(fast, meta, tasks, index), fast, state, meta))

    @stage
    def advance_keeping(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor) -> tuple[Tree, Any]:
        grads = slope(fast, meta, tasks, index)
        return plain((grads, move(grads, fast, state, meta)))

    @stage
    def finish(fast: Tree, meta: Tree, query: Examples, weight: Tensor) -> tuple[Tree, Tree, Info]:
        def weighted(f: Tree, m: Tree) -> tuple[Tensor, Info]:
            loss, info = judge(f, m, query)
            return loss * weight[0].to(loss.dtype), info

        (d_fast, d_meta), (_, info) = grad_and_value(weighted, argnums=(0, 1), has_aux=True)(fast, meta)
        return plain(d_fast), d_meta, info

    @stage
    def pull(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor, d: Tree) -> Tree:
        x = made(inner, tasks.support)

        def step(f: Tree, s: Tree, m: Tree, features: dict[str, Tensor]) -> tuple[Tree, Tree]:
            return move(slope(f, m, seeing(tasks, tree.replace_leaves(x, features)), index), f, s, m)

        return plain(pull_back(step, d, fast, state, meta, floating(x)))

    @stage
    def pull_constant(grads: Tree, fast: Tree, state: Tree, meta: Tree, d: Tree) -> Tree:
        return plain(pull_back(lambda f, s, m: move(grads, f, s, m), d, fast, state, meta))

    @stage
    def close(meta: Tree, support: Examples, key: Tree, d: Tree) -> Tree:
        def opened(m: Tree) -> tuple[Tree, Tree, dict[str, Tensor]]:
            fast, state, x = opening(m, support, key)
            return fast, state, floating(x)

        return pull_back(opened, d, meta)[0]

    def replayed_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
        steps = indices(inner.steps, tasks)
        # of one element, because the compiler takes scalars of float64 for constants first and starts again
        weights = [torch.full_like(steps[0][None], w, dtype=torch.float64) for w in loss_weights]
        support = tasks.support
        fast, state, x = start(meta, support, tasks.key)
        tasks = seeing(tasks, x)
        trail: list[Any] = []
        for index in steps:
            if len(trail) < exact_from:
                grads, (after, after_state) = advance_keeping(fast, state, meta, tasks, index)
                trail.append((grads, fast, state))
                fast, state = after, after_state
            else:
                trail.append((fast, state))
                fast, state = advance(fast, state, meta, tasks, index)
        d_fast, d_meta, info = finish(fast, meta, tasks.query, weights[-1])
        d: Any = d_fast, tree.zeros_like(state)
        d_features = tree.zeros_like(floating(x))
        for index in reversed(steps):
            step = trail.pop()
            if len(trail) < exact_from:
                *d, more = pull_constant(*step, meta, tuple(d))
            else:
                *d, more, of_step = pull(*step, meta, tasks, index, tuple(d))
                d_features = tree.add(d_features, of_step)
            d_meta = tree.add(d_meta, more)
            if trail and loss_weights[len(trail) - 1]:
                d_fast, more, _ = finish(step[-2], meta, tasks.query, weights[len(trail) - 1])
                d, d_meta = (tree.add(d[0], d_fast), d[1]), tree.add(d_meta, more)
        return tree.add(d_meta, close(meta, support, tasks.key, (*d, d_features))), info

    return replayed_grads
