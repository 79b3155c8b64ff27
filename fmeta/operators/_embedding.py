"""Look-up in a table of rows, with a table for every task.

Under vmap torch makes one table of those of all tasks, and what its backward kernel knows by the number of a row, such
as which row is padding, goes to the first task alone. Here it is written into the forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core import InputError


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # says how the gradient is kept, not what it is
) -> Tensor:
    """The rows `weight[input]`, with the arguments of `torch.nn.functional.embedding`.

    No derivative reaches the row `padding_idx`. Raises InputError for `max_norm` and `scale_grad_by_freq`.
    """
    refuse_options("embedding", max_norm, scale_grad_by_freq)
    rows = _rows(weight, input)
    padding = _padding(input, weight, padding_idx)
    return rows if padding is None else torch.where(padding[..., None], rows.detach(), rows)


def torch_embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The same with the arguments of `torch.embedding`, where a negative `padding_idx` is none."""
    return embedding(indices, weight, padding_idx if padding_idx >= 0 else None, None, 2.0, scale_grad_by_freq)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the rows of each bag, `[bag, place]` -> `[bag, feature]`, padding left out; an empty
    bag is 0. With the arguments of `torch.nn.functional.embedding_bag`, whose kernel torch cannot differentiate twice.
    """
    refuse_options("embedding_bag", max_norm, scale_grad_by_freq)
    if input.ndim != 2 or offsets is not None:
        raise InputError(
            f"embedding_bag: input {list(input.shape)} with offsets, whose bags differ in size by their values; "
            "expected bags of one size, [bag, place], with padding_idx where there are fewer"
        )
    if mode not in ("sum", "mean", "max"):
        raise InputError(f"embedding_bag(mode={mode!r}): expected 'sum', 'mean' or 'max'")
    if per_sample_weights is not None and mode != "sum":
        raise InputError(f"embedding_bag(mode={mode!r}, per_sample_weights=…): expected mode='sum', as torch has it")
    rows = _rows(weight, input)
    padding = _padding(input, weight, padding_idx)
    kept = torch.ones_like(input, dtype=torch.bool) if padding is None else ~padding
    if mode == "max":
        most = torch.where(kept[..., None], rows, -torch.inf).amax(1)
        return torch.where(kept.any(1)[:, None], most, 0.0)
    share = kept.to(rows.dtype)
    if per_sample_weights is not None:
        share = share * per_sample_weights
    if mode == "mean":
        share = share / kept.sum(1, keepdim=True).clamp_min(1)
    return (share[..., None] * rows).sum(1)


def refuse_options(call: str, max_norm: float | None, scale_grad_by_freq: bool) -> None:
    """Raises InputError for what a pure function cannot do, and for what torch's backward kernel alone knows."""
    if max_norm is not None:
        raise InputError(
            f"{call}(max_norm={max_norm}): it shortens the rows of the table in place, which a pure function cannot; "
            "expected None; shorten the rows that were looked up instead"
        )
    if scale_grad_by_freq:
        raise InputError(
            f"{call}(scale_grad_by_freq=True): it scales the gradient alone, so the meta-gradient would be of no "
            "function; expected False; weigh the loss instead"
        )


def _rows(weight: Tensor, input: Tensor) -> Tensor:
    """By index_select, whose derivatives over tasks cost a fraction of those of `weight[input]`, and which reads no row
    of another task where a number is out of range."""
    return weight.index_select(0, input.reshape(-1)).reshape(*input.shape, weight.shape[-1])


def _padding(input: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor | None:
    """Which places hold the padding row."""
    if padding_idx is None:
        return None
    if not -len(weight) <= padding_idx < len(weight):
        raise InputError(
            f"embedding(padding_idx={padding_idx}): the table has {len(weight)} rows; expected one of them"
        )
    return input == (padding_idx if padding_idx >= 0 else len(weight) + padding_idx)
