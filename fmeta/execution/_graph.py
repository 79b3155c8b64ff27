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
from torch import Tensor, nn

from fmeta.core._torch import is_fake, named_backend, trace
from fmeta.core.tree import tree_flatten
from fmeta.execution._effects import Effects, Unfit, overlap
from fmeta.execution._transposes import without_transposed_products

Backend = str | Callable[..., Any]
# these and nothing derived from them, which may look alike and be another
_PLAIN = {int, float, complex, bool, str, bytes, types.NoneType, torch.dtype, torch.device}


def compile_graph(
    function: Callable[..., Any],
    leaves: Sequence[Any],
    structure: Any,
    backend: Backend,
    name: str = "call",
    traced: Callable[[int], None] = lambda operations: None,
) -> Callable[[Sequence[Any]], Any]:
    """`function(*args, **keywords)` as a function of the leaves alone, for all leaves of these kinds.

    Args:
        function: called once, on fake tensors.
        leaves: of `(args, keywords)`. Those that are no tensors count as constants, as does all that `function` reads
            besides.
        structure: of `(args, keywords)`, from `tree_flatten`.
        backend: of torch.compile.
        name: of the function, for errors.
        traced: told how many operations the graph has, before the backend begins.

    Raises:
        Unfit: a leaf that is neither a tensor nor a plain value; a result that requires grad; a change in place of a
            tensor that is closed over, or of arguments that share memory.
        KeptError: the function keeps a tensor that it made.
        Exception: whatever tracing and compiling raise.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    # each its own: of one tensor in two places the trace would make one input, for all later calls too
    tensors = [leaves[i].detach().requires_grad_(leaves[i].requires_grad) for i in places]
    _refuse_odd("an argument", leaves)
    effects = Effects()
    shape: Any = None  # of the result: its structure, and what is no tensor in it
    fixed: dict[int, Any] = {}

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal shape, fixed
        mine = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            parameter = isinstance(leaves[i], nn.Parameter)
            mine[i] = nn.Parameter(tensor, tensor.requires_grad) if parameter else tensor
        args, keywords = structure.unflatten(mine)
        with effects.of(tensors):
            found, shape = tree_flatten(function(*args, **keywords))
        _refuse_odd("its result", found)
        fixed = {i: leaf for i, leaf in enumerate(found) if not isinstance(leaf, Tensor)}
        found = [leaf for leaf in found if isinstance(leaf, Tensor)]
        if any(leaf.requires_grad for leaf in found):
            raise Unfit("its result requires grad; expected a function that takes its derivatives inside")
        return found

    try:
        graph = trace(flat, tensors)
    except Exception as error:
        effects.check_kept(name, error)
        raise
    effects.check_kept(name)
    writes, held = effects.writes, [*graph.buffers(), *graph.parameters()]  # and what it closes over
    if writes and overlap(tensors + held):
        raise Unfit("it changes an argument in place that shares memory with another, or with what it closes over")
    graph = without_transposed_products(graph)
    traced(len(graph.graph.nodes))
    # one C++ program calls small kernels without a detour through Python; where large operators take the time anyway,
    # a file for each kernel compiles on all cores
    large = any(node.target is torch.ops.fmeta.convolve.default for node in graph.graph.nodes)
    compiled = named_backend(backend, graph, tensors, not large and not any(t.is_cuda for t in tensors))

    def run(leaves: Sequence[Any]) -> Any:
        given = [leaves[i] for i in places]
        if writes and overlap(given + held):  # what is written here is read there
            args, keywords = structure.unflatten(leaves)
            return function(*args, **keywords)
        found = compiled(*given)
        if fixed:
            rest = iter(found)
            found = [fixed[i] if i in fixed else next(rest) for i in range(shape.num_leaves)]
        return shape.unflatten(found)

    return run


def _refuse_odd(whose: str, leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        what = _odd_tensor(leaf) if isinstance(leaf, Tensor) else "" if type(leaf) in _PLAIN else type(leaf).__name__
        if what:
            raise Unfit(f"{whose} holds a {what}; expected tensors and plain values in dicts, lists and tuples")


def _odd_tensor(t: Tensor) -> str:
    """What keeps a tensor out of graphs, which take it for its numbers as they lie in memory."""
    if type(t) not in (Tensor, nn.Parameter) and not is_fake(t):
        return type(t).__name__
    if t.is_nested or t.layout is not torch.strided:
        return f"{'nested' if t.is_nested else 'sparse'} tensor"
    return "tensor that is not yet conjugated (resolve_conj, resolve_neg)" if t.is_conj() or t.is_neg() else ""
