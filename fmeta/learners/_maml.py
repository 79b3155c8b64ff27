"""MAML: an initialisation from which a few gradient steps go far."""

from __future__ import annotations

from torch import Tensor

from fmeta.core._checks import check_model, check_optimizer
from fmeta.core._losses import weighted_mean
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, forward, gradient_based


def maml(
    model: Model,
    loss: Loss,
    *,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Model-agnostic meta-learning (Finn et al. 2017, https://arxiv.org/abs/1703.03400).

        fast₀ = meta,    fastₖ₊₁ = fastₖ + Δ(∇ loss(fastₖ; support)),    min_meta Σₜ loss(fast_K; queryₜ)

    With `gradient=first_order()` it is FOMAML.

    Args:
        model: the network; `meta` and `fast` are its parameters.
        loss: `(prediction, y) -> [example]` (or a mean), for the inner and the outer loop.
        optimizer: of the inner loop; `sgd(α)` in the paper.
        steps: inner steps, at least 1.
        metrics: more `(prediction, y) -> [example]` functions to report on the query, by name.
    """
    check_model("maml", model)
    check_optimizer("maml", optimizer)

    def inner_loss(fast: Tree, meta: Tree, batch: Examples, at: At) -> Tensor:
        return weighted_mean(loss(forward(model, fast, batch.x, at.key), batch.y), batch.weight, "maml")

    inner = Inner(lambda meta, support, key: meta, inner_loss, lambda meta: optimizer, steps)
    return gradient_based(
        "maml", model.init, inner, lambda fast, meta, x: model.apply(fast, x), loss, metrics, gradient or unrolled()
    )
