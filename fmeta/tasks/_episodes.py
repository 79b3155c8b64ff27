"""N-way K-shot episodes from class-major data on the device: pure index arithmetic from a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Task, choice, fold, permutation, randint, split
from fmeta.core._checks import check_counts
from fmeta.core._random import choice_within
from fmeta.operators._over_tasks import over_tasks
from fmeta.tasks._class_data import ClassData, check_turns, look_up
from fmeta.tasks._sampler import TaskSampler


@dataclass(frozen=True)
class Episodes(TaskSampler):
    """A `Sampler` of tasks whose labels are shuffled, and what the labels stand for."""

    one_classes: Callable[[Tensor], Tensor]  # the task's own key -> int64 [way], positions in `names`
    names: tuple[str, ...]  # [class]

    def classes(self, key: Tensor, count: int) -> Tensor:
        """Which class each label of the tasks drawn with this key stands for: int64 `[task, way]`, as in `names`."""
        return over_tasks(self.one_classes, shared=())(split(key, count))


def episodes(data: ClassData, *, ways: int, shots: int, query: int, rotate: bool = False) -> Episodes:
    """N-way K-shot tasks: `x` `[task, ways·shots, ...]` and `[task, ways·query, ...]`, labels `0 .. ways-1`.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.class_data({f"word {i}": torch.randn(20, 16) for i in range(30)})
        >>> tasks = fmeta.tasks.episodes(data, ways=5, shots=1, query=15)(fmeta.key(0), 4)
        >>> tasks.support.x.shape, tasks.query.y.shape
        (torch.Size([4, 5, 16]), torch.Size([4, 75]))

    Where examples are a tree, so is `x`, and an example's row is the same in every leaf.
    Classes and examples are drawn without replacement, so support and query never share an example. Which class gets
    which label, and the order of the examples, are shuffled in every task; `.classes(key, count)` says which it was.

    Args:
        data: the classes to draw from; their device is where everything happens.
        ways: N, classes of a task.
        shots: K, support examples of each class.
        query: query examples of each class.
        rotate: turn each class of each task by 0, 90, 180 or 270 degrees at random (for square images without other
            leaves).

    Raises:
        InputError: more ways than classes; a class with fewer than shots + query examples, by name; a number below 1,
            or ways below 2, of which every answer is right.
    """
    check_counts("episodes", least=2, ways=ways)
    check_counts("episodes", shots=shots, query=query)
    classes = len(data.names)
    if ways > classes:
        raise InputError(f"episodes(ways={ways}): the data has {classes} classes; expected ways <= {classes}")
    least, most = int(data.size.argmin()), int(data.size.max())
    if data.size[least] < shots + query:
        raise InputError(
            f"episodes(shots={shots}, query={query}): class {data.names[least]!r} has {int(data.size[least])} "
            f"examples; expected at least shots + query = {shots + query}; ask for fewer, or drop the class"
        )
    turning = check_turns(f"episodes(rotate={rotate})", data, rotate)

    def draw(key: Tensor) -> Tensor:
        return choice(fold(key, 0), classes, ways)

    def one(key: Tensor) -> Task:
        drawn = draw(key)
        rows = data.start[drawn][:, None] + choice_within(fold(key, 1), most, shots + query, valid=data.size[drawn])
        labels = torch.arange(ways, device=key.device)[:, None].expand(ways, shots + query)
        turns = data.turns[drawn] + (randint(fold(key, 2), 4, (ways,)) if rotate else 0)
        turns = (turns % 4)[:, None].expand_as(labels)

        def take(number: int, begin: int, end: int) -> Examples:
            order = permutation(fold(key, number), ways * (end - begin))
            row, label, turn = (t[:, begin:end].reshape(-1)[order] for t in (rows, labels, turns))
            return Examples(look_up(data, row, turn if turning else None), label)

        return Task(take(3, 0, shots), take(4, shots, shots + query), fold(key, 5))

    return Episodes(one, draw, data.names)
