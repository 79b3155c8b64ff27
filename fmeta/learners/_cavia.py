"""CAVIA: adapt a context vector, share the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts, check_model, check_optimizer
from fmeta.core._losses import weighted_mean
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, forward, gradient_based


def append(x: Tensor, context: Tensor) -> Tensor:
    """The default `condition`: φ beside every input, which grows from `[…, feature]` to `[…, feature + context]`."""
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1):
        came = f"a {x.dtype} tensor {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(
            f"cavia: x is {came}; expected [example, …, feature] of floats, to append the context to; for other inputs "
            "pass condition=lambda x, context: what your model takes"
        )
    return torch.cat([x, context.to(x.dtype).expand(*x.shape[:-1], len(context))], -1)


def cavia(
    model: Model,
    loss: Loss,
    *,
    context: int,
    optimizer: Optimizer,
    steps: int,
    condition: Callable[[Tree, Tensor], Tree] = append,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Fast context adaptation via meta-learning (Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642).

        φ₀ = 0,    φₖ₊₁ = φₖ + Δ(∇_φ loss(model(meta, (x, φₖ)); support)),    min_meta Σₜ loss(φ_K; queryₜ)

    Args:
        model: the network; `meta` is its parameters, which no task changes. `fast` is φ, `[context]`.
        loss: `(prediction, y) -> [example]` (or a mean).
        context: length of φ.
        optimizer: of the inner loop; `sgd` at a rate near 1 in the paper.
        steps: inner steps, at least 1.
        condition: `(x, φ) ->` the model's input; the default appends φ to every input, so the model's first layer is
            `context` wider. For a module that takes φ apart (FiLM layers): `lambda x, φ: (x, φ)`.
        metrics: more functions to report on the query, by name.
    """
    check_model("cavia", model)
    check_optimizer("cavia", optimizer)
    check_counts("cavia", context=context)

    def inner_loss(fast: Tensor, meta: Tree, batch: Examples, at: At) -> Tensor:
        prediction = forward(model, meta, condition(batch.x, fast), at.key)
        return weighted_mean(loss(prediction, batch.y), batch.weight, "cavia")

    def predict(fast: Tensor, meta: Tree, x: Tree) -> Tree:
        return model.apply(meta, condition(x, fast))

    inner = Inner(
        lambda meta, support, key: tree.scalar_like(meta, support.x).new_zeros(context),
        inner_loss,
        lambda meta: optimizer,
        steps,
    )
    return gradient_based("cavia", model.init, inner, predict, loss, metrics, gradient or unrolled())
