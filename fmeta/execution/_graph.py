"""One graph of a function: traced through `torch.func` on fake tensors, then compiled by a backend of torch.compile.

A step is a pure function of trees of tensors, so running it once on tensors without data shows all it will ever do:
Python, vmap and grad are gone from the graph, as in JAX. Dynamo, which reads the bytecode instead, takes several times
as long for these functions, and then a tenth of a millisecond at every call to see that nothing it read has changed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fmeta.core._torch import named_backend, trace
from fmeta.core.tree import tree_flatten
from fmeta.execution._transposes import without_transposed_products

Backend = str | Callable[..., Any]
_FIT = (Tensor, int, float, complex, bool, str, bytes, types.NoneType, torch.dtype, torch.device)


class Unfit(Exception):
    """What a call hands over, or gets back, cannot be part of a graph."""


def compile_graph(
    function: Callable[..., Any],
    leaves: Sequence[Any],
    structure: Any,
    backend: Backend,
    traced: Callable[[int], None] = lambda operations: None,
) -> Callable[[Sequence[Any]], Any]:
    """`function(*args, **keywords)` as a function of the leaves alone, for all leaves of these kinds.

    Args:
        function: called once, on fake tensors.
        leaves: of `(args, keywords)`. Those that are no tensors count as constants, as does all that `function` reads
            besides.
        structure: of `(args, keywords)`, from `tree_flatten`.
        backend: of torch.compile.
        traced: told how many operations the graph has, before the backend begins.

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
        found, shape = tree_flatten(function(*args, **keywords))
        _refuse_odd("its result", found)
        fixed = {i: leaf for i, leaf in enumerate(found) if not isinstance(leaf, Tensor)}
        found = [leaf for leaf in found if isinstance(leaf, Tensor)]
        if any(leaf.requires_grad for leaf in found):
            raise Unfit("its result requires grad; expected a function that takes its derivatives inside")
        return found

    graph = without_transposed_products(trace(flat, tensors))
    traced(len(graph.graph.nodes))
    # one C++ program calls small kernels without a detour through Python; where large operators take the time anyway,
    # a file for each kernel compiles on all cores
    large = any(node.target is torch.ops.fmeta.convolve.default for node in graph.graph.nodes)
    compiled = named_backend(backend, graph, tensors, not large and not any(t.is_cuda for t in tensors))

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
