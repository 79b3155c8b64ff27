"""LSTM cells in plain tensor operations: fused ones have no second derivative on CUDA, and vmap cannot batch them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._random import fold, uniform

LSTM = dict[str, Tensor]
State = tuple[Tensor, Tensor]  # hidden, cell: [..., hidden]


def init_lstm(key: Tensor, inputs: int, hidden: int, dtype: torch.dtype, recurrent: int | None = None) -> LSTM:
    """Uniform within ±1/√hidden, as torch.nn.LSTM; `recurrent` is the length of what comes back, if not `hidden`."""
    bound = hidden**-0.5
    shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, recurrent or hidden), "bias": (4 * hidden,)}
    return {n: uniform(fold(key, i), s, -bound, bound, dtype) for i, (n, s) in enumerate(shapes.items())}


def lstm_step(params: LSTM, x: Tensor, recurrent: Tensor, cell: Tensor) -> State:
    """i, f, g, o = W·x + U·recurrent + b;  c ← σ(f)c + σ(i)tanh(g);  h = σ(o)tanh(c). Hochreiter & Schmidhuber 1997."""
    gates = F.linear(x, params["weight_ih"], params["bias"]) + F.linear(recurrent, params["weight_hh"])
    i, f, g, o = gates.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell
