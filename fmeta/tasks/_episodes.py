"""N-way K-shot episodes from class-major data on the device: pure index arithmetic from a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Task, check_counts, choice, fold, permutation, randint
from fmeta.tasks._sampler import Sampler, sampler

Split = Literal["train", "validation", "test"]


class ClassData(NamedTuple):
    """Examples class after class. A class is a run of rows, seen through a number of quarter turns."""

    examples: Tensor  # [row, ...]; images are [row, channel, height, width], uint8 images stand for 0..1
    start: Tensor  # int64 [class] the first row of each class
    size: Tensor  # int64 [class] its number of rows
    turns: Tensor  # int64 [class] quarter turns, counter-clockwise, that make it a class of its own
    names: tuple[str, ...]  # [class]

    def to(self, device: torch.device | str) -> ClassData:
        return self._replace(**{f: getattr(self, f).to(device) for f in ("examples", "start", "size", "turns")})


def class_data(classes: Mapping[str, Tensor]) -> ClassData:
    """`ClassData` from named classes of any sizes, each `[example, ...]`.

    Raises InputError for no classes, an empty class, or examples of unequal shape or dtype.
    """
    if not classes:
        raise InputError("class_data: got no classes; expected a mapping from names to tensors [example, ...]")
    if any(t.ndim == 0 for t in classes.values()):
        raise InputError("class_data: got a scalar for a class; expected [example, ...]")
    kind = {(tuple(t.shape[1:]), t.dtype) for t in classes.values()}
    if len(kind) > 1:
        raise InputError(f"class_data: examples differ in shape or dtype: {sorted(map(str, kind))}; expected one kind")
    empty = [name for name, t in classes.items() if not len(t)]
    if empty:
        raise InputError(f"class_data: class {empty[0]!r} has no examples; leave it out")
    rows = torch.cat(list(classes.values()))
    size = torch.tensor([len(t) for t in classes.values()], device=rows.device)
    return ClassData(rows, size.cumsum(0) - size, size, torch.zeros_like(size), tuple(classes))


def select_classes(data: ClassData, chosen: Tensor) -> ClassData:
    """The classes at the positions `chosen`, int64 `[class]`; the rows are shared."""
    names = tuple(data.names[i] for i in chosen.tolist())
    chosen = chosen.to(data.start.device)
    return ClassData(data.examples, data.start[chosen], data.size[chosen], data.turns[chosen], names)


def episodes(data: ClassData, *, ways: int, shots: int, query: int, rotate: bool = False) -> Sampler:
    """N-way K-shot tasks: `x` `[task, ways·shots, ...]` and `[task, ways·query, ...]`, labels `0 .. ways-1`.

    Classes and examples are drawn without replacement, so support and query never share an example. Which class gets
    which label, and the order of the examples, are shuffled in every task.

    Args:
        data: the classes to draw from; their device is where everything happens.
        ways: N, classes of a task.
        shots: K, support examples of each class.
        query: query examples of each class.
        rotate: turn each class of each task by 0, 90, 180 or 270 degrees at random (for square images).

    Raises:
        InputError: more ways than classes; a class with fewer than shots + query examples, by name; a number below 1.
    """
    check_counts("episodes", ways=ways, shots=shots, query=query)
    classes = len(data.names)
    if ways > classes:
        raise InputError(f"episodes(ways={ways}): the data has {classes} classes; expected ways <= {classes}")
    least, most = int(data.size.argmin()), int(data.size.max())
    if data.size[least] < shots + query:
        raise InputError(
            f"episodes(shots={shots}, query={query}): class {data.names[least]!r} has {int(data.size[least])} "
            f"examples; expected at least shots + query = {shots + query}; ask for fewer, or drop the class"
        )
    turning = rotate or bool(data.turns.any())
    if turning and (data.examples.ndim != 4 or data.examples.shape[-1] != data.examples.shape[-2]):
        raise InputError(
            f"episodes(rotate={rotate}): examples have shape {list(data.examples.shape[1:])}; expected square images "
            "[channel, size, size]"
        )

    def one(key: Tensor) -> Task:
        drawn = choice(fold(key, 0), classes, ways)
        rows = data.start[drawn][:, None] + choice(fold(key, 1), most, shots + query, valid=data.size[drawn])
        labels = torch.arange(ways, device=key.device)[:, None].expand(ways, shots + query)
        turns = data.turns[drawn] + (randint(fold(key, 2), 4, (ways,)) if rotate else 0)
        turns = (turns % 4)[:, None].expand_as(labels)

        def take(number: int, begin: int, end: int) -> Examples:
            order = permutation(fold(key, number), ways * (end - begin))
            row, label, turn = (t[:, begin:end].reshape(-1)[order] for t in (rows, labels, turns))
            x = data.examples[row]
            x = x.to(torch.float32) / 255.0 if x.dtype == torch.uint8 else x
            return Examples(_turned(x, turn) if turning else x, label)

        return Task(take(3, 0, shots), take(4, shots, shots + query), fold(key, 5))

    return sampler(one)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Each image `[example, channel, size, size]` by its own number of quarter turns."""
    turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)], 1)
    return turned.take_along_dim(turns[:, None, None, None, None], 1)[:, 0]
