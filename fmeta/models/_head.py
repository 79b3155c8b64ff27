"""Classifiers on top of an encoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import InputError, Model, Parts, Tree, fold
from fmeta.core._checks import check_counts, check_model
from fmeta.core._similarity import cosines
from fmeta.core.tree import scalar_like
from fmeta.models._layers import init_layer

Head = Literal["linear", "cosine"]


def with_head(
    encoder: Model,
    outputs: int,
    *,
    features: int,
    head: Head = "linear",
    scale: float = 10.0,
    dtype: torch.dtype | None = None,
) -> Model:
    """`encoder` with a classifier on its features: `x -> [example, outputs]`.

        linear: logits = W f + b          cosine: logits = scale·cos(W, f), row by row

    The cosine head is that of Baseline++ (Chen et al. 2019, https://arxiv.org/abs/1904.04232).

    Args:
        encoder: `x -> [example, feature]`.
        outputs: classes.
        features: the encoder's.
        head: "linear" or "cosine".
        scale: of the cosines.
        dtype: of the head; None takes the encoder's (float32 for one that has no parameters, all frozen).

    Parameters are `{"encoder": …, "head": {"weight", "bias"}}` (the cosine head has no bias), so `head.*` names the
    head's for `anil`, `boil` and `masked`.
    """
    check_model("with_head", encoder)
    check_counts("with_head", outputs=outputs, features=features)
    if head not in ("linear", "cosine") or not 0.0 < scale < float("inf"):
        raise InputError(
            f"with_head(head={head!r}, scale={scale}): expected head 'linear' or 'cosine' and a positive scale"
        )

    def init(key: Tensor) -> Tree:
        body = encoder.init(fold(key, 0))
        drawn = init_layer(fold(key, 1), "head", (outputs, features), dtype or scalar_like(body, key).dtype)
        kept = ("weight", "bias") if head == "linear" else ("weight",)
        return {"encoder": body, "head": {n: drawn[f"head.{n}"] for n in kept}}

    def classify(params: Tree, found: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != features:
            came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"with_head(features={features}): the encoder gave {came}; expected [example, {features}]")
        if head == "linear":
            return F.linear(found, params["head"]["weight"], params["head"]["bias"])
        return scale * cosines(found, params["head"]["weight"])

    def trunk(params: Tree, x: Tree) -> Tree:
        return encoder.apply(params["encoder"], x)

    def noisy_trunk(params: Tree, x: Tree, key: Tensor) -> Tree:
        assert encoder.noisy is not None
        return encoder.noisy(params["encoder"], x, key)

    noisy, calibrate = None if encoder.noisy is None else noisy_trunk, encoder.calibrate
    return Model(
        init,
        lambda params, x: classify(params, trunk(params, x)),
        None if noisy is None else lambda params, x, key: classify(params, noisy(params, x, key)),
        None if calibrate is None else lambda params, x: {**params, "encoder": calibrate(params["encoder"], x)},
        Parts(trunk, classify, "head.*", noisy),
        encoder.expects,
    )
