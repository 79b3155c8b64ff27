"""Normalisation written out, and the operators that PyTorch differentiates wrongly or not at all.

In torch 2.11 to 2.13 the second derivative of `layer_norm`, `batch_norm` and `instance_norm` is silently wrong where
`torch.func.grad` surrounds `vmap` (as in a meta-gradient over tasks): inside vmap the backward is taken apart into
formulas that read the saved mean and scale, whose own derivatives are lost. Fused attention has no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def normalise(x: Tensor, axes: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x − mean)/√(var + eps)·weight + bias, mean and (biased) variance over `axes`."""
    centred = x - x.mean(axes, keepdim=True)
    factor = ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()
    y = centred * (factor if weight is None else factor * weight)
    return y if bias is None else y + bias


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Batch norm with the statistics of the present batch, `[example, channel, ...]`.

    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """
    return normalise(x, [0, *range(2, x.ndim)], _by_channel(weight, x), _by_channel(bias, x), eps)


class ExactOperators(TorchFunctionMode):
    """Within this context the operators above are replaced by formulas whose second derivative is right."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return normalise(input, list(range(-len(normalized_shape), 0)), weight, bias, eps)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None or running_var is not None or not training:
        # running statistics: torch's own, which refuses to update them under vmap
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return batch_norm(input, weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None or running_var is not None or not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return normalise(input, list(range(2, input.ndim)), _by_channel(weight, input), _by_channel(bias, input), eps)


def _unfused(attention: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(*args, **keywords)

    return call


def _by_channel(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.view((-1,) + (1,) * (x.ndim - 2))


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.scaled_dot_product_attention: _unfused(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _unfused(F.multi_head_attention_forward),  # a mode does not reach inside it
}
