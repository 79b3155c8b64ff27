"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import InputError, PartialSampler, Task, split
from fmeta.core._checks import hidden
from fmeta.core._torch import first_of_batch, is_batched, without_levels
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.operators._by_key import Way, way_of_drawing
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


class _OwnSampler:
    """A `TaskSampler` of a caller's own function, of which it finds out at the first call how it draws."""

    def __init__(self, one: Callable[[Tensor], Task]) -> None:
        self.one = one
        self.way: Way | None = None  # not known yet

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OwnSampler) and self.one == other.one

    def __hash__(self) -> int:
        return hash(self.one)

    def __call__(self, key: Tensor, count: int) -> Task:
        return self.part(key, count, range(count))

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        keys = split(key, count)
        if self.way is None and not hidden(key):
            with without_levels():  # also where the first call is one of many under vmap
                self.way = way_of_drawing(self.one, first_of_batch(keys)[0])
        if self.way in (None, "by key"):
            return TaskSampler(self.one).part(key, count, numbers)
        if is_batched(key):
            raise InputError("tasks.sampler: it draws one task at a time; expected one key, and no vmap over many")
        tasks = [self.one(each) for each in keys[numbers.start : numbers.stop]]
        return stacked("tasks.sampler", tasks)


def stacked(call: str, tasks: Sequence[Task]) -> Task:
    """Tasks as a batch. Raises InputError where their shapes differ."""
    shapes = {tuple(tuple(leaf.shape) for leaf in tree_leaves(task)) for task in tasks}
    if len(shapes) > 1:
        raise InputError(
            f"{call}: tasks of different shapes, {sorted(shapes)[:2]}; expected one shape; pad them, with "
            "Examples.weight 0 where there is padding"
        )
    return tree_map(lambda *leaves: torch.stack(leaves), *tasks)


def sampler(one: Callable[[Tensor], Task]) -> PartialSampler:
    """A `Sampler` from a function that draws one task. Task `i` of a batch is `one(split(key, count)[i])`.

        >>> import fmeta
        >>> def line(key):
        ...     x = fmeta.core.normal(key, (8, 1))
        ...     examples = fmeta.Examples(x, fmeta.core.uniform(key) * x)
        ...     return fmeta.Task(examples, examples, key)
        >>> fmeta.tasks.sampler(line)(fmeta.key(0), 4).support.x.shape
        torch.Size([4, 8, 1])

    Its `part(key, count, numbers)` draws the tasks with these numbers alone, a range: those of one rank. A function
    that looks at its key (`int(key)`), or that draws by other means, is called task by task.
    """
    return _OwnSampler(one)


def draw_part(sample: Sampler, key: Tensor, count: int, numbers: range) -> Task:
    """Of the batch `sample(key, count)` the tasks with these consecutive numbers, drawn alone where the source can."""
    if isinstance(sample, PartialSampler):
        return sample.part(key, count, numbers)
    return tree_map(lambda leaf: leaf[numbers.start : numbers.stop], sample(key, count))
