"""R2-D2: a ridge regression on learned features, solved in closed form."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_model
from fmeta.core._losses import cross_entropy
from fmeta.core._types import Examples, Learner, Loss, Model, Tree
from fmeta.core.tree import scalar_like
from fmeta.learners._classes import absence, check_features, check_ways, membership
from fmeta.learners._factories import Metrics, encoder_based


class RidgeParams(NamedTuple):
    encoder: Tree
    log_damping: Tensor  # [] log λ
    scale: Tensor  # [] α
    bias: Tensor  # [] β


class RidgeFast(NamedTuple):
    weight: Tensor  # [feature + 1, way] W
    absence: Tensor  # [way]


def ridge(
    encoder: Model, loss: Loss = cross_entropy, *, ways: int, damping: float = 50.0, metrics: Metrics | None = None
) -> Learner:
    """R2-D2 (Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136).

        W = (XᵀX + λI)⁻¹XᵀY = Xᵀ(XXᵀ + λI)⁻¹Y,    logits(x) = α·[encoder(x), 1]W + β

    X is the support's features beside a 1, Y its one-hot labels. λ, α and β are learned with the encoder. Of the two
    forms, equal by Woodbury's identity, the one with the smaller matrix is solved.

    Args:
        encoder: `x -> [example, feature]`, such as `conv4(None)`.
        loss: `(logits, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted.
        damping: λ before training, positive.
        metrics: more functions to report on the query, by name.
    """
    check_model("ridge", encoder)
    check_ways("ridge", ways)
    if not 0.0 < damping < float("inf"):
        raise InputError(f"ridge(damping={damping}): expected a positive number")

    def init(key: Tensor) -> RidgeParams:
        params = encoder.init(key)
        like = scalar_like(params, key)
        return RidgeParams(params, like.new_full((), damping).log(), like.new_ones(()), like.new_zeros(()))

    def features(meta: RidgeParams, x: Tree) -> Tensor:
        found = check_features("ridge", encoder.apply(meta.encoder, x))
        return torch.cat([found, torch.ones_like(found[:, :1])], -1)

    def adapt(meta: RidgeParams, support: Examples, key: Tree) -> RidgeFast:
        x = features(meta, support.x)
        y = membership("ridge", support, ways, x.dtype)
        absent = absence(y)
        if isinstance(support.weight, Tensor):  # each row counts by its weight: √w on both sides
            root = support.weight.to(x.dtype).sqrt()[:, None]
            x, y = root * x, torch.where(root > 0, y / root.clamp_min(1e-30), 0.0)
        damped = meta.log_damping.exp() * torch.eye(min(x.shape), dtype=x.dtype, device=x.device)
        if x.shape[0] < x.shape[1]:
            return RidgeFast(x.mT @ torch.linalg.solve(x @ x.mT + damped, y), absent)
        return RidgeFast(torch.linalg.solve(x.mT @ x + damped, x.mT @ y), absent)

    def predict(fast: RidgeFast, meta: RidgeParams, x: Tree) -> Tensor:
        return meta.scale * (features(meta, x) @ fast.weight) + meta.bias + fast.absence

    return encoder_based("ridge", init, adapt, predict, loss, metrics, lambda fast: fast.absence == 0, "logits")
