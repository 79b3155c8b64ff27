"""Products of matrices without transposed results, which compilers follow to the letter at a price.

The derivative of a linear layer in its weight comes out transposed, and what is made of it reads along the wrong axis:
inductor does not vectorise such a loop, and MKL takes 8 times as long for AᵀBᵀ as for (BA)ᵀ (25 tasks, sides 40, 10).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule, Node

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.bmm.default)
_LAYOUTS = (_aten.as_strided.default, _aten.as_strided_.default, _aten.as_strided_scatter.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default, _aten.expand.default)


def without_transposed_products(graph: GraphModule) -> GraphModule:
    """The graph, changed in place: (AB)ᵀ becomes BᵀAᵀ, AᵀBᵀ becomes (BA)ᵀ, and a transpose of a transpose nothing."""
    nodes = graph.graph
    if any(node.target in _LAYOUTS for node in nodes.nodes):
        return graph  # what reads memory as it lies
    for node in list(nodes.nodes):
        new = _simpler(nodes, node)
        if new is not None:
            node.replace_all_uses_with(new)
            nodes.erase_node(node)
    nodes.eliminate_dead_code()
    graph.recompile()
    return graph


def _simpler(graph: Graph, node: Node) -> Node | None:
    """What can stand in for `node`: the same values."""
    operands: Any = node.args
    if node.target in _VIEWS and _layout(node) == _layout(operands[0]):
        return operands[0]
    if _is_transpose(node):
        (inner, *_) = operands
        if _is_transpose(inner):
            return inner.args[0]
        if inner.target in _PRODUCTS and len(inner.users) == 1:
            a, b = (_transposed(graph, inner, operand) for operand in inner.args)
            return _insert(graph, inner, inner.target, b, a)  # there, before anyone writes to its operands
    if node.target is _aten.bmm.default and all(map(_is_transpose, operands)):
        a, b = (operand.args[0] for operand in operands)
        product = _transposed(graph, node, _insert(graph, node, node.target, b, a))
        return _insert(graph, node, _aten.clone.default, product, memory_format=torch.contiguous_format)  # for a view
    return None


def _layout(node: Any) -> Any:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return (value.shape, value.stride()) if isinstance(value, torch.Tensor) else None


def _is_transpose(node: Any) -> bool:
    """Of the last two axes, of matrices or batches of them."""
    if not isinstance(node, Node) or node.target not in (_aten.t.default, _aten.transpose.int):
        return False
    axes, swapped = node.meta["val"].ndim, cast("tuple[int, ...]", node.args[1:])
    return axes in (2, 3) and {axis % axes for axis in swapped} <= {axes - 2, axes - 1}


def _transposed(graph: Graph, before: Node, node: Any) -> Node:
    return node.args[0] if _is_transpose(node) else _insert(graph, before, _aten.transpose.int, node, -2, -1)


def _insert(graph: Graph, before: Node, target: Any, *args: Any, **keywords: Any) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args, keywords)
    node.meta["val"] = target(*(a.meta["val"] if isinstance(a, Node) else a for a in args), **keywords)
    return node
