"""Layers as functions of a flat dict of parameters, named `layer.weight` and `layer.bias`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import InputError, Model, Parts, Tree, fold, uniform
from fmeta.operators._pool import quarters

Params = dict[str, Tensor]


def init_layer(key: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Params:
    """Weight `shape` and bias `[shape[0]]`, uniform in ±1/√fan_in: torch's default for these layers."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": uniform(fold(key, 0), shape, -bound, bound, dtype),
        f"{name}.bias": uniform(fold(key, 1), shape[:1], -bound, bound, dtype),
    }


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def with_linear_head(init: Callable[[Tensor], Params], trunk: Callable[[Params, Tree], Tensor]) -> Model:
    """A network whose last layer is linear and called `head`, on the features that the trunk gives."""

    def head(params: Params, features: Tensor) -> Tensor:
        return linear(params, "head", features)

    return Model(init, lambda params, x: head(params, trunk(params, x)), parts=Parts(trunk, head, "head.*"))


def init_film(key: Tensor, name: str, width: int, embedding: int, dtype: torch.dtype) -> Params:
    """Small and random: an encoder behind a modulation of 0 would have no gradient."""
    params = init_layer(key, name, (2 * width, embedding), dtype)
    return params | {f"{name}.bias": torch.zeros_like(params[f"{name}.bias"])}


def modulate(params: Params, name: str, x: Tensor, embedding: Tensor) -> Tensor:
    """x·(1 + γ) + β by channel, γ and β linear in the embedding (Perez et al. 2018)."""
    gamma, beta = (v.view(-1, *(1 for _ in x.shape[2:])) for v in linear(params, name, embedding).chunk(2))
    return x * (1.0 + gamma) + beta


def conv3x3(params: Params, name: str, x: Tensor, stride: int = 1, bias: bool = True) -> Tensor:
    b = params[f"{name}.bias"] if bias else None
    return F.conv2d(x, params[f"{name}.weight"], b, stride=stride, padding=1)


def check_image(call: str, x: Tensor, channels: int, size: int) -> None:
    if x.ndim != 4 or x.shape[1:] != (channels, size, size):
        raise InputError(
            f"{call}: x has shape {list(x.shape)}; expected [example, {channels}, {size}, {size}]; "
            "set channels= and size=, or resize the images"
        )


def avg_pool2x2(x: Tensor) -> Tensor:
    a, b, c, d = quarters(x)
    return (a + b + c + d) * 0.25
