"""ResNet-12, the deep backbone of the few-shot literature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import InputError, Model, fold
from fmeta.models._layers import Params, check_image, conv3x3, init_layer
from fmeta.models._norms import Norm, Normalising, check_norm, init_norm, normalising, normalize
from fmeta.operators._pool import max_pool2x2


def resnet12(
    ways: int | None,
    *,
    widths: Sequence[int] = (64, 160, 320, 640),
    channels: int = 3,
    size: int = 84,
    norm: Norm = "batch",
    film: int | None = None,
    activation: Callable[[Tensor], Tensor] = lambda x: F.leaky_relu(x, 0.1),
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Four residual blocks of three 3x3 convolutions, each with 2x2 max pooling, and the mean over what is left of the
    image: `[example, channel, size, size]` -> `[example, way]`.

    The network of Lee et al. 2019 (https://arxiv.org/abs/1904.03758) without DropBlock: 12.4 million parameters below
    the head. A block is max_pool(σ(n₃c₃σ(n₂c₂σ(n₁c₁x)) + n₀c₀x)), c₀ a 1x1 convolution, nᵢ norms, σ leaky ReLU of 0.1.

    Args:
        ways: outputs; None leaves the head away, for an encoder: `[example, widths[-1]]`.
        widths: channels of the blocks; (64, 128, 256, 512) is the other usual choice.
        channels: of the input.
        size: height and width of the input, at least 2 to the power of the number of blocks.
        norm: as in `conv4`.
        film: as in `conv4`, after every norm.

    Parameters are `block1.conv1.weight` … `block4.norm0.bias`, `head.weight`, `head.bias`; convolutions have no bias.
    """
    check_norm("resnet12", norm)
    if not widths or min(widths) < 1 or size < 2 ** len(widths):
        raise InputError(
            f"resnet12(widths={list(widths)}, size={size}): expected widths >= 1 and size >= {2 ** len(widths)}, "
            "because every block halves the image"
        )

    def init(key: Tensor) -> Params:
        params: Params = {}
        before = channels
        for i, width in enumerate(widths, 1):
            for j, shape in enumerate(((width, before, 1, 1), *((width, w, 3, 3) for w in (before, width, width)))):
                name = f"block{i}.conv{j}"
                params[f"{name}.weight"] = init_layer(fold(key, 4 * i + j), name, shape, dtype)[f"{name}.weight"]
                params |= init_norm(fold(key, 1000 + 4 * i + j), f"block{i}.norm{j}", width, dtype, norm, film)
            before = width
        return params if ways is None else params | init_layer(fold(key, 0), "head", (ways, before), dtype)

    def encode(params: Params, x: Tensor, how: Normalising) -> Tensor:
        check_image("resnet12", x, channels, size)
        for i in range(1, len(widths) + 1):
            y = x
            for j in (1, 2, 3):
                y = conv3x3(params, f"block{i}.conv{j}", y, bias=False)
                y = normalize(params, f"block{i}.norm{j}", y, how)
                y = activation(y) if j < 3 else y
            x = normalize(params, f"block{i}.norm0", F.conv2d(x, params[f"block{i}.conv0.weight"]), how)
            x = max_pool2x2(activation(x + y))
        return x.mean((-2, -1))

    return normalising("resnet12", init, encode, ways is not None, norm, film)
