"""`over_tasks`: the one place where the task axis enters, and what runs otherwise while tasks are batched.

Fused attention has no second derivative; norms have a wrong one (`_norm`); convolutions with a weight for every task
and the scatter of max pooling are where a convolutional meta-gradient spends its time (`_convolution`, `_pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fmeta.core._types import Tree
from fmeta.core.tree import tree_leaves
from fmeta.operators._convolution import conv
from fmeta.operators._norm import instance_norm, layer_norm, torch_batch_norm
from fmeta.operators._pool import max_pool2x2


def over_tasks(function: Callable[..., Any], shared: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """`function`, written for one task, over a batch of them: by `torch.func.vmap`, within `TaskOperators`.

        losses, metrics = over_tasks(learner.loss, shared=(1,))(fast, meta, query)

    Args:
        function: of trees of tensors; what it returns has tensors for leaves.
        shared: positions of the arguments that all tasks share. The leaves of every other argument have a leading
            `[task]` axis, as those of the result have. Randomness comes from keys; torch's generator is refused.
    """

    def batched(*args: Tree) -> Tree:
        in_dims = tuple(None if i in shared or not tree_leaves(a) else 0 for i, a in enumerate(args))
        with TaskOperators():
            return vmap(function, in_dims=in_dims, randomness="error")(*args)

    return batched


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
