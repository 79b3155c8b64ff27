"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fmeta.core import Task, split
from fmeta.operators._over_tasks import over_tasks

Sampler = Callable[[Tensor, int], Task]  # key, count -> a batch of tasks


def sampler(one: Callable[[Tensor], Task]) -> Sampler:
    """A `Sampler` from a function that draws one task. Task `i` of a batch is `one(split(key, count)[i])`.

    Its `part(key, count, numbers)` draws the tasks with these numbers alone, a range: those of one rank.
    """

    def part(key: Tensor, count: int, numbers: range) -> Task:
        return over_tasks(one, shared=())(split(key, count)[numbers.start : numbers.stop])

    def sample(key: Tensor, count: int) -> Task:
        return part(key, count, range(count))

    sample.part = part  # type: ignore[attr-defined]
    return sample
