"""The batches of a run: each a function of the run's key and its number alone, where its source is."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import InputError, PartialSampler, PythonSource, Task, fold
from fmeta.core._checks import check_tasks
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from fmeta.gradients._first_look import with_keys
from fmeta.operators._by_key import Way, way_of_drawing
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
    so that a resumed run computes each batch within the same block. A source that does not draw by the key, or that
    `vmap` cannot batch, is called at each step.
    """

    def __init__(self, sources: Mapping[int, Sample], key: Tensor, meta_batch: int, start: int, part: range) -> None:
        self.draws = {first: _Draw(sample, meta_batch, part) for first, sample in sources.items()}
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
        """The first batch of each source that comes later and can be drawn twice."""
        for first, draw in self.draws.items():
            if first > self.start and not draw.from_python:
                yield draw(fold(self.key, first))


@dataclass(frozen=True)
class _Draw:
    """The tasks of a batch that are this process's, with keys."""

    sample: Sample
    meta_batch: int
    part: range

    @property
    def from_python(self) -> bool:
        return isinstance(self.sample, PythonSource)

    def __call__(self, key: Tensor) -> Task:
        return with_keys(self._drawn(key), key)

    def _drawn(self, key: Tensor) -> Task:
        if len(self.part) == self.meta_batch:
            return self._checked(self.sample(key, self.meta_batch), self.meta_batch)
        if isinstance(self.sample, PartialSampler):
            return self._checked(self.sample.part(key, self.meta_batch, self.part), len(self.part))
        whole = self._checked(self.sample(key, self.meta_batch), self.meta_batch)
        return tree_map(lambda leaf: leaf[self.part.start : self.part.stop], whole)

    def _checked(self, tasks: Task, expected: int) -> Task:
        count = check_tasks("fit(sample=…)", tasks)
        if count != expected:
            cure = "give meta_batch what the source makes at a time"
            if self.from_python:
                cure += ", and DataLoader(…, drop_last=True) where the last batch is smaller"
            raise InputError(
                f"fit(meta_batch={self.meta_batch}): sample(key, {self.meta_batch}) gave {count} tasks; expected "
                f"{expected}, as many as it is asked for; {cure}"
            )
        return tasks


def _streams(draws: Mapping[int, _Draw], key: Tensor, start: int) -> Iterator[Task]:
    """One source after another."""
    ends = [*list(draws)[1:], None]
    for (first, draw), end in zip(draws.items(), ends, strict=True):
        begin = max(first, start)
        if end is None or begin < end:
            if begin > first and draw.from_python:
                warnings.warn(
                    f"fit: resumed at step {begin} with new draws of its Python source of tasks", stacklevel=2
                )
            yield from itertools.islice(_stream(draw, key, begin), None if end is None else end - begin)


def _stream(draw: _Draw, key: Tensor, start: int) -> Iterator[Task]:
    if draw.from_python or _way(draw, key) != "by key":
        yield from (draw(fold(key, step)) for step in itertools.count(start))
    size = sum(t.numel() * t.element_size() for t in tree_leaves(draw(fold(key, 0))))
    block = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, size)))
    for first in itertools.count(start // block * block, block):
        keys = fold(key, torch.arange(first, first + block, device=key.device))
        leaves, structure = tree_flatten(over_tasks(draw, shared=())(keys))
        for step, batch in enumerate(zip(*(leaf.unbind(0) for leaf in leaves), strict=True), first):
            if step >= start:
                yield tree_unflatten(batch, structure)


def _way(draw: _Draw, key: Tensor) -> Way:
    way = way_of_drawing(draw, fold(key, 0))
    if way == "not by key":
        warnings.warn(
            "fit: two calls of sample with the same key gave other tasks. It is called at every step, so the run is no "
            "function of its key, and one that is resumed goes on with new draws. Draw by the key (fmeta.uniform, "
            "normal, randint, permutation), or say what it is with fmeta.tasks.from_loader",
            stacklevel=2,
        )
    return way
