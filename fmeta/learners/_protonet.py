"""Prototypical networks: classify by the nearest class mean."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from fmeta.core._checks import InputError, check_model, nearest
from fmeta.core._losses import cross_entropy
from fmeta.core._similarity import cosines, squared_distances
from fmeta.core._types import Examples, Learner, Loss, Model, Tree
from fmeta.learners._classes import check_features, check_ways, prototypes
from fmeta.learners._factories import Metrics, encoder_based

Distance = Literal["euclidean", "cosine"]


class ProtonetFast(NamedTuple):
    prototypes: Tensor  # [way, feature]
    absence: Tensor  # [way]


def protonet(
    encoder: Model,
    loss: Loss = cross_entropy,
    *,
    ways: int,
    distance: Distance = "euclidean",
    scale: float | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Prototypical networks (Snell et al. 2017, https://arxiv.org/abs/1703.05175).

        cₙ = mean of encoder(x) over the support of class n,    logitsₙ(x) = −scale·‖encoder(x) − cₙ‖²

    With "cosine" the logits are scale·cos(encoder(x), cₙ) (Chen et al. 2021, https://arxiv.org/abs/2003.04390).

    Args:
        encoder: `x -> [example, feature]`, such as `conv4(None)`; `meta` is its parameters.
        loss: `(logits, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted.
        distance: "euclidean" (squared) or "cosine".
        scale: of the logits; None is 1 for "euclidean" and 10 for "cosine", whose values end at 1.
        metrics: more functions to report on the query, by name.
    """
    check_model("protonet", encoder)
    check_ways("protonet", ways)
    measures = {"euclidean": (1.0, lambda x, c: -squared_distances(x, c)), "cosine": (10.0, cosines)}
    if distance not in measures:
        raise InputError(f"protonet(distance={distance!r}): unknown distance; {nearest(str(distance), measures)}")
    usual, similarity = measures[distance]
    factor = usual if scale is None else scale
    if not 0.0 < factor < float("inf"):
        raise InputError(f"protonet(scale={scale}): expected a positive number")

    def adapt(meta: Tree, support: Examples, key: Tree) -> ProtonetFast:
        return ProtonetFast(*prototypes("protonet", encoder.apply(meta, support.x), support, ways))

    def predict(fast: ProtonetFast, meta: Tree, x: Tree) -> Tensor:
        features = check_features("protonet", encoder.apply(meta, x))
        return factor * similarity(features, fast.prototypes) + fast.absence

    return encoder_based(
        "protonet", encoder.init, adapt, predict, loss, metrics, lambda fast: fast.absence == 0, "logits"
    )
