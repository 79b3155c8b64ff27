"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmeta.core import PartialSampler, Task, split
from fmeta.core._checks import hidden
from fmeta.core._torch import is_batched
from fmeta.core.tree import tree_leaves, tree_map
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


@dataclass(frozen=True)
class _OwnSampler(TaskSampler):
    """One of a caller's own function, of which nobody knows whether it draws by the key, in operations for vmap."""

    batched: list[bool] = field(default_factory=list, compare=False, repr=False)  # whether it does, once that is known

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        if not self.batched and not hidden(key):
            self.batched.append(self._draws_by_key(key))
        if not self.batched or self.batched[0]:
            return super().part(key, count, numbers)
        tasks = [self.one(key) for key in split(key, count)[numbers.start : numbers.stop]]
        return tree_map(lambda *leaves: torch.stack(leaves), *tasks)

    def _draws_by_key(self, key: Tensor) -> bool:
        once, twice = (tree_leaves(self.one(split(key, 1)[0])) for _ in range(2))
        same = [torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(once, twice, strict=True)]
        if not all(same):
            return False
        depends = False

        def noted(key: Tensor) -> Task:
            nonlocal depends
            task = self.one(key)
            depends = any(is_batched(leaf) for leaf in tree_leaves((task.support, task.query)))
            return task

        try:
            over_tasks(noted, shared=())(split(key, 1))
        except Exception:  # what can only be done one task at a time
            return False
        return depends


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
