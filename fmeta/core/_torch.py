"""The private names of torch, each behind a name of ours: what to look at when a new torch comes.

Those that the compiler needs are imported when they are used: they take as long to import as torch itself.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as without_levels
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of axes
from torch.nn.modules.batchnorm import _NormBase as RunningNorm  # batch and instance norms
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNorm
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._device import DeviceContext as DefaultDevice
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode

__all__ = [
    "LEVEL_EDGES", "BatchNorm", "DispatchMode", "RunningNorm", "SpectralNorm", "autocast_is_on", "compiled_by_torch",
    "compiling", "copy_all", "default_device", "fake_mode", "fast_bfloat16", "first_of_batch", "function_modes",
    "is_batched", "is_fake", "level_depth", "mark_compiled", "named_backend", "opened", "pop_levels", "silent_fakes",
    "spellings", "trace", "watched", "without_levels",
]  # fmt: skip

# ---- tensors without data, dispatch --------------------------------------------------------------


def is_fake(t: Tensor) -> bool:
    """Whether a tensor has no data, because what runs is a trace or an estimate."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(torch.func.debug_unwrap(t), FakeTensor)


def fake_mode() -> Any:
    """Within it operations make tensors without data; `from_tensor` makes one like a real one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)  # what a function holds, such as data


@contextlib.contextmanager
def silent_fakes() -> Iterator[None]:
    """Within it an operation that fails on tensors without data raises its error and logs nothing."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def watched() -> bool:
    """Whether someone outside must see every operation: a trace, a transform of torch.func, forward mode, a mode."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or (
            torch._C._len_torch_function_stack() > 0 and not all(isinstance(m, DefaultDevice) for m in function_modes())
        )
    )


def default_device() -> torch.device | None:
    """Where tensors are made, or None where nobody has said so."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else None


def autocast_is_on() -> bool:
    return torch._C._is_any_autocast_enabled()


def copy_all(into: list[Tensor], values: list[Tensor]) -> None:
    """All values into the tensors that are there, in few launches."""
    torch._foreach_copy_(into, values)


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; software can anywhere, many times slower than float32."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() or torch.backends.cpu.get_cpu_capability().startswith("SVE")


# ---- the names of an operator --------------------------------------------------------------------


def spellings(name: str) -> list[Callable[..., Any]]:
    """All callables that run the operator `torch.<name>` with its arguments: torch's, autograd's, each overload's."""
    places = (torch, torch._C._nn, Tensor, torch.ops.aten)
    found = [getattr(place, name) for place in places if hasattr(place, name)]
    packets = [each for each in found if isinstance(each, torch._ops.OpOverloadPacket)]
    return found + [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


@functools.cache
def opened(function: FunctionType) -> Callable[..., Any]:
    """A function of torch.nn.functional whose operations a function mode sees one by one, instead of the whole."""
    unseen = {name: lambda *_: False for name in vars(F) if name.startswith("has_torch_function")}
    inside = FunctionType(
        function.__code__, {**vars(F), **unseen}, function.__name__, function.__defaults__, function.__closure__
    )
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


# ---- the levels of torch.func --------------------------------------------------------------------


def is_batched(t: Tensor) -> bool:
    """Whether the vmap that is innermost now has `t` among what differs by task."""
    return _functorch.is_batchedtensor(t)


def first_of_batch(t: Tensor) -> Tensor:
    """The values that a tensor has for the first element of every vmap around, free of all transforms."""
    while _functorch.is_functorch_wrapped_tensor(t):
        axis = _functorch.maybe_get_bdim(t) if _functorch.is_batchedtensor(t) else None
        t = _functorch.get_unwrapped(t)
        t = t if axis is None or axis < 0 else t.select(axis, 0)
    return t.detach()


_POP: dict[Any, Callable[[], Any]] = {  # not torch's own function, which pops one too many in torch 2.11
    _functorch.TransformType.Vmap: _functorch._vmap_decrement_nesting,
    _functorch.TransformType.Grad: _functorch._grad_decrement_nesting,
    _functorch.TransformType.Jvp: _functorch._jvp_decrement_nesting,
    _functorch.TransformType.Functionalize: _functorch._func_decrement_nesting,
}
_MANAGER: Any = contextlib._GeneratorContextManager  # what torch.func pushes and pops its levels with
LEVEL_EDGES = (_MANAGER.__enter__.__code__, _MANAGER.__exit__.__code__)


def level_depth() -> int:
    """How many transforms of torch.func are around."""
    return _functorch.get_dynamic_layer_stack_depth()


def pop_levels(depth: int) -> None:
    """Takes off the levels that are left above `depth`."""
    while level_depth() > depth:
        _POP[_functorch.peek_interpreter_stack().key()]()


# ---- compiling -----------------------------------------------------------------------------------


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """What runs within sees `torch.compiler.is_compiling()`."""
    flags: Any = torch.compiler
    before, flags._is_compiling_flag = flags._is_compiling_flag, True
    try:
        yield
    finally:
        flags._is_compiling_flag = before


def trace(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
    """The graph of a function of tensors, torch.func and all, by running it on tensors without data."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with compiling():
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)


def named_backend(name: str | Callable[..., Any], graph: Any, tensors: list[Any], cpp_wrapper: bool) -> Any:
    """A graph from `trace`, compiled by a backend of torch.compile, in a context that keys torch's caches of graphs."""
    from torch._dynamo import lookup_backend
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as inductor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with torch.no_grad(), tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))):
        if name == "inductor":
            return inductor(graph, tensors, options={"cpp_wrapper": cpp_wrapper})
        return lookup_backend(name)(graph, tensors)


def mark_compiled(function: Any, original: Callable[..., Any]) -> None:
    """Marks a function as torch.compile marks what it has wrapped."""
    function._torchdynamo_orig_callable = original


def compiled_by_torch(value: Any) -> bool:
    """Whether torch.compile, or `fmeta.compile`, has wrapped a function or a module."""
    wrapped = isinstance(value, nn.Module) and type(value).__name__ == "OptimizedModule"
    return wrapped or hasattr(value, "_torchdynamo_orig_callable")
