"""Layers as functions of a flat dict of parameters, named `layer.weight` and `layer.bias`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import fold, uniform
from fmeta.core._norm import batch_norm

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


def conv3x3(params: Params, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride=stride, padding=1)


def normalize(params: Params, name: str, x: Tensor, norm: Norm) -> Tensor:
    """Batch norm with the statistics of this batch, or group norm over groups of up to 8 channels."""
    if norm == "none":
        return x
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    if norm == "batch":
        return batch_norm(x, weight, bias)
    return F.group_norm(x, max(1, x.shape[1] // 8), weight, bias)


def max_pool2x2(x: Tensor) -> Tensor:
    """2x2 max pooling as the maximum of four strided slices: its backward needs no scatter by index."""
    a, b, c, d = _quarters(x)
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))


def avg_pool2x2(x: Tensor) -> Tensor:
    a, b, c, d = _quarters(x)
    return (a + b + c + d) * 0.25


def _quarters(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x[
        ..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2
    ]  # an odd last row or column is dropped, as F.max_pool2d does
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
