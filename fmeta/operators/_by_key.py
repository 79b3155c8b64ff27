"""How a source of tasks draws: by its key, and in operations that vmap can batch, or otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fmeta.core._torch import is_batched
from fmeta.core._types import Tree
from fmeta.core.tree import tree_leaves
from fmeta.operators._over_tasks import over_tasks

Way = Literal["by key", "key after key", "not by key"]


def way_of_drawing(draw: Callable[[Tensor], Any], key: Tensor) -> Way:
    """Whether two draws from one key are the same, and whether many keys can be batched; found by drawing four times.

    A source whose examples do not depend on the key is drawn "key after key": it may be a list, or a lucky repetition.
    """
    if not _same(draw(key), draw(key)):
        return "not by key"
    depends = False

    def noted(key: Tensor) -> Tree:
        nonlocal depends
        tasks = draw(key)
        depends = any(is_batched(leaf) for leaf in tree_leaves((tasks.support, tasks.query)))
        return tasks

    try:
        over_tasks(noted, shared=())(key[None])
    except Exception:  # whatever can only be done one key at a time
        return "key after key"
    return "by key" if depends else "key after key"


def _same(a: Tree, b: Tree) -> bool:
    one, other = tree_leaves(a), tree_leaves(b)
    return len(one) == len(other) and all(same_bits(s, t) for s, t in zip(one, other, strict=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one kind and hold the same, NaN too."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))
