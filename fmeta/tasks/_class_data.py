"""Classified examples: rows of one tensor or of a tree of them, class after class."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from fmeta.core import InputError, Tree
from fmeta.core.tree import named_leaves, tree_leaves, tree_map, tree_structure, tree_unflatten

Split = Literal["train", "validation", "test"]


class ClassData(NamedTuple):
    """Examples class after class. A class is a run of rows, seen through a number of quarter turns.

    Row `i` of every leaf of `examples` belongs to the same example. Leaves of bytes are drawn as float32, with the same
    values, or, where the data is said to be pictures and they have four axes, as 0..1. Every other leaf is drawn with
    its own dtype and values.
    """

    examples: Tree  # leaves [row, ...]
    start: Tensor  # int64 [class] the first row of each class
    size: Tensor  # int64 [class] its number of rows
    turns: Tensor  # int64 [class] quarter turns, counter-clockwise, that make it a class of its own
    names: tuple[str, ...]  # [class]
    pictures: bool  # whether leaves uint8 [row, channel, height, width] stand for 0..1

    def to(self, device: torch.device | str) -> "ClassData":
        """The same data on a device, where its episodes will be drawn."""
        tensors = tree_map(lambda t: t.to(device), (self.examples, self.start, self.size, self.turns))
        return ClassData._make((*tensors, self.names, self.pictures))


def class_data(classes: Mapping[str, Tree], *, pictures: bool | None = None) -> ClassData:
    """`ClassData` from named classes of any sizes. Each is a tensor or an array `[example, ...]`, or a tree of them.

        >>> import fmeta, torch
        >>> ids, mask = torch.zeros(6, 16, dtype=torch.int64), torch.ones(6, 16, dtype=torch.bool)
        >>> sports, trade = {"ids": ids, "mask": mask}, {"ids": ids[:4], "mask": mask[:4]}
        >>> data = fmeta.tasks.class_data({"sports": sports, "trade": trade})
        >>> data.names, data.size.tolist()
        (('sports', 'trade'), [6, 4])

    A list is a tree too: make one tensor of a list of examples with `torch.stack`.

    Args:
        classes: the examples of each class, by its name.
        pictures: whether bytes `[example, channel, height, width]` are pictures, which stand for 0..1, so that they are
            drawn divided by 255. False draws them with their own values (counts, boards, labels of pixels), as all
            other bytes always are, as float32. To be said where there are such leaves.

    Raises:
        InputError: no classes; an empty class; leaves of one class with unequal numbers of examples; classes that
            differ in their leaves, or in a leaf's shape or dtype; bytes of four axes of which `pictures` does not say
            what they are; no such bytes with `pictures`. The leaf is named.
    """
    if not classes:
        raise InputError("class_data: got no classes; expected a mapping from names to tensors [example, ...]")
    found = {name: _tensors("class_data", f"class {name!r}", examples) for name, examples in classes.items()}
    sizes = [_length(name, examples) for name, examples in found.items()]
    _check_alike(found)
    rows = tree_map(lambda *leaves: torch.cat(leaves), *found.values())
    return laid_out(rows, sizes, list(found), pictures=_are_pictures("class_data", rows, pictures))


def from_labels(
    x: Tree, y: Tensor | np.ndarray, names: Sequence[str] | None = None, *, pictures: bool | None = None
) -> ClassData:
    """`ClassData` from examples in any order and their labels.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.from_labels(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]), names=["cat", "dog"])
        >>> data.names, data.size.tolist()
        (('cat', 'dog'), [2, 3])

    Args:
        x: the examples of all classes, a tensor or an array `[row, ...]`, or a tree of them.
        y: labels from 0, integers `[row]`; those that do not occur are no classes.
        names: of the classes, by label, each with an example; None names a class by its label.
        pictures: whether bytes `[row, channel, height, width]` are pictures, as in `class_data`.

    Raises:
        InputError: not one integer label per example, a negative label, names that repeat or do not fit the labels;
            `pictures` that does not fit, or is missing.
    """
    x, y = _tensors("from_labels", "x", x), _numbers("from_labels", "y", y)
    shapes = {f"x.{path}" if path else "x": leaf.shape for path, leaf in named_leaves(x).items()}
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.ndim != 1 or not len(y) or not whole or any(shape[:1] != y.shape for shape in shapes.values()):
        came = ", ".join(f"{name} is {list(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"from_labels: {came}, y is {y.dtype} {list(y.shape)}; expected examples [row, ...] and an integer label "
            "for each, [row]"
        )
    labels, counts = (t.tolist() for t in y.to(torch.int64).unique(return_counts=True))
    if labels[0] < 0:
        raise InputError(f"from_labels: a label is {labels[0]}; expected 0 or more; leave out rows without a label")
    if names is not None and (list(range(len(names))) != labels or len(set(names)) < len(names)):
        raise InputError(
            f"from_labels: {len(names)} names, {len(set(names))} of them different, for {len(labels)} classes with "
            f"labels {labels[0]} to {labels[-1]}; expected one name for each label, from 0, and examples of each"
        )
    order = y.argsort(stable=True)
    rows = tree_map(lambda leaf: leaf[order.to(leaf.device)], x)
    told = _are_pictures("from_labels", rows, pictures)
    return laid_out(rows, counts, names or [str(label) for label in labels], pictures=told)


def laid_out(rows: Tree, counts: Sequence[int], names: Sequence[str], *, pictures: bool) -> ClassData:
    """`ClassData` from rows that stand class after class, and how many there are of each."""
    size = torch.tensor(counts, device=tree_leaves(rows)[0].device)
    return ClassData(rows, size.cumsum(0) - size, size, torch.zeros_like(size), tuple(names), pictures)


def select_classes(data: ClassData, chosen: Tensor) -> ClassData:
    """The classes at the positions `chosen`, int64 `[class]`; the rows are shared.

    >>> import fmeta, torch
    >>> data = fmeta.tasks.class_data({"ape": torch.zeros(2, 3), "bee": torch.ones(4, 3), "cat": torch.ones(5, 3)})
    >>> fmeta.tasks.select_classes(data, torch.tensor([2, 0])).names
    ('cat', 'ape')
    """
    names = tuple(data.names[i] for i in chosen.tolist())
    chosen = chosen.to(data.start.device)
    return data._replace(start=data.start[chosen], size=data.size[chosen], turns=data.turns[chosen], names=names)


def check_split(call: str, split: str) -> None:
    """One of the three splits."""
    if split not in get_args(Split):
        raise InputError(f"{call}(split={split!r}): expected 'train', 'validation' or 'test'")


def check_turns(call: str, data: ClassData, rotate: bool = False) -> bool:
    """Whether examples are to be turned, which takes square images and nothing beside them."""
    turning = rotate or bool(data.turns.any())
    shapes = {path: list(leaf.shape[1:]) for path, leaf in named_leaves(data.examples).items()}
    if turning and not (len(shapes) == 1 and all(len(s) == 3 and s[1] == s[2] for s in shapes.values())):
        came = ", ".join(f"{path} {shape}" if path else f"{shape}" for path, shape in shapes.items())
        raise InputError(f"{call}: examples have shape {came}; expected square images [channel, size, size] alone")
    return turning


def look_up(data: ClassData, rows: Tensor, turns: Tensor | None) -> Tree:
    """The examples in these rows, pictures as 0..1, each by its own number of quarter turns (None: as they are)."""

    def drawn(leaf: Tensor) -> Tensor:
        x = leaf[rows]
        if leaf.dtype == torch.uint8:  # which no network takes, and whose sums and differences wrap around
            x = x.to(torch.float32)
            x = x / 255.0 if data.pictures and leaf.ndim == 4 else x
        return x if turns is None else _turned(x, turns)

    return tree_map(drawn, data.examples)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Each image `[example, channel, size, size]` by its own number of quarter turns."""
    turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)], 1)
    return turned.take_along_dim(turns[:, None, None, None, None], 1)[:, 0]


def _tensors(call: str, what: str, examples: Tree) -> Tree:
    """The same tree with a tensor for every leaf."""
    leaves = [_numbers(call, what + _at(path), leaf) for path, leaf in named_leaves(examples).items()]
    if not leaves:
        raise InputError(f"{call}: {what} has no leaves; expected a tensor [example, ...], or a tree of them")
    return tree_unflatten(leaves, tree_structure(examples))


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


def _length(name: str, examples: Tree) -> int:
    """How many examples a class has: as many in every leaf, at least one."""
    lengths: dict[str, int] = {}
    for path, leaf in named_leaves(examples).items():
        if leaf.ndim == 0:
            raise InputError(f"class_data: class {name!r}{_at(path)} is a scalar; expected [example, ...]")
        lengths[path] = len(leaf)
    if len(set(lengths.values())) > 1:
        came = ", ".join(f"{count} in{_at(path)}" for path, count in lengths.items())
        raise InputError(
            f"class_data: class {name!r} has examples: {came}; expected a row of every leaf for each example"
        )
    count = next(iter(lengths.values()))
    if not count:
        raise InputError(f"class_data: class {name!r} has no examples; leave it out")
    return count


def _check_alike(classes: Mapping[str, Tree]) -> None:
    """The same leaves in all classes, of the same shape and dtype."""
    (first, mine), *others = classes.items()
    kinds = {path: f"{leaf.dtype} {list(leaf.shape[1:])}" for path, leaf in named_leaves(mine).items()}
    for name, theirs in others:
        if tree_structure(mine) != tree_structure(theirs):
            leaves = [", ".join(path or "a tensor" for path in named_leaves(tree)) for tree in (mine, theirs)]
            raise InputError(
                f"class_data: class {first!r} has the leaves {leaves[0]}, {name!r} {leaves[1]}; expected trees of one "
                "structure, their keys in one order"
            )
        for path, leaf in named_leaves(theirs).items():
            kind = f"{leaf.dtype} {list(leaf.shape[1:])}"
            if kind != kinds[path]:
                raise InputError(
                    f"class_data: examples differ in shape or dtype:{_at(path)} {kinds[path]} in class {first!r}, "
                    f"{kind} in {name!r}; expected one kind"
                )


def _are_pictures(call: str, rows: Tree, told: bool | None) -> bool:
    """What the caller says of bytes with four axes, which may be pictures or numbers."""
    bytes_of_four = {
        path: list(leaf.shape)
        for path, leaf in named_leaves(rows).items()
        if leaf.dtype == torch.uint8 and leaf.ndim == 4
    }
    if told is None and bytes_of_four:
        path, shape = next(iter(bytes_of_four.items()))
        raise InputError(
            f"{call}(pictures=None):{_at(path)} uint8 {shape} may be pictures or numbers; expected to be told; say "
            "pictures=True for pictures, which are drawn divided by 255, or pictures=False for numbers that stay as "
            "they are"
        )
    if told and not bytes_of_four:
        came = ", ".join(f"{path} {t.dtype} {list(t.shape)}".strip() for path, t in named_leaves(rows).items())
        raise InputError(
            f"{call}(pictures=True): got {came}; expected pictures as uint8 [example, channel, height, width]; give "
            "them a channel axis (x[:, None]), or leave pictures out where they are in 0..1 already"
        )
    return bool(told)


def _at(path: str) -> str:
    """Which leaf, where there are several."""
    return f" leaf {path!r}" if path else ""
