"""Trees: nests of tuples, lists, dicts and named tuples with tensors for leaves. `None` is a leaf.

The one place where trees are taken apart, by optree (https://optree.readthedocs.io), in which dicts keep the order of
their keys. A leaf has a name, the path to it joined by dots: `params.hidden1.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import optree
import torch
from torch import Tensor

from fmeta.core._types import Tree

__all__ = [
    "add", "dot", "global_norm", "leaf_names", "matching", "mean_tasks", "named_leaves", "replace_leaves", "root",
    "same_structure", "scalar_like", "scale", "select_leaves", "sub", "tree_flatten", "tree_leaves", "tree_map",
    "tree_structure", "tree_unflatten", "where", "zeros_like",
]  # fmt: skip

_OURS: dict[str, Any] = {"none_is_leaf": True, "namespace": "fmeta"}
_ORDERED = ExitStack()  # has a name because an unnamed one is collected, and leaving it sorts dicts again
_ORDERED.enter_context(optree.dict_insertion_ordered(True, namespace="fmeta"))


def tree_flatten(tree: Tree) -> tuple[list[Any], Any]:
    """Leaves and structure."""
    return optree.tree_flatten(tree, **_OURS)


def tree_leaves(tree: Tree) -> list[Any]:
    return optree.tree_leaves(tree, **_OURS)


def tree_structure(tree: Tree) -> Any:
    return optree.tree_structure(tree, **_OURS)


def tree_unflatten(leaves: Sequence[Any], structure: Any) -> Tree:
    """The tree of that structure with these leaves."""
    return optree.tree_unflatten(structure, leaves)


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function` of every leaf, and of the leaves of the others in the same places."""
    return optree.tree_map(function, tree, *others, **_OURS)


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return tree_map(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """a − b, leaf by leaf."""
    return tree_map(torch.sub, a, b)


def scale(a: Tree, factor: float | Tensor) -> Tree:
    """Every leaf times a factor."""
    return tree_map(lambda u: u * factor, a)


def zeros_like(a: Tree) -> Tree:
    """Zeros of the shapes, dtypes and devices of the leaves."""
    return tree_map(torch.zeros_like, a)


def where(condition: Tensor, a: Tree, b: Tree) -> Tree:
    """Leaf by leaf `torch.where` with one scalar condition."""
    return tree_map(lambda u, v: torch.where(condition, u, v), a, b)


def mean_tasks(a: Tree) -> Tree:
    """The mean over the leading task axis of every leaf."""
    return tree_map(lambda u: u.mean(0), a)


def dot(a: Tree, b: Tree) -> Tensor:
    """The inner product of two trees, a scalar; 0 of trees without leaves."""
    products = [(u * v).sum() for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True)]
    return torch.stack(products).sum() if products else torch.zeros(())


def root(x: Tensor) -> Tensor:
    """The square root, with slope 0 instead of infinity at 0: second derivatives stay finite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), 0.0 * x)  # NaN stays NaN


def global_norm(a: Tree) -> Tensor:
    """The Euclidean norm of all leaves together, a scalar with a finite slope at zero."""
    return root(dot(a, a))


def scalar_like(*trees: Tree) -> Tensor:
    """A zero, `[]`, of the dtype and device of the first floating leaf in these trees.

    Where none is floating it is float32, on the device of the first leaf: what to make new parameters like.
    """
    leaves = [leaf for tree in trees for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    for leaf in leaves:
        if leaf.is_floating_point():
            return leaf.new_zeros(())
    return torch.zeros((), dtype=torch.float32, device=leaves[0].device if leaves else None)


def same_structure(a: Tree, b: Tree) -> bool:
    """Whether two trees have the same nesting and leaves of the same shapes."""
    shapes = [[u.shape for u in tree_leaves(t)] for t in (a, b)]
    return tree_structure(a) == tree_structure(b) and shapes[0] == shapes[1]


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by name."""
    accessors, leaves, _ = optree.tree_flatten_with_accessor(tree, **_OURS)
    return {".".join(map(_word, accessor)): leaf for accessor, leaf in zip(accessors, leaves, strict=True)}


def leaf_names(tree: Tree) -> list[str]:
    return list(named_leaves(tree))


def select_leaves(tree: Tree, patterns: str) -> dict[str, Any]:
    """The leaves whose names match: shell-style patterns separated by commas (`head.*`), all others after a `!`."""
    named = named_leaves(tree)
    return {name: named[name] for name in matching(tuple(named), patterns)}


def matching(names: Sequence[str], patterns: str) -> tuple[str, ...]:
    """The names that match."""
    rest = patterns.removeprefix("!")
    return tuple(
        n for n in names if any(fnmatchcase(n, p.strip()) for p in rest.split(",")) is not patterns.startswith("!")
    )


def replace_leaves(tree: Tree, leaves: dict[str, Any]) -> Tree:
    """`tree` with the leaves named in `leaves` exchanged."""
    named = named_leaves(tree)
    return tree_unflatten([leaves.get(n, leaf) for n, leaf in named.items()], tree_structure(tree))


def _word(step: Any) -> str:
    return str(step.field if isinstance(step, optree.NamedTupleEntry | optree.StructSequenceEntry) else step.entry)
