"""The batches of a run: each a function of the run's key and its number alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fmeta.core import Task, fold
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from fmeta.operators._over_tasks import over_tasks

_BLOCK_STEPS, _BLOCK_BYTES = 100, 1 << 25


class Batches:
    """The batches of step `start` and on: those tasks of each whose numbers are in `part`.

    They are drawn many steps at a time, because small tensors cost more calls than work. Blocks begin at fixed steps,
    so that a resumed run computes each batch within the same block.
    """

    def __init__(
        self, sample: Callable[[Tensor, int], Task], key: Tensor, meta_batch: int, start: int, part: range
    ) -> None:
        self._stream = _stream(_drawing(sample, meta_batch, part), key, start)
        self._next: Task | None = None

    def ahead(self) -> None:
        """Draws the next batch now."""
        if self._next is None:
            self._next = next(self._stream)

    def draw(self) -> Task:
        self.ahead()
        tasks, self._next = self._next, None
        assert tasks is not None
        return tasks


def _drawing(sample: Callable[[Tensor, int], Task], meta_batch: int, part: range) -> Callable[[Tensor], Task]:
    if len(part) == meta_batch:
        return lambda key: sample(key, meta_batch)
    if hasattr(sample, "part"):
        return lambda key: sample.part(key, meta_batch, part)
    return lambda key: tree_map(lambda leaf: leaf[part.start : part.stop], sample(key, meta_batch))


def _stream(draw: Callable[[Tensor], Task], key: Tensor, start: int) -> Iterator[Task]:
    size = sum(t.numel() * t.element_size() for t in tree_leaves(draw(fold(key, 0))))
    block = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, size)))
    for first in itertools.count(start // block * block, block):
        keys = fold(key, torch.arange(first, first + block, device=key.device))
        leaves, structure = tree_flatten(over_tasks(draw, shared=())(keys))
        for step, batch in enumerate(zip(*(leaf.unbind(0) for leaf in leaves), strict=True), first):
            if step >= start:
                yield tree_unflatten(batch, structure)
