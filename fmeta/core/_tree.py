"""Arithmetic on trees, and names for their leaves."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_structure,
    tree_unflatten,
)

from fmeta.core._types import Tree

__all__ = [
    "add", "dot", "global_norm", "leaf_names", "matching", "mean_tasks", "named_leaves", "replace_leaves", "root",
    "same_structure", "scale", "select_leaves", "sub", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten",
    "where", "zeros_like",
]  # fmt: skip


def add(a: Tree, b: Tree) -> Tree:
    return tree_map(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    return tree_map(torch.sub, a, b)


def scale(a: Tree, factor: float | Tensor) -> Tree:
    return tree_map(lambda u: u * factor, a)


def zeros_like(a: Tree) -> Tree:
    return tree_map(torch.zeros_like, a)


def where(condition: Tensor, a: Tree, b: Tree) -> Tree:
    """Leaf by leaf `torch.where` with one scalar condition."""
    return tree_map(lambda u, v: torch.where(condition, u, v), a, b)


def mean_tasks(a: Tree) -> Tree:
    """The mean over the leading task axis of every leaf."""
    return tree_map(lambda u: u.mean(0), a)


def dot(a: Tree, b: Tree) -> Tensor:
    """The inner product of two trees, a scalar."""
    return torch.stack([(u * v).sum() for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True)]).sum()


def root(x: Tensor) -> Tensor:
    """The square root, with slope 0 instead of infinity at 0: second derivatives stay finite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), 0.0 * x)  # NaN stays NaN


def global_norm(a: Tree) -> Tensor:
    """The Euclidean norm of all leaves together, a scalar with a finite slope at zero."""
    return root(dot(a, a))


def same_structure(a: Tree, b: Tree) -> bool:
    """Whether two trees have the same nesting and leaves of the same shapes."""
    shapes = [[u.shape for u in tree_leaves(t)] for t in (a, b)]
    return tree_structure(a) == tree_structure(b) and shapes[0] == shapes[1]


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by name: the path to each leaf, joined by dots (`params.hidden1.weight`)."""
    pairs, _ = tree_flatten_with_path(tree)
    return {".".join(_word(step) for step in path): leaf for path, leaf in pairs}


def leaf_names(tree: Tree) -> list[str]:
    return list(named_leaves(tree))


def select_leaves(tree: Tree, patterns: str) -> dict[str, Any]:
    """The leaves whose names match: shell-style patterns separated by commas (`head.*`), all others after a `!`."""
    named = named_leaves(tree)
    return {name: named[name] for name in matching(tuple(named), patterns)}


@torch.compiler.assume_constant_result  # dynamo cannot trace into fnmatch
def matching(names: tuple[str, ...], patterns: str) -> tuple[str, ...]:
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
    for field in ("key", "name", "idx"):  # of a dict, a named tuple, a sequence
        if hasattr(step, field):
            return str(getattr(step, field))
    return str(step)
