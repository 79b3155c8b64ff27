"""Convolutions with a weight of their own for every task.

A convolution y = x ∗ w is bilinear, and so are its two derivatives. The three form a closed set: with
⟨y, g⟩ = ⟨x, I(g, w)⟩ = ⟨w, W(x, g)⟩,

    C(x, w) = x ∗ w        ∂x: I(d, w)    ∂w: W(x, d)
    I(g, w)  the input's   ∂g: C(d, w)    ∂w: W(d, g)
    W(x, g)  the weight's  ∂x: I(g, d)    ∂g: C(x, d)

so derivatives of every order are the same three operators. Each acts on a whole batch of tasks and has several
lowerings to what the device does well; results have the channels last in memory, so that norms and pooling run along
them. Eager code keeps torch's own (grouped) convolution: there a custom function costs more than it gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.operators._lowerings import INPUT, LOWERINGS, OUTPUT, WEIGHT, channels_last, chosen, result_shape
from fmeta.operators._pool import tasks_first

_TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv1d` … `conv3d` of one task: `[example, channel, ...]`, `[out, channel/groups, ...]`.

    Compiled it is the operator of this module.
    """
    axes = weight.ndim - 2
    if not torch.compiler.is_compiling():
        return _TORCH[axes](x, weight, bias, stride, padding, dilation, groups)
    if x.ndim == axes + 1:  # one example without an axis for it
        return conv(x.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if isinstance(padding, list):
            pairs = [(p // 2, p - p // 2) for p in padding]
            if any(a != b for a, b in pairs):
                x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
                padding = 0
            else:
                padding = [a for a, _ in pairs]
    size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    geometry = (stride, _each(padding, axes), dilation, (groups,), size, kernel)
    y = _Bilinear.apply(OUTPUT, x, weight, geometry)
    return y if bias is None else y + bias.view(-1, *(1 for _ in range(axes)))


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


class _Bilinear(torch.autograd.Function):
    """One of the three operators. A vmap puts an axis in front of both operands, of size 1 where one is shared."""

    @staticmethod
    def forward(kind: int, a: Tensor, b: Tensor, geometry: Any) -> Tensor:
        # where the compiler sees it, a change of layout costs little: what made the operand writes it so
        a = channels_last(a, len(geometry[0]))
        b = channels_last(b, len(geometry[0])) if kind == WEIGHT else b.contiguous()
        return torch.ops.fmeta.convolve(kind, a, b, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.kind, a, b, ctx.geometry = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        first, second = {
            OUTPUT: ((INPUT, d, b), (WEIGHT, a, d)),
            INPUT: ((OUTPUT, d, b), (WEIGHT, d, a)),
            WEIGHT: ((INPUT, b, d), (OUTPUT, a, d)),
        }[ctx.kind]
        _, of_a, of_b, _ = ctx.needs_input_grad
        return (
            None,
            _Bilinear.apply(*first, ctx.geometry).sum_to_size(a.shape) if of_a else None,
            _Bilinear.apply(*second, ctx.geometry).sum_to_size(b.shape) if of_b else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: int, a: Tensor, b: Tensor, geometry: Any) -> tuple[Tensor, int]:
        _, i, j, _ = in_dims
        a = a.unsqueeze(0) if i is None else tasks_first(info, i, a)
        b = b.unsqueeze(0) if j is None else tasks_first(info, j, b)
        return _Bilinear.apply(kind, a, b, geometry), 0

    @staticmethod
    def jvp(ctx: Any, _kind: None, da: Tensor | None, db: Tensor | None, _geometry: None) -> Tensor:
        a, b = ctx.saved_tensors
        parts = [_Bilinear.apply(ctx.kind, u, v, ctx.geometry) for u, v in ((da, b), (a, db)) if None not in (u, v)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


# ---- the operator ------------------------------------------------------------------------------


def _convolve(kind: int, a: Tensor, b: Tensor, *geometry: Sequence[int]) -> Tensor:
    shape, core = result_shape(kind, a, b, geometry), len(geometry[0]) + 2
    tasks = shape[:-core]
    if kind != WEIGHT and b.shape[:-core].numel() == 1:  # one weight for all tasks: more examples
        a, b = a.reshape(1, -1, *a.shape[1 - core :]), b.reshape(1, *b.shape[-core:])
    elif len(tasks) != 1 or a.shape[0] != b.shape[0]:
        a, b = (t.expand(*tasks, *t.shape[-core:]).reshape(-1, *t.shape[-core:]) for t in (a, b))
    y = LOWERINGS[chosen(kind, a, b, geometry)](kind, a, b, geometry)
    if kind == WEIGHT:
        return y.contiguous().view(shape)
    return y.movedim(2, -1).contiguous().view(shape).movedim(-1, 1 - core)


def _convolve_fake(kind: int, a: Tensor, b: Tensor, *geometry: Sequence[int]) -> Tensor:
    y = a.new_empty(result_shape(kind, a, b, geometry))
    return y if kind == WEIGHT else y.movedim(-1, -1 - len(geometry[0]))


_library = torch.library.Library("fmeta", "FRAGMENT")
_library.define(
    "convolve(int kind, Tensor a, Tensor b, int[] stride, int[] padding, int[] dilation, int[] groups, int[] size, "
    "int[] kernel) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)
_library.impl("convolve", _convolve, "CompositeExplicitAutograd")
torch.library.register_fake("fmeta::convolve", _convolve_fake, lib=_library)
