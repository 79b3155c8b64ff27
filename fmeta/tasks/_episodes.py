"""N-way K-shot episodes from class-major data on the device: pure index arithmetic from a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Task, choice, fold, permutation, randint, split
from fmeta.core._checks import check_counts
from fmeta.operators._over_tasks import over_tasks
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


@dataclass(frozen=True)
class Episodes:
    """A `Sampler` of tasks whose labels are shuffled, and what the labels stand for."""

    sample: Sampler
    classes: Callable[[Tensor, int], Tensor]  # key, count -> int64 [task, way], positions in `names`, of the same draw
    names: tuple[str, ...]

    def __call__(self, key: Tensor, count: int) -> Task:
        return self.sample(key, count)

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        return self.sample.part(key, count, numbers)  # type: ignore[attr-defined]


def class_data(classes: Mapping[str, Tensor | np.ndarray]) -> ClassData:
    """`ClassData` from named classes of any sizes, each `[example, ...]`.

    Raises InputError for no classes, an empty class, or examples of unequal shape or dtype.
    """
    if not classes:
        raise InputError("class_data: got no classes; expected a mapping from names to tensors [example, ...]")
    found = {name: _numbers("class_data", f"class {name!r}", values) for name, values in classes.items()}
    if any(t.ndim == 0 for t in found.values()):
        raise InputError("class_data: got a scalar for a class; expected [example, ...]")
    kind = {(tuple(t.shape[1:]), t.dtype) for t in found.values()}
    if len(kind) > 1:
        raise InputError(f"class_data: examples differ in shape or dtype: {sorted(map(str, kind))}; expected one kind")
    empty = [name for name, t in found.items() if not len(t)]
    if empty:
        raise InputError(f"class_data: class {empty[0]!r} has no examples; leave it out")
    return laid_out(torch.cat(list(found.values())), [len(t) for t in found.values()], list(found))


def from_labels(x: Tensor | np.ndarray, y: Tensor | np.ndarray, names: Sequence[str] | None = None) -> ClassData:
    """`ClassData` from examples `[row, ...]` in any order and their labels, integers `[row]`.

    Args:
        x: the examples of all classes.
        y: labels from 0; those that do not occur are no classes.
        names: of the classes, by label, each with an example; None names a class by its label.

    Raises:
        InputError: not one integer label per example, a negative label, names that repeat or do not fit the labels.
    """
    x, y = _numbers("from_labels", "x", x), _numbers("from_labels", "y", y)
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if x.ndim == 0 or not len(x) or y.shape != x.shape[:1] or not whole:
        raise InputError(
            f"from_labels: x is {list(x.shape)}, y is {y.dtype} {list(y.shape)}; expected examples [row, ...] and an "
            "integer label for each, [row]"
        )
    labels, counts = (t.tolist() for t in y.to(torch.int64).unique(return_counts=True))
    if labels[0] < 0:
        raise InputError(f"from_labels: a label is {labels[0]}; expected 0 or more; leave out rows without a label")
    if names is not None and (list(range(len(names))) != labels or len(set(names)) < len(names)):
        raise InputError(
            f"from_labels: {len(names)} names, {len(set(names))} of them different, for {len(labels)} classes with "
            f"labels {labels[0]} to {labels[-1]}; expected one name for each label, from 0, and examples of each"
        )
    return laid_out(x[y.argsort(stable=True).to(x.device)], counts, names or [str(label) for label in labels])


def _numbers(call: str, what: str, values: Tensor | np.ndarray) -> Tensor:
    """Tensors as they are, arrays of any layout as tensors."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufc":
        return torch.tensor(np.asarray(values, values.dtype.newbyteorder("="), order="C"))
    came = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
    raise InputError(
        f"{call}: {what} is {came}; expected a tensor or an array of numbers, all examples of one shape; bring ragged "
        "examples to one shape first"
    )


def laid_out(rows: Tensor, counts: Sequence[int], names: Sequence[str]) -> ClassData:
    """`ClassData` from rows that stand class after class, and how many there are of each."""
    size = torch.tensor(counts, device=rows.device)
    return ClassData(rows, size.cumsum(0) - size, size, torch.zeros_like(size), tuple(names))


def select_classes(data: ClassData, chosen: Tensor) -> ClassData:
    """The classes at the positions `chosen`, int64 `[class]`; the rows are shared."""
    names = tuple(data.names[i] for i in chosen.tolist())
    chosen = chosen.to(data.start.device)
    return ClassData(data.examples, data.start[chosen], data.size[chosen], data.turns[chosen], names)


def episodes(data: ClassData, *, ways: int, shots: int, query: int, rotate: bool = False) -> Episodes:
    """N-way K-shot tasks: `x` `[task, ways·shots, ...]` and `[task, ways·query, ...]`, labels `0 .. ways-1`.

    Classes and examples are drawn without replacement, so support and query never share an example. Which class gets
    which label, and the order of the examples, are shuffled in every task; `.classes(key, count)` says which it was.

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
    turning = check_turns(f"episodes(rotate={rotate})", data, rotate)

    def draw(key: Tensor) -> Tensor:
        return choice(fold(key, 0), classes, ways)

    def one(key: Tensor) -> Task:
        drawn = draw(key)
        rows = data.start[drawn][:, None] + choice(fold(key, 1), most, shots + query, valid=data.size[drawn])
        labels = torch.arange(ways, device=key.device)[:, None].expand(ways, shots + query)
        turns = data.turns[drawn] + (randint(fold(key, 2), 4, (ways,)) if rotate else 0)
        turns = (turns % 4)[:, None].expand_as(labels)

        def take(number: int, begin: int, end: int) -> Examples:
            order = permutation(fold(key, number), ways * (end - begin))
            row, label, turn = (t[:, begin:end].reshape(-1)[order] for t in (rows, labels, turns))
            return Examples(look_up(data, row, turn if turning else None), label)

        return Task(take(3, 0, shots), take(4, shots, shots + query), fold(key, 5))

    return Episodes(sampler(one), lambda key, count: over_tasks(draw, shared=())(split(key, count)), data.names)


def check_turns(call: str, data: ClassData, rotate: bool = False) -> bool:
    """Whether examples are to be turned, which takes square images."""
    turning = rotate or bool(data.turns.any())
    if turning and (data.examples.ndim != 4 or data.examples.shape[-1] != data.examples.shape[-2]):
        raise InputError(
            f"{call}: examples have shape {list(data.examples.shape[1:])}; expected square images [channel, size, size]"
        )
    return turning


def look_up(data: ClassData, rows: Tensor, turns: Tensor | None) -> Tensor:
    """The examples in these rows, uint8 as 0..1, each by its own number of quarter turns (None: as they are)."""
    x = data.examples[rows]
    x = x.to(torch.float32) / 255.0 if x.dtype == torch.uint8 else x
    return x if turns is None else _turned(x, turns)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Each image `[example, channel, size, size]` by its own number of quarter turns."""
    turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)], 1)
    return turned.take_along_dim(turns[:, None, None, None, None], 1)[:, 0]
