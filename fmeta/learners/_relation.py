"""Relation networks: a learned comparison in place of a distance."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_labels, check_model
from fmeta.core._random import fold
from fmeta.core._types import Examples, Learner, Loss, Model, Tree
from fmeta.learners._classes import absence, check_ways, membership, one_hot
from fmeta.learners._factories import Metrics, encoder_based


class RelationParams(NamedTuple):
    encoder: Tree
    comparison: Tree


class RelationFast(NamedTuple):
    sums: Tensor  # [way, channel, ...] of the support's features
    absence: Tensor  # [way]


def one_hot_error(scores: Tensor, y: Tensor) -> Tensor:
    """Σₙ (scoreₙ − [y = n])², `[example, way]`, integer `[example]` -> `[example]`: the loss of relation networks."""
    check_labels("one_hot_error", y, scores.shape[-1], len(scores))
    return ((scores - one_hot("one_hot_error", y, scores.shape[-1], scores.dtype)) ** 2).sum(-1)


def relation(
    encoder: Model,
    comparison: Model,
    loss: Loss = one_hot_error,
    *,
    ways: int,
    metrics: Metrics | None = None,
) -> Learner:
    """Relation networks (Sung et al. 2018, https://arxiv.org/abs/1711.06025).

        scoreₙ(x) = σ(comparison([Σ of encoder over the support of class n, encoder(x)]))

    trained by the squared error Σₙ (scoreₙ − [y = n])².

    Args:
        encoder: `x -> [example, channel, ...]`: feature maps, or features.
        comparison: `[pair, 2·channel, ...] -> [pair, 1]`, before the σ; class and example are side by side in the
            channels.
        loss: `(scores, y) -> [example]` (or a mean); the scores are in (0, 1).
        ways: N, most classes of a task; one without support examples has score 0.
        metrics: more functions to report on the query, by name.
    """
    check_model("relation", encoder)
    check_model("relation", comparison)
    check_ways("relation", ways)

    def init(key: Tensor) -> RelationParams:
        return RelationParams(encoder.init(fold(key, 0)), comparison.init(fold(key, 1)))

    def adapt(meta: RelationParams, support: Examples, key: Tree) -> RelationFast:
        features = encoder.apply(meta.encoder, support.x)
        member = membership("relation", support, ways, features.dtype)
        return RelationFast((member.mT @ features.flatten(1)).unflatten(1, features.shape[1:]), absence(member))

    def predict(fast: RelationFast, meta: RelationParams, x: Tree) -> Tensor:
        features = encoder.apply(meta.encoder, x)
        shape = (len(features), ways, *features.shape[1:])
        pairs = torch.cat([fast.sums.expand(shape), features[:, None].expand(shape)], 2).flatten(0, 1)
        scores = comparison.apply(meta.comparison, pairs)
        if scores.shape != (len(pairs), 1):
            raise InputError(
                f"relation: comparison gave {list(scores.shape)} for {len(pairs)} pairs; expected one score for each, "
                f"[{len(pairs)}, 1]"
            )
        return (scores.view(-1, ways) + fast.absence).sigmoid()

    return encoder_based(
        "relation", init, adapt, predict, loss, metrics, lambda fast: fast.absence == 0, "probabilities"
    )
