"""ProtoMAML: MAML whose head starts from the prototypes of the support set."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import check_model, check_optimizer
from fmeta.core._losses import cross_entropy, weighted_mean
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._classes import check_ways, prototypes
from fmeta.learners._factories import Metrics, forward, gradient_based


class ProtoMAMLFast(NamedTuple):
    encoder: Tree
    weight: Tensor  # [way, feature]
    bias: Tensor  # [way]


def protomaml(
    encoder: Model,
    loss: Loss = cross_entropy,
    *,
    ways: int,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Proto-MAML (Triantafillou et al. 2020, section 3, https://arxiv.org/abs/1903.03096).

        cₙ = mean of encoder(x) over the support of class n,    weightₙ = 2cₙ,    biasₙ = −‖cₙ‖²

    so that before the first step the logits are, up to a constant of each example, a prototypical network's: minus the
    squared distances to the prototypes. Encoder and head then adapt together. The head has no parameters of its own,
    and the meta-gradient passes through the prototypes.

    Args:
        encoder: `x -> [example, feature]`, such as `conv4(None)`; `meta` is its parameters.
        loss: `(logits, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted.
        optimizer: of the inner loop.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.
    """
    check_model("protomaml", encoder)
    check_optimizer("protomaml", optimizer)
    check_ways("protomaml", ways)

    def start(meta: Tree, support: Examples, key: Tree) -> ProtoMAMLFast:
        means, absence = prototypes("protomaml", encoder.apply(meta, support.x), support, ways)
        return ProtoMAMLFast(meta, 2.0 * means, absence - (means * means).sum(-1))

    def logits(fast: ProtoMAMLFast, features: Tensor) -> Tensor:
        return F.linear(features, fast.weight, fast.bias)

    def inner_loss(fast: ProtoMAMLFast, meta: Tree, batch: Examples, at: At) -> Tensor:
        prediction = logits(fast, forward(encoder, fast.encoder, batch.x, at.key))
        return weighted_mean(loss(prediction, batch.y), batch.weight, "protomaml")

    def predict(fast: ProtoMAMLFast, meta: Tree, x: Tree) -> Tensor:
        return logits(fast, encoder.apply(fast.encoder, x))

    def held(fast: ProtoMAMLFast) -> Tensor:
        return fast.bias > torch.finfo(fast.bias.dtype).min / 4

    inner = Inner(start, inner_loss, lambda meta: optimizer, steps)
    return gradient_based(
        "protomaml", encoder.init, inner, predict, loss, metrics, gradient or unrolled(), held, "logits"
    )
