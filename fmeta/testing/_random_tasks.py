"""Small random tasks in float64, for laws: no structure to learn, every shape under control."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fmeta.core import Examples, Task, fold, normal, randint, split


def random_regression(
    key: Tensor, tasks: int = 4, shots: int = 6, query: int = 5, inputs: int = 2, outputs: int = 1
) -> Task:
    """Normal `x` `[task, example, inputs]` and `y` `[task, example, outputs]`, with keys."""

    def one(number: int, count: int) -> Examples:
        x = normal(fold(key, 2 * number), (tasks, count, inputs), torch.float64)
        return Examples(x, normal(fold(key, 2 * number + 1), (tasks, count, outputs), torch.float64))

    return Task(one(1, shots), one(2, query), split(fold(key, 9), tasks))


def random_classification(
    key: Tensor, tasks: int = 3, shots: int = 2, query: int = 2, ways: int = 3, shape: Sequence[int] = (4,)
) -> Task:
    """Normal `x` `[task, ways·shots, *shape]`, every class `shots` (`query`) times in random order, with keys."""

    def one(number: int, count: int) -> Examples:
        x = normal(fold(key, 2 * number), (tasks, ways * count, *shape), torch.float64)
        classes = torch.arange(ways * count, device=key.device) % ways
        order = randint(fold(key, 2 * number + 1), 1 << 40, (tasks, ways * count)).argsort(1)
        return Examples(x, classes[order])

    return Task(one(1, shots), one(2, query), split(fold(key, 9), tasks))
