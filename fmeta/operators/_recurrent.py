"""Recurrent layers in plain operations, with the arguments of torch's kernels, which no vmap can batch.

    RNN   h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with ReLU
    GRU   r, z = σ(…), σ(…);  n = tanh(W_in x + b_in + r (W_hn h + b_hn));  h' = (1 − z) n + z h
    LSTM  i, f, g, o = σ, σ, tanh, σ of (W_ih x + b_ih + W_hh h + b_hh);  c' = f c + i g;  h' = o tanh(c') or W_hr of it

The layouts of gates and weights are those of `torch.nn.LSTM` and its kin
(https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import InputError

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
# the input's part of the gates `[example, gate·hidden]`, the state, the recurrent weights -> the next state
Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]


def _rnn(
    activation: Callable[[Tensor], Tensor], gates: Tensor, state: State, weights: Sequence[Tensor | None]
) -> State:
    return (activation(gates + _linear(state[0], weights)),)


def _gru(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    (h,) = state
    reset, update, new = gates.chunk(3, -1)
    of_reset, of_update, of_new = _linear(h, weights).chunk(3, -1)
    keep = torch.sigmoid(update + of_update)
    new = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
    return (new + keep * (h - new),)


def _lstm(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    h, c = state
    enter, forget, new, leave = (gates + _linear(h, weights)).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
    h = torch.sigmoid(leave) * torch.tanh(c)
    return (h if len(weights) < 3 else F.linear(h, weights[2]), c)  # type: ignore[arg-type]


def _linear(x: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    return F.linear(x, weights[0], weights[1])  # type: ignore[arg-type]


_tanh, _relu = functools.partial(_rnn, torch.tanh), functools.partial(_rnn, torch.relu)


def _layers(
    cell: Cell,
    of_state: int,
    input: Tensor,
    hx: Any,
    params: Any,
    has_biases: Any,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    drop: Callable[[Tensor, float], Tensor],
) -> State:
    """`torch.lstm` and its kin: the outputs, and the last state of each layer and direction, stacked."""
    if isinstance(has_biases, list | tuple):  # the overload of packed sequences has one argument more in front
        raise InputError(
            "a recurrent layer got a PackedSequence, whose shape depends on the lengths; expected a padded tensor; "
            "read the output at the last place of each sequence, with gather"
        )
    states = tuple(hx) if of_state == 2 else (hx,)
    x = input.transpose(0, 1) if batch_first else input
    directions, of_weights = 1 + bidirectional, len(params) // (num_layers * (1 + bidirectional))
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            w_in, w_state, *rest = params[place * of_weights : (place + 1) * of_weights]
            b_in, b_state = rest[:2] if has_biases else (None, None)
            recurrent = [w_state, b_state, *(rest[2:] if has_biases else rest)]
            state, gates, seen = tuple(s[place] for s in states), F.linear(x, w_in, b_in), []
            for t in range(len(x)) if direction == 0 else reversed(range(len(x))):
                state = cell(gates[t], state, recurrent)
                seen.append(state[0])
            outputs.append(torch.stack(seen if direction == 0 else seen[::-1]))
            last.append(state)
        x = torch.cat(outputs, -1)
        if train and dropout > 0 and layer < num_layers - 1:
            x = drop(x, dropout)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(s) for s in zip(*last, strict=True)))


def _one_step(
    cell: Cell,
    of_state: int,
    input: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """`torch.lstm_cell` and its kin."""
    state = cell(F.linear(input, w_ih, b_ih), tuple(hx) if of_state == 2 else (hx,), [w_hh, b_hh])
    return state if of_state == 2 else state[0]


_CELLS: dict[str, tuple[Cell, int]] = {
    "rnn_tanh": (_tanh, 1),
    "rnn_relu": (_relu, 1),
    "gru": (_gru, 1),
    "lstm": (_lstm, 2),
}
SEQUENCES = {name: functools.partial(_layers, *cell) for name, cell in _CELLS.items()}
CELLS = {f"{name}_cell": functools.partial(_one_step, *cell) for name, cell in _CELLS.items()}
