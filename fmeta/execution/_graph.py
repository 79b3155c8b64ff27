"""One graph of a function: traced through `torch.func` on fake tensors, then compiled by a backend of torch.compile.

A step is a pure function of trees of tensors, so running it once on tensors without data shows all it will ever do:
Python, vmap and grad are gone from the graph, as in JAX. Dynamo, which reads the bytecode instead, takes several times
as long for these functions, and then a tenth of a millisecond at every call to see that nothing it read has changed.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optree
import torch
import torch._inductor
from torch import Tensor
from torch._dynamo import lookup_backend
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fmeta.execution._straighten import straighten

Backend = str | Callable[..., Any]
_FIT = (Tensor, int, float, complex, bool, str, bytes, types.NoneType, torch.dtype, torch.device)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure, in a tenth of the time of torch's own."""
    return optree.tree_flatten(tree, none_is_leaf=True)


class Unfit(Exception):
    """What a call hands over, or gets back, cannot be part of a graph."""


def compile_graph(
    function: Callable[..., Any], leaves: Sequence[Any], structure: Any, backend: Backend
) -> Callable[[Sequence[Any]], Any]:
    """`function(*args, **keywords)` as a function of the leaves alone, for all leaves of these kinds.

    Args:
        function: called once, on fake tensors.
        leaves: of `(args, keywords)`. Those that are no tensors count as constants, as does all that `function` reads
            besides.
        structure: of `(args, keywords)`, from `flatten`.
        backend: of torch.compile.

    Raises:
        Unfit: a leaf that is neither a tensor nor a plain value; a result that requires grad.
        Exception: whatever tracing and compiling raise.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    # each its own: of one tensor in two places the trace would make one input, for all later calls too
    tensors = [leaves[i].detach().requires_grad_(leaves[i].requires_grad) for i in places]
    _refuse_odd("an argument", leaves)
    shape: Any = None  # of the result: its structure, and what is no tensor in it
    fixed: dict[int, Any] = {}

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal shape, fixed
        mine = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            mine[i] = tensor
        args, keywords = structure.unflatten(mine)
        found, shape = flatten(function(*args, **keywords))
        _refuse_odd("its result", found)
        fixed = {i: leaf for i, leaf in enumerate(found) if not isinstance(leaf, Tensor)}
        found = [leaf for leaf in found if isinstance(leaf, Tensor)]
        if any(leaf.requires_grad for leaf in found):
            raise Unfit("its result requires grad; expected a function that takes its derivatives inside")
        return found

    with _compiling():
        graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    straighten(graph)
    # the context is what keys torch's caches of graphs
    with torch.no_grad(), tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))):
        compiled = _compiler(backend, graph, tensors)(graph, tensors)

    def run(leaves: Sequence[Any]) -> Any:
        found = compiled(*[leaves[i] for i in places])
        if fixed:
            rest = iter(found)
            found = [fixed[i] if i in fixed else next(rest) for i in range(shape.num_leaves)]
        return shape.unflatten(found)

    return run


def _refuse_odd(whose: str, leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, _FIT):
            raise Unfit(
                f"{whose} holds a {type(leaf).__name__}; expected tensors and plain values in dicts, lists and tuples"
            )


@contextmanager
def _compiling() -> Iterator[None]:
    """What runs within sees `torch.compiler.is_compiling()`."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _compiler(backend: Backend, graph: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    if backend != "inductor":
        return lookup_backend(backend)
    # one C++ program calls small kernels without a detour through Python; where large operators take the time anyway,
    # a file for each kernel compiles on all cores
    large = any(node.target is torch.ops.fmeta.convolve.default for node in graph.graph.nodes)
    small = not large and not any(t.is_cuda for t in tensors)
    return functools.partial(torch._inductor.compile, options={"cpp_wrapper": small})
