"""Batch normalisation with the statistics of the present batch."""

from __future__ import annotations

from torch import Tensor


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x − mean)/√(var + eps)·weight + bias over all axes but the second: `[example, channel, ...]`.

    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167. Written out because the second derivative of the fused
    kernel under vmap takes twice as long on a CPU.
    """
    axes = [0, *range(2, x.ndim)]
    channels = (-1,) + (1,) * (x.ndim - 2)
    centred = x - x.mean(axes, keepdim=True)
    factor = ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.view(channels)
    y = centred * factor
    return y if bias is None else y + bias.view(channels)
