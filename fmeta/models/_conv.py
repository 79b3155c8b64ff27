"""The convolutional networks of the few-shot literature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fmeta.core import InputError, Model, fold
from fmeta.models._layers import (
    Params,
    avg_pool2x2,
    check_image,
    conv3x3,
    init_layer,
    linear,
    with_linear_head,
)
from fmeta.models._norms import Norm, Normalising, check_norm, init_norm, normalising, normalize, normalize_pooled
from fmeta.operators._pool import max_pool2x2

_POOLS = {"max": max_pool2x2, "avg": avg_pool2x2}
_MONOTONE = (torch.relu, torch.tanh, torch.sigmoid)  # these and max pooling change places


def conv4(
    ways: int | None,
    *,
    form: Literal["stride", "pool"] = "stride",
    width: int = 64,
    channels: int = 1,
    size: int = 28,
    norm: Norm = "batch",
    film: int | None = None,
    pool: Literal["max", "avg"] = "max",
    activation: Callable[[Tensor], Tensor] = torch.relu,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Four blocks of 3x3 convolution, norm and activation, then a linear head: `[example, channel, size, size]` ->
    `[example, way]`.

    Args:
        ways: outputs; None leaves the head away, for an encoder: `[example, feature]`.
        form: "stride": convolutions of stride 2 and the mean over what is left of the image, as in the code of Finn et
            al. 2017 for Omniglot. "pool": 2x2 pooling after each block, then flattened (Vinyals et al. 2016,
            https://arxiv.org/abs/1606.04080; Snell et al. 2017, https://arxiv.org/abs/1703.05175).
        width: channels of every block; 64 for Omniglot, 32 in MAML's mini-ImageNet.
        channels: of the input.
        size: height and width of the input; at least 16 for "pool".
        norm: whose statistics normalise an example.
            "batch": the batch's that it comes in, in training and in test (transductive, as MAML does).
            "support": the support set's, which stands beside the example (`fmeta.in_context`): no query sees another.
            "task": the support set's mixed with the example's own by a learned share α = σ(slope·|support| + offset):
            TaskNorm-I (Bronskill et al. 2020, https://arxiv.org/abs/2003.03284), in context as "support".
            "frozen": constants among the parameters, which `calibrate(params, x)` takes from data.
            "group": the example's own, in groups of 8 channels (Wu & He 2018, https://arxiv.org/abs/1803.08494).
            "none": nobody's.
        film: length of an embedding e that comes beside the input, `(x, e)`: every block's output, normalised, is
            scaled by 1 + γ and shifted by β, both linear in e (Perez et al. 2018, https://arxiv.org/abs/1709.07871).
        pool: "max" or "avg" (smooth, for gradient checks), for the form "pool".

    Parameters are `conv1.weight` … `norm4.bias`, `head.weight`, `head.bias`. Under "batch", which takes away what the
    bias of a convolution adds, and "frozen", those biases are not used and their gradient is 0.
    """
    check_norm("conv4", norm)
    if form not in ("stride", "pool") or pool not in _POOLS:
        raise InputError(f"conv4(form={form!r}, pool={pool!r}): expected form 'stride' or 'pool', pool 'max' or 'avg'")
    if form == "pool" and size < 16:
        raise InputError(f"conv4(form='pool', size={size}): four poolings leave nothing; expected size >= 16")
    features = width if form == "stride" else width * (size // 16) ** 2

    def init(key: Tensor) -> Params:
        params: Params = {}
        for i in range(1, 5):
            params |= init_layer(fold(key, i), f"conv{i}", (width, channels if i == 1 else width, 3, 3), dtype)
            params |= init_norm(fold(key, 10 + i), f"norm{i}", width, dtype, norm, film)
        return params if ways is None else params | init_layer(fold(key, 5), "head", (ways, features), dtype)

    def encode(params: Params, x: Tensor, how: Normalising) -> Tensor:
        check_image("conv4", x, channels, size)
        early = form == "pool" and pool == "max" and activation in _MONOTONE
        bias, stride = how.policy not in ("batch", "frozen"), 2 if form == "stride" else 1
        for i in range(1, 5):
            x = conv3x3(params, f"conv{i}", x, stride, bias)
            if early and how.policy == "batch" and how.embedding is None and how.seen is None:
                x = activation(normalize_pooled(params, f"norm{i}", x))
                continue
            x = activation(normalize(params, f"norm{i}", x, how))
            if form == "pool":
                x = _POOLS[pool](x)
        return x.mean((-2, -1)) if form == "stride" else x.flatten(1)

    return normalising("conv4", init, encode, ways is not None, norm, film)


def conv2(
    ways: int | None,
    *,
    channels: int = 1,
    size: int = 28,
    pool: Literal["max", "avg"] = "max",
    activation: Callable[[Tensor], Tensor] = torch.relu,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """The small network of textbooks: two blocks of 3x3 convolution (32, 64), activation and 2x2 pooling, a fully
    connected layer of 128, a linear head: `[example, channel, size, size]` -> `[example, way]` (`[example, 128]`
    without the head, where `ways` is None).

    Parameters are `conv1.weight` … `hidden.bias`, `head.weight`, `head.bias`.
    """
    if size < 4 or pool not in _POOLS:
        raise InputError(f"conv2(size={size}, pool={pool!r}): expected size >= 4 and pool 'max' or 'avg'")
    shapes = {
        "conv1": (32, channels, 3, 3),
        "conv2": (64, 32, 3, 3),
        "hidden": (128, 64 * (size // 4) ** 2),
    } | ({} if ways is None else {"head": (ways, 128)})

    def init(key: Tensor) -> Params:
        params: Params = {}
        for i, (name, shape) in enumerate(shapes.items()):
            params |= init_layer(fold(key, i), name, shape, dtype)
        return params

    def trunk(params: Params, x: Tensor) -> Tensor:
        check_image("conv2", x, channels, size)
        for name in ("conv1", "conv2"):
            x = _POOLS[pool](activation(conv3x3(params, name, x)))
        return activation(linear(params, "hidden", x.flatten(1)))

    return Model(init, trunk) if ways is None else with_linear_head(init, trunk)
