"""Losses and metrics of one task: a value per example, so that weights can mark padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import InputError, check_labels, hidden
from fmeta.core._types import Tree


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Squared error, the mean over the features of each example: `[example, ...]`, `[example, ...]` -> `[example]`.

    Raises InputError where the shapes differ (broadcasting would average over the wrong pairs).
    """
    if prediction.shape != y.shape:
        raise InputError(
            f"mse(prediction {list(prediction.shape)}, y {list(y.shape)}): shapes differ; expected the same shape; "
            "reshape y, or give the model as many outputs as y has features"
        )
    return ((prediction - y) ** 2).reshape(y.shape[0], -1).mean(-1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(logits)[y]: `[example, way]`, integer `[example]` -> `[example]`.

    Raises InputError where `y` is not integer, has another length, or (eager only) leaves `0 .. way-1`. Inside a
    compiled function a label out of range makes the loss NaN, which `fit` turns into an error.
    """
    ways = logits.shape[-1]
    check_labels("cross_entropy", y, ways, logits.shape[0])
    inside = (y >= 0) & (y < ways)
    picked = F.log_softmax(logits, -1).gather(-1, y.clamp(0, ways - 1).to(torch.int64)[:, None])[:, 0]
    # a factor, because its NaN reaches the gradient too: a support label out of range must not train on silently
    return -picked * torch.where(inside, 1.0, torch.nan).to(picked.dtype)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the largest logit is the label, else 0: `[example, way]`, `[example]` -> `[example]`.

    A row with a NaN is wrong: torch's argmax would take the first NaN for the largest. Raises InputError as
    `cross_entropy` does.
    """
    check_labels("accuracy", y, logits.shape[-1], logits.shape[0])
    right = (logits.argmax(-1) == y) & ~logits.isnan().any(-1)
    return right.to(logits.dtype)


def weighted_mean(values: Tensor, weight: Tree, call: str = "loss") -> Tensor:
    """Σ wᵢ vᵢ / Σ wᵢ over examples, `[example]`, `[example]` -> `[]`: how a loss heeds `Examples.weight`.

    `()` weighs all alike; a value that is already a mean passes through.

        >>> import torch
        >>> import fmeta
        >>> fmeta.weighted_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor(1.5000)

    Raises InputError for values that are no tensor of floating-point numbers, or of another shape; where weights meet a
    loss that has averaged already; for weights below 0 or NaN, where they can be looked at.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(
            f"{call}: got {came}; expected a floating-point tensor, one value per example; compute it from the "
            "prediction, or convert it with .float()"
        )
    if values.ndim == 0:
        if isinstance(weight, Tensor):
            raise InputError(
                f"{call}: got a scalar together with example weights; expected one value per example; "
                "use fmeta.mse, fmeta.cross_entropy or a loss with reduction='none'"
            )
        return values
    if values.ndim != 1:
        raise InputError(f"{call}: got shape {list(values.shape)}; expected [example] or a scalar; average the rest")
    if not isinstance(weight, Tensor):
        return values.mean()
    if weight.shape != values.shape:
        raise InputError(
            f"{call}: weights of shape {list(weight.shape)} for {len(values)} examples; expected [{len(values)}]"
        )
    if not hidden(weight) and not bool(torch.func.debug_unwrap(weight).ge(0).all()):
        raise InputError(f"{call}: example weights below 0 or NaN; expected weights >= 0, of which 0 marks padding")
    return (weight * values).sum() / weight.sum()
