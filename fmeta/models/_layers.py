"""Layers as functions of a flat dict of parameters, named `layer.weight` and `layer.bias`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import fold, uniform
from fmeta.core._norm import batch_norm, moments, rescale
from fmeta.core._pool import max_pool2x2, quarters

Params = dict[str, Tensor]
Norm = Literal["batch", "group", "none"]


def init_layer(key: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Params:
    """Weight `shape` and bias `[shape[0]]`, uniform in ±1/√fan_in: torch's default for these layers."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": uniform(fold(key, 0), shape, -bound, bound, dtype),
        f"{name}.bias": uniform(fold(key, 1), shape[:1], -bound, bound, dtype),
    }


def init_norm(key: Tensor, name: str, width: int, dtype: torch.dtype) -> Params:
    return {
        f"{name}.weight": torch.ones(width, dtype=dtype, device=key.device),
        f"{name}.bias": torch.zeros(width, dtype=dtype, device=key.device),
    }


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def conv3x3(params: Params, name: str, x: Tensor, stride: int = 1, bias: bool = True) -> Tensor:
    b = params[f"{name}.bias"] if bias else None
    return F.conv2d(x, params[f"{name}.weight"], b, stride=stride, padding=1)


def normalize(params: Params, name: str, x: Tensor, norm: Norm) -> Tensor:
    """Batch norm with the statistics of this batch, or group norm over groups of up to 8 channels."""
    if norm == "none":
        return x
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    if norm == "batch":
        return batch_norm(x, weight, bias)
    return F.group_norm(x, max(1, x.shape[1] // 8), weight, bias)


def normalize_pooled(params: Params, name: str, x: Tensor) -> Tensor:
    """2x2 max pooling of what `normalize(…, "batch")` gives, on a quarter of the values.

    a·x + b is monotone in x, so its maximum is a·max(x) + b, or a·min(x) + b where a < 0.
    """
    weight, bias = (params[f"{name}.{n}"].view(-1, 1, 1) for n in ("weight", "bias"))
    mean, variance = moments(x, [0, 2, 3])
    sign = torch.where(weight < 0, -1.0, 1.0).to(x.dtype)
    return rescale(sign * max_pool2x2(sign * x), mean, variance, weight, bias, 1e-5)


def avg_pool2x2(x: Tensor) -> Tensor:
    a, b, c, d = quarters(x)
    return (a + b + c + d) * 0.25
