"""Attention written out: torch's fused kernels have no second derivative, and draw their own dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmeta.core import InputError
from fmeta.operators._norm import at_least_float32


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    dropout: Callable[[Tensor, float], Tensor],
) -> Tensor:
    """softmax(query·keyᵀ·scale + mask)·value, `[..., place, feature]`, with the arguments of torch's
    `scaled_dot_product_attention`; a place that may look nowhere gets 0.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """
    if enable_gqa:
        repeats, rest = divmod(query.shape[-3], key.shape[-3])
        if rest or not repeats:
            raise InputError(
                f"scaled_dot_product_attention(enable_gqa=True): {query.shape[-3]} heads of queries for "
                f"{key.shape[-3]} of keys; expected a multiple of them"
            )
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    dtype = query.dtype
    query, key, value = (at_least_float32(t) for t in (query, key, value))  # as torch's kernels do
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = torch.where(attn_mask, scores, -math.inf)
        elif not attn_mask.is_floating_point():
            raise InputError(
                f"scaled_dot_product_attention: attn_mask is {attn_mask.dtype}; expected bool, or numbers to be added "
                "to the scores; use mask.bool()"
            )
        else:
            scores = scores + attn_mask.to(scores.dtype)
        nowhere = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.where(nowhere, 0.0, torch.where(nowhere, 0.0, scores).softmax(-1))
    else:
        weights = scores.softmax(-1)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p)
    return (weights @ value).to(dtype)
