"""`over_tasks`: the one place where the task axis enters, and what runs otherwise while tasks are batched.

Fused attention has no second derivative; norms have a wrong one (`_norm`); tables of rows forget which row is padding
(`_embedding`); fused recurrent layers cannot be batched (`_recurrent`); convolutions with a weight for every task and
the scatter of max pooling are where a convolutional meta-gradient spends its time (`_convolution`, `_pool`).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fmeta.core import InputError
from fmeta.core._checks import check_labels
from fmeta.core._torch import function_modes, opened, spellings
from fmeta.core._types import Tree
from fmeta.core.tree import tree_leaves
from fmeta.operators import _attention, _embedding, _norm, _recurrent
from fmeta.operators._convolution import conv
from fmeta.operators._explain import explained
from fmeta.operators._linear import linear
from fmeta.operators._noise import DRAWN, Noise, dropout
from fmeta.operators._pool import max_pool2x2


def over_tasks(function: Callable[..., Any], shared: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """`function`, written for one task, over a batch of them: by `torch.func.vmap`, within `TaskOperators`.

        losses, metrics = over_tasks(learner.loss, shared=(1,))(fast, meta, query)

    Args:
        function: of trees of tensors; what it returns has tensors for leaves.
        shared: positions of the arguments that all tasks share. The leaves of every other argument have a leading
            `[task]` axis, as those of the result have. Randomness comes from keys; torch's generator is refused.

    Raises:
        InputError: what `function` does cannot be done over tasks, where the reason and its cure are known.
    """

    def batched(*args: Tree) -> Tree:
        in_dims = tuple(None if i in shared or not tree_leaves(a) else 0 for i, a in enumerate(args))
        with explained, TaskOperators():
            return vmap(function, in_dims=in_dims, randomness="error")(*args)

    return batched


class TaskOperators(TorchFunctionMode):
    """Within this context torch's operators above are replaced by formulas whose derivatives of every order are right,
    and with `noise` its random numbers by those of a key."""

    def __init__(self, noise: Noise | None = None) -> None:
        super().__init__()
        self.noise = noise

    def __enter__(self) -> TaskOperators:
        _stack().append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        _stack().pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced = _REPLACED.get(func)
        if replaced is not None:
            return replaced(*args, **(kwargs or {}))
        if func in _OPENED:
            with self:
                return opened(func)(*args, **(kwargs or {}))
        if self.noise is not None:
            drawn = DRAWN.get(func)
            if drawn is not None:
                return drawn(self.noise, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_active = threading.local()


def _stack() -> list[TaskOperators]:
    if not hasattr(_active, "modes"):
        _active.modes = []
    return _active.modes


@contextlib.contextmanager
def drawing(noise: Noise) -> Iterator[None]:
    """Within this context the operators are replaced, and every random number of torch is drawn from `noise`."""
    modes = _stack()
    if not modes or modes[-1] not in function_modes():  # torch takes a mode off while a function of its own runs
        with TaskOperators(noise):
            yield
        return
    mode = modes[-1]
    before, mode.noise = mode.noise, noise
    try:
        yield
    finally:
        mode.noise = before


def _dropped(x: Tensor, p: float) -> Tensor:
    """Dropout inside an operator that is replaced, by the noise there is."""
    modes = _stack()  # of this thread: autograd has threads of its own
    noise = modes[-1].noise if modes else None
    return F.dropout(x, p) if noise is None else dropout(noise, x, p)


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
    if plain and kernel_size in two and stride in (None, *two) and min(input.shape[-2:]) > 1:
        return max_pool2x2(input)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """torch's own has no second derivative."""
    return (input + 3.0).clamp(0.0, 6.0) / 6.0


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """torch's own looks at the values, which cannot be done for each task. A label out of range is an error in eager
    mode, and a row of zeros in a compiled function, which can raise none."""
    if num_classes < 1:
        raise InputError(
            "one_hot: without num_classes the shape of its result depends on the values of a tensor; expected "
            "F.one_hot(y, num_classes)"
        )
    check_labels("one_hot", input.flatten(), num_classes)
    return (input[..., None] == torch.arange(num_classes, device=input.device)).to(torch.int64)


def _refused(name: str, instead: str) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        raise InputError(f"torch's kernel {name} has no right derivative over tasks; expected {instead}")

    return call


_KERNELS: dict[str, Callable[..., Any]] = {  # by the name of torch's operator, whatever it is called by
    "layer_norm": _norm.layer_norm,
    "native_layer_norm": _norm.native_layer_norm,
    "batch_norm": _norm.torch_batch_norm,
    "native_batch_norm": _norm.native_batch_norm,
    "instance_norm": _norm.torch_instance_norm,
    "embedding": _embedding.torch_embedding,
    "embedding_bag": _refused("embedding_bag", "nn.EmbeddingBag or F.embedding_bag with bags of one size"),
    "scaled_dot_product_attention": functools.partial(_attention.attention, dropout=_dropped),
    **{name: functools.partial(call, drop=_dropped) for name, call in _recurrent.SEQUENCES.items()},
    **_recurrent.CELLS,
    "hardsigmoid": _hardsigmoid,
    "one_hot": _one_hot,
    **{
        name: _refused(name, "torch.batch_norm or F.batch_norm")
        for name in (
            "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional",
            "_batch_norm_impl_index", "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm",
            "miopen_batch_norm",
        )
    },
}  # fmt: skip

_REPLACED: dict[Any, Callable[..., Any]] = {
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv3d: conv,
    F.linear: linear,
    F.max_pool2d: _max_pool2d,
    F.hardsigmoid: _hardsigmoid,
    **{each: call for name, call in _KERNELS.items() for each in spellings(name)},
    F.layer_norm: _norm.layer_norm,
    F.batch_norm: _norm.functional_batch_norm,
    F.instance_norm: _norm.functional_instance_norm,
    F.embedding: _embedding.embedding,
    F.embedding_bag: _embedding.embedding_bag,
}

# functions in Python that call the operators above, or draw: a mode does not reach inside them by itself
_OPENED: frozenset[Any] = frozenset({
    F.multi_head_attention_forward, F.gumbel_softmax, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d,
    F.alpha_dropout, F.feature_alpha_dropout, F.rrelu, F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d_with_indices,
})  # fmt: skip
