"""Class data as plain batches, for supervised pretraining, and episodes as streams."""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Task, fold, permutation, randint, uniform
from fmeta.core._checks import check_counts
from fmeta.core.tree import tree_map
from fmeta.operators._over_tasks import over_tasks
from fmeta.tasks._episodes import ClassData, check_turns, look_up
from fmeta.tasks._sampler import Sampler, sampler


def batches(data: ClassData, *, size: int, rotate: bool = False) -> Sampler:
    """Plain batches as tasks without a support set: `query.x` `[task, size, ...]`, labels the classes' positions in
    `data`. Classes are drawn alike, then examples, all with replacement.

    Args:
        data: the classes.
        size: examples of a batch.
        rotate: turn each (square) image by 0, 90, 180 or 270 degrees at random, under the same label.
    """
    check_counts("batches", size=size)
    turning = check_turns("batches", data, rotate)

    def one(key: Tensor) -> Task:
        label = randint(fold(key, 0), len(data.names), (size,))
        place = (uniform(fold(key, 1), (size,), dtype=torch.float64) * data.size[label]).to(torch.int64)
        turns = data.turns[label] + (randint(fold(key, 2), 4, (size,)) if rotate else 0)
        x = look_up(data, data.start[label] + place, turns % 4 if turning else None)
        return Task(Examples((), ()), Examples(x, label), fold(key, 3))

    return sampler(one)


def stream(sample: Sampler, *, ways: int) -> Sampler:
    """The tasks of `sample` as streams, for `mann`: support and query become one sequence in random order.

    `query.x` is `(inputs, previous)`, `previous` the label of the example before, `ways` at the first; the support set
    is empty.
    """
    check_counts("stream", ways=ways)

    def one(task: Task) -> Task:
        support, query = task.support, task.query
        if not isinstance(task.key, Tensor) or isinstance(query.weight, Tensor):
            raise InputError("stream: expected tasks with a key and without example weights, such as `episodes` draws")
        order = permutation(fold(task.key, 0), len(support.y) + len(query.y))
        x, y = tree_map(lambda a, b: torch.cat([a, b])[order], (support.x, support.y), (query.x, query.y))
        previous = torch.cat([torch.full_like(y[:1], ways), y[:-1]])
        return Task(Examples((), ()), Examples((x, previous), y), fold(task.key, 1))

    def streams(key: Tensor, count: int) -> Task:
        return over_tasks(one, shared=())(sample(key, count))

    return streams
