"""2x2 max pooling whose derivatives of every order read and write along the channels.

The maximum is a choice of one in four, made once; what follows is linear, and its two maps are each other's derivative:
`_Pick` takes the chosen value of each block, `_Place` puts a value back where it was chosen. Of equal values the first
is chosen, as torch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def max_pool2x2(x: Tensor) -> Tensor:
    """`[..., channel, height, width]`; an odd last row or column is dropped."""
    a, b, c, d = quarters(x.detach())
    top, bottom = torch.maximum(a, b), torch.maximum(c, d)
    of_top, of_bottom = torch.where(_wins(b, a), 1.0, 0.0), torch.where(_wins(d, c), 3.0, 2.0)
    return _Pick.apply(x, torch.where(_wins(bottom, top), of_bottom, of_top).to(x.dtype))


def _wins(b: Tensor, a: Tensor) -> Tensor:
    return (b > a) | b.isnan()  # NaN is the greatest, as torch has it


def quarters(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four strided slices that hold the corners of every 2x2 block."""
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def _pick(x: Tensor, choice: Tensor) -> Tensor:
    a, b, c, d = quarters(x)
    return torch.where(choice < 2, torch.where(choice < 1, a, b), torch.where(choice < 3, c, d))


def _place(y: Tensor, choice: Tensor, size: tuple[int, int]) -> Tensor:
    """With the channels last in memory, and as one operation over the blocks instead of a scatter."""
    y, choice = y.movedim(-3, -1), choice.movedim(-3, -1)
    corner = torch.arange(4, dtype=y.dtype, device=y.device).view(2, 1, 2, 1)
    blocks = torch.where(choice[..., :, None, :, None, :] == corner, y[..., :, None, :, None, :], 0.0)
    x = blocks.flatten(-3, -2).flatten(-4, -3)
    if x.shape[-3:-1] != size:
        x = torch.nn.functional.pad(x, (0, 0, 0, size[1] - x.shape[-2], 0, size[0] - x.shape[-3]))
    return x.movedim(-1, -3)


def tasks_first(info: Any, dim: int | None, x: Tensor) -> Tensor:
    """With the batched axis in front; no view where it is there: the compiler fixes the layout of what it views."""
    if dim is None:
        return x.expand(info.batch_size, *x.shape)
    return x if dim == 0 else x.movedim(dim, 0)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, choice: Tensor) -> Tensor:
        return _pick(x, choice)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.size = tuple(inputs[0].shape[-2:])

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return _Place.apply(d, *ctx.saved_tensors, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, d: Tensor, _choice: None) -> Tensor:
        return _Pick.apply(d, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, choice: Tensor) -> tuple[Tensor, int]:
        return _Pick.apply(tasks_first(info, in_dims[0], x), tasks_first(info, in_dims[1], choice)), 0


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, choice: Tensor, size: tuple[int, int]) -> Tensor:
        return _place(y, choice, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return _Pick.apply(d, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, d: Tensor, _choice: None, _size: None) -> Tensor:
        return _Place.apply(d, *ctx.saved_tensors, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, y: Tensor, choice: Tensor, size: tuple[int, int]) -> tuple[Tensor, int]:
        return _Place.apply(tasks_first(info, in_dims[0], y), tasks_first(info, in_dims[1], choice), size), 0
