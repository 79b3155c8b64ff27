"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fmeta.core import PartialSampler, Task, split
from fmeta.core.tree import tree_map
from fmeta.operators._over_tasks import over_tasks

Sampler = Callable[[Tensor, int], Task]  # key, count -> a batch of tasks; any function of this kind will do


@dataclass(frozen=True)
class TaskSampler:
    """A `Sampler` that draws each task by itself: task `i` of a batch is `one(split(key, count)[i])`."""

    one: Callable[[Tensor], Task]  # the task's own key -> the task

    def __call__(self, key: Tensor, count: int) -> Task:
        return self.part(key, count, range(count))

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        """The tasks with these consecutive numbers of the batch of `count`, and no others: those of one rank."""
        return over_tasks(self.one, shared=())(split(key, count)[numbers.start : numbers.stop])


def sampler(one: Callable[[Tensor], Task]) -> PartialSampler:
    """A `Sampler` from a function that draws one task. Task `i` of a batch is `one(split(key, count)[i])`.

        >>> import fmeta
        >>> def line(key):
        ...     x = fmeta.core.normal(key, (8, 1))
        ...     examples = fmeta.Examples(x, fmeta.core.uniform(key) * x)
        ...     return fmeta.Task(examples, examples, key)
        >>> fmeta.tasks.sampler(line)(fmeta.key(0), 4).support.x.shape
        torch.Size([4, 8, 1])

    Its `part(key, count, numbers)` draws the tasks with these numbers alone, a range: those of one rank.
    """
    return TaskSampler(one)


def draw_part(sample: Sampler, key: Tensor, count: int, numbers: range) -> Task:
    """Of the batch `sample(key, count)` the tasks with these consecutive numbers, drawn alone where the source can."""
    if isinstance(sample, PartialSampler):
        return sample.part(key, count, numbers)
    return tree_map(lambda leaf: leaf[numbers.start : numbers.stop], sample(key, count))
