"""The batches of a run: each a function of the run's key and its number alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fmeta.core import PartialSampler, Task, fold
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from fmeta.operators._over_tasks import over_tasks
from fmeta.training._trainer import check_phases

Sample = Callable[[Tensor, int], Task]  # key, count -> a batch of tasks
_BLOCK_STEPS, _BLOCK_BYTES = 100, 1 << 25


def sources_of(sample: Sample | Mapping[int, Sample]) -> dict[int, Sample]:
    """The first meta-step of each source of tasks, in their order."""
    if not isinstance(sample, Mapping):
        return {0: sample}
    check_phases("fit(sample=a mapping)", "source of tasks", sample)
    return dict(sorted(sample.items()))


class Batches:
    """The batches of step `start` and on: those tasks of each whose numbers are in `part`.

    They are drawn many steps at a time, because small tensors cost more calls than work. Blocks begin at fixed steps,
    so that a resumed run computes each batch within the same block.
    """

    def __init__(self, sources: Mapping[int, Sample], key: Tensor, meta_batch: int, start: int, part: range) -> None:
        self.draws = {first: _drawing(sample, meta_batch, part) for first, sample in sources.items()}
        self.key, self.start = key, start
        self._stream = _streams(self.draws, key, start)
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

    def of_later_sources(self) -> Iterator[Task]:
        """The first batch of each source that comes later."""
        for first, draw in self.draws.items():
            if first > self.start:
                yield draw(fold(self.key, first))


def _drawing(sample: Sample, meta_batch: int, part: range) -> Callable[[Tensor], Task]:
    if len(part) == meta_batch:
        return lambda key: sample(key, meta_batch)
    if isinstance(sample, PartialSampler):
        return lambda key: sample.part(key, meta_batch, part)
    return lambda key: tree_map(lambda leaf: leaf[part.start : part.stop], sample(key, meta_batch))


def _streams(draws: Mapping[int, Callable[[Tensor], Task]], key: Tensor, start: int) -> Iterator[Task]:
    """One source after another."""
    ends = [*list(draws)[1:], None]
    for (first, draw), end in zip(draws.items(), ends, strict=True):
        begin = max(first, start)
        if end is None or begin < end:
            yield from itertools.islice(_stream(draw, key, begin), None if end is None else end - begin)


def _stream(draw: Callable[[Tensor], Task], key: Tensor, start: int) -> Iterator[Task]:
    size = sum(t.numel() * t.element_size() for t in tree_leaves(draw(fold(key, 0))))
    block = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, size)))
    for first in itertools.count(start // block * block, block):
        keys = fold(key, torch.arange(first, first + block, device=key.device))
        leaves, structure = tree_flatten(over_tasks(draw, shared=())(keys))
        for step, batch in enumerate(zip(*(leaf.unbind(0) for leaf in leaves), strict=True), first):
            if step >= start:
                yield tree_unflatten(batch, structure)
