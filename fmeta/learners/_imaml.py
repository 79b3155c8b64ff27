"""iMAML: adapt to the optimum of a proximal problem and differentiate the optimum."""

from __future__ import annotations

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_model, check_optimizer
from fmeta.core._losses import weighted_mean
from fmeta.core._solve import cg
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import implicit
from fmeta.learners._factories import Metrics, gradient_based


def imaml(
    model: Model,
    loss: Loss,
    *,
    damping: float,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """MAML with implicit gradients (Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630).

        fast* = argmin loss(fast; support) + λ/2 ‖fast − meta‖²,    d/dmeta = (I + H/λ)⁻¹ ∇ loss(fast*; query)

    with H the Hessian of the support loss. The inner problem is strongly convex where λ exceeds H's most negative
    curvature. Dropout is off in it: a random loss has no one solution.

    Args:
        model: the network; `meta` and `fast` are its parameters.
        loss: `(prediction, y) -> [example]` (or a mean).
        damping: λ > 0; 2 for the paper's Omniglot, 0.5 for its mini-ImageNet.
        optimizer: of the inner loop; any that gets near the optimum.
        steps: inner steps, at least 1; 16 in the paper.
        gradient: `implicit(cg(5))`, the paper's, where left out.
        metrics: more functions to report on the query, by name.
    """
    check_model("imaml", model)
    check_optimizer("imaml", optimizer)
    if not 0 < damping < float("inf"):
        raise InputError(f"imaml(damping={damping}): expected a positive number; at 0 the optimum forgets meta")

    def inner_loss(fast: Tree, meta: Tree, batch: Examples, at: At) -> Tensor:
        away = tree.sub(fast, meta)
        support = weighted_mean(loss(model.apply(fast, batch.x), batch.y), batch.weight, "imaml")
        return support + 0.5 * damping * tree.dot(away, away)

    inner = Inner(lambda meta, support, key: meta, inner_loss, lambda meta: optimizer, steps, strongly_convex=True)
    return gradient_based(
        "imaml", model.init, inner, lambda fast, meta, x: model.apply(fast, x), loss, metrics,
        gradient or implicit(cg(5)),
    )  # fmt: skip
