"""How a convolution over a batch of tasks is computed: three lowerings, and which of them is the fastest here.

`kind` says which of the three bilinear operators of `_convolution` it is. Operands are `[task, example, channel, ...]`
(a weight `[task, out, channel, ...]`); results need no particular layout.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import InputError, nearest
from fmeta.operators._choices import changes, fastest

OUTPUT, INPUT, WEIGHT = 0, 1, 2


def channels_last(x: Tensor, axes: int) -> Tensor:
    """`[..., channel, *axes]` as it is, with the channels last in memory."""
    last = x.movedim(-1 - axes, -1)
    # no view of what is right already: the compiler would fix its layout to the standard one first
    return x if last.is_contiguous() else last.contiguous().movedim(-1, -1 - axes)


def result_shape(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Of the result, with the channels last for examples."""
    stride, padding, dilation, (groups,), size, kernel = geometry
    axes = len(size)
    tasks = tuple(map(max, a.shape[: -2 - axes], b.shape[: -2 - axes]))
    examples, channels = a.shape[-2 - axes : -axes]
    if kind == WEIGHT:
        return (*tasks, b.shape[-1 - axes], channels // groups, *kernel)
    if kind == INPUT:
        return (*tasks, examples, *size, b.shape[-1 - axes] * groups)
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    return (*tasks, examples, *out, b.shape[-2 - axes])


def _last(x: Tensor) -> Tensor:
    """`[task, example, ..., channel]`, contiguous."""
    return x.movedim(2, -1).contiguous()


def _one(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]], groups: int) -> Tensor:
    """torch's own, without a task axis."""
    stride, padding, dilation, _, size, kernel = geometry
    none = [0] * len(size)
    if kind == OUTPUT:
        return torch.ops.aten.convolution(a, b, None, stride, padding, dilation, False, none, groups)
    if kind == INPUT:  # the values of the third operand do not matter
        g, w = a, b
        x = g.new_empty(g.shape[0], *size, w.shape[1] * groups).movedim(-1, 1)
    else:
        x, g = a, b
        w = g.new_empty(g.shape[1], x.shape[1] // groups, *kernel)
    mask = [kind == INPUT, kind == WEIGHT, False]
    return torch.ops.aten.convolution_backward(g, x, w, None, stride, padding, dilation, False, none, groups, mask)[
        1 if kind == WEIGHT else 0
    ]


def _loop(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    a, b = (channels_last(t, len(geometry[0])) for t in (a, b))
    parts = [_one(kind, u, v, geometry, geometry[3][0]) for u, v in zip(a, b, strict=True)]
    if kind == WEIGHT or len(parts) == 1:
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)
    return torch.stack([p.movedim(1, -1) for p in parts]).movedim(-1, 2)


def _grouped(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    tasks, groups = a.shape[0], a.shape[0] * geometry[3][0]
    beside = lambda x: x.transpose(0, 1).flatten(1, 2)  # noqa: E731
    below = lambda x: x.flatten(0, 1)  # noqa: E731
    a, b = beside(a), beside(b) if kind == WEIGHT else below(b)
    y = _one(kind, a, b, geometry, groups)
    return y.unflatten(0, (tasks, -1)) if kind == WEIGHT else y.unflatten(1, (tasks, -1)).transpose(0, 1)


def _taps(x: Tensor, geometry: Sequence[Sequence[int]], out: Sequence[int]) -> list[Tensor]:
    """For every place of the kernel, what it sees of a padded `[task, example, ..., channel]`: views."""
    stride, _, dilation, _, _, kernel = geometry
    views = []
    for place in itertools.product(*map(range, kernel)):
        view = x
        for axis, (k, d, s, n) in enumerate(zip(place, dilation, stride, out, strict=True), 2):
            view = view.narrow(axis, k * d, s * (n - 1) + 1)
            if s > 1:
                view = view[(slice(None),) * axis + (slice(None, None, s),)]
        views.append(view)
    return views


def _padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    sides = [p for p in reversed(padding) for _ in range(2)]
    return F.pad(x, [0, 0, *sides]) if any(sides) else x


def _unfold(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    _, padding, _, _, size, _ = geometry
    tasks, count = a.shape[:2]
    if kind == WEIGHT:
        x, g = _last(a), _last(b)
        columns = _columns(x, geometry, g.shape[2:-1])
        w = torch.bmm(columns.mT, g.view(tasks, -1, g.shape[-1]))  # [task, place·channel, out]
        return (
            w.view(tasks, -1, x.shape[-1], g.shape[-1]).permute(0, 3, 2, 1).reshape(result_shape(kind, a, b, geometry))
        )
    w = b.flatten(3).permute(0, 3, 2, 1).flatten(1, 2)  # [task, place·channel, out]
    if kind == OUTPUT:
        shape = result_shape(kind, a, b, geometry)
        columns = _columns(_last(a), geometry, shape[2:-1])
        return torch.bmm(columns, w).view(shape).movedim(-1, 2)
    g = _last(a)
    columns = torch.bmm(g.view(tasks, -1, g.shape[-1]), w.mT).view(*g.shape[:-1], -1, b.shape[2])
    wide = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    x = g.new_zeros(tasks, count, *wide, b.shape[2])
    for i, view in enumerate(_taps(x, geometry, g.shape[2:-1])):
        view += columns[..., i, :]
    for axis, (p, n) in enumerate(zip(padding, size, strict=True), 2):
        x = x.narrow(axis, p, n)
    return x.movedim(-1, 2)


def _columns(x: Tensor, geometry: Sequence[Sequence[int]], out: Sequence[int]) -> Tensor:
    """`[task, example·place, place of the kernel·channel]`."""
    stride, padding, dilation, _, _, kernel = geometry
    x = _padded(x, padding)
    axes, tasks, channels = len(kernel), x.shape[0], x.shape[-1]
    steps = x.stride()[2:-1]
    places = [
        *(s * q for s, q in zip(stride, steps, strict=True)),
        *(d * q for d, q in zip(dilation, steps, strict=True)),
    ]
    view = x.as_strided((*x.shape[:2], *out, *kernel, channels), (*x.stride()[:2], *places, 1), x.storage_offset())
    if channels < 8:  # short runs of channels: keep runs of pixels instead
        last = range(2 + axes, 3 + 2 * axes)
        return view.permute(0, *last, *range(1, 2 + axes)).reshape(tasks, math.prod(kernel) * channels, -1).mT
    return view.reshape(tasks, -1, math.prod(kernel) * channels)


LOWERINGS: dict[str, Callable[..., Tensor]] = {"loop": _loop, "grouped": _grouped, "unfold": _unfold}


# ---- the choice --------------------------------------------------------------------------------

_switch: list[str] = ["auto"]
_SMALL = 1 << 22  # multiplications that are not worth a measurement
_LARGE = 1 << 28  # elements that are not worth unfolding


@contextlib.contextmanager
def convolution(lowering: str) -> Iterator[None]:
    """How convolutions with a weight for every task run in compiled code, within this context.

    "loop": one convolution after another. "grouped": one convolution with a group for every task. "unfold": one batched
    matrix product with the unfolded images. "auto", the default: for each shape the fastest on this machine, measured
    when it is first met.
    """
    if lowering not in ("auto", *LOWERINGS):
        raise InputError(f"convolution({lowering!r}): unknown lowering; {nearest(lowering, ('auto', *LOWERINGS))}")
    before, _switch[0] = _switch[0], lowering
    try:
        yield
    finally:
        _switch[0] = before


def chosen(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> str:
    facts = (_switch[0], changes(), kind, a.shape, b.shape, *map(tuple, geometry), a.dtype, a.device)
    known = _known.get(facts)
    if known is None:
        known = _known[facts] = _choose(kind, a, b, geometry)
    return known


_known: dict[Any, str] = {}  # asked for hundreds of times in a step


def _choose(kind: int, a: Tensor, b: Tensor, geometry: Sequence[Sequence[int]]) -> str:
    tasks, examples = a.shape[:2]
    *_, (groups,), size, kernel = geometry
    places, seen = math.prod(kernel), tasks * examples * math.prod(size)
    if _switch[0] != "auto" and (groups == 1 or _switch[0] != "unfold"):
        return _switch[0]
    if seen * places * a.shape[2] * b.shape[1 if kind == OUTPUT else 2] < _SMALL:
        return "grouped"
    names = ["loop"] + ["grouped"] * (tasks > 1)
    channels = b.shape[2] if kind != WEIGHT else a.shape[2]
    if groups == 1 and seen * places * channels < _LARGE:
        names.append("unfold")
    if a.is_cuda and torch.cuda.is_current_stream_capturing():
        return names[-1]  # nothing can be measured now
    question = f"convolve {kind} {tuple(a.shape)} {tuple(b.shape)} {tuple(map(tuple, geometry))} {a.dtype}"
    return fastest(question, {n: functools.partial(LOWERINGS[n], kind, a, b, geometry) for n in names}, a.device)
