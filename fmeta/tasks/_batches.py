"""Class data as plain batches, for supervised pretraining, and episodes as streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, PartialSampler, Task, fold, permutation, randint, uniform
from fmeta.core._checks import check_counts
from fmeta.core.tree import tree_map
from fmeta.operators._over_tasks import over_tasks
from fmeta.tasks._class_data import ClassData, check_turns, look_up
from fmeta.tasks._sampler import Sampler, TaskSampler, draw_part


def batches(data: ClassData, *, size: int, rotate: bool = False) -> PartialSampler:
    """Plain batches as tasks without a support set: `query.x` `[task, size, ...]`, labels the classes' positions in
    `data`. Classes are drawn alike, then examples, all with replacement.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.class_data({f"word {i}": torch.randn(20, 16) for i in range(30)})
        >>> fmeta.tasks.batches(data, size=64)(fmeta.key(0), 1).query.x.shape
        torch.Size([1, 64, 16])

    Args:
        data: the classes.
        size: examples of a batch.
        rotate: turn each image (square, without other leaves) by 0, 90, 180 or 270 degrees at random, under the same
            label.

    Raises:
        InputError: a size below 1; data of one class.
    """
    check_counts("batches", size=size)
    if len(data.names) < 2:
        raise InputError("batches: the data has 1 class; expected at least 2, because of one every answer is right")
    turning = check_turns("batches", data, rotate)

    def one(key: Tensor) -> Task:
        label = randint(fold(key, 0), len(data.names), (size,))
        place = (uniform(fold(key, 1), (size,), dtype=torch.float64) * data.size[label]).to(torch.int64)
        turns = data.turns[label] + (randint(fold(key, 2), 4, (size,)) if rotate else 0)
        x = look_up(data, data.start[label] + place, turns % 4 if turning else None)
        return Task(Examples((), ()), Examples(x, label), fold(key, 3))

    return TaskSampler(one)


def stream(sample: Sampler, *, ways: int) -> PartialSampler:
    """The tasks of `sample` as streams, for `mann`: support and query become one sequence in random order.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.class_data({f"word {i}": torch.randn(20, 16) for i in range(30)})
        >>> sample = fmeta.tasks.episodes(data, ways=5, shots=1, query=3)
        >>> tasks = fmeta.tasks.stream(sample, ways=5)(fmeta.key(0), 4)
        >>> [leaf.shape for leaf in tasks.query.x]
        [torch.Size([4, 20, 16]), torch.Size([4, 20])]

    `query.x` is `(inputs, previous)`, `previous` the label of the example before, `ways` at the first; the support set
    is empty.
    """
    check_counts("stream", least=2, ways=ways)
    return Streams(sample, ways)


@dataclass(frozen=True)
class Streams:
    """What `stream` gives: a `Sampler` that draws parts of a batch alone where its source does."""

    sample: Sampler
    ways: int

    def __call__(self, key: Tensor, count: int) -> Task:
        return self.part(key, count, range(count))

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        """The streams with these consecutive numbers of the batch of `count`."""
        return over_tasks(self._one, shared=())(draw_part(self.sample, key, count, numbers))

    def _one(self, task: Task) -> Task:
        support, query = task.support, task.query
        if not isinstance(task.key, Tensor) or isinstance(query.weight, Tensor):
            raise InputError("stream: expected tasks with a key and without example weights, such as `episodes` draws")
        order = permutation(fold(task.key, 0), len(support.y) + len(query.y))
        x, y = tree_map(lambda a, b: torch.cat([a, b])[order], (support.x, support.y), (query.x, query.y))
        previous = torch.cat([torch.full_like(y[:1], self.ways), y[:-1]])
        return Task(Examples((), ()), Examples((x, previous), y), fold(task.key, 1))
