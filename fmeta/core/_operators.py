"""The operators that run otherwise while tasks are batched: what PyTorch differentiates wrongly, or slowly.

Fused attention has no second derivative; norms have a wrong one (`_norm`); convolutions with a weight for every task
and the scatter of max pooling are where a convolutional meta-gradient spends its time (`_convolution`, `_pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fmeta.core._convolution import conv
from fmeta.core._norm import instance_norm, layer_norm, torch_batch_norm
from fmeta.core._pool import max_pool2x2


class TaskOperators(TorchFunctionMode):
    """Within this context the operators above are replaced by formulas whose second derivative is right."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _unfused(attention: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(*args, **keywords)

    return call


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    two = (2, (2, 2), [2, 2])
    plain = padding in (0, (0, 0), [0, 0]) and dilation in (1, (1, 1), [1, 1]) and not (ceil_mode or return_indices)
    if plain and kernel_size in two and stride in (None, *two):
        return max_pool2x2(input)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv3d: conv,
    F.max_pool2d: _max_pool2d,
    F.layer_norm: layer_norm,
    F.batch_norm: torch_batch_norm,
    F.instance_norm: instance_norm,
    F.scaled_dot_product_attention: _unfused(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _unfused(F.multi_head_attention_forward),  # a mode does not reach inside it
}
