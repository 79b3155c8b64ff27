"""Classes cut into those for training, validation and test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch

from fmeta.core import InputError, fold, key, permutation
from fmeta.core._checks import check_counts
from fmeta.tasks._class_data import ClassData, Split, check_split, select_classes

SHARES = (0.6, 0.2, 0.2)


def split_classes(
    data: ClassData, split: Split, *, shares: Sequence[float] = SHARES, ways: int = 1, seed: int = 0
) -> ClassData:
    """The classes of one split, where the data comes without any: no class is in two of the three.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.class_data({f"word {i}": torch.randn(20, 16) for i in range(30)})
        >>> [len(fmeta.tasks.split_classes(data, split).names) for split in ("train", "validation", "test")]
        [18, 6, 6]

    The classes are shuffled by the seed and cut by the shares, so that the same classes and seed give the same splits
    on every machine. Within a split they keep the order of `data`; the rows are shared.

    Args:
        data: all classes.
        split: "train", "validation" or "test".
        shares: of the classes, for the three splits in this order; their sum counts as the whole.
        ways: the least number of classes of each split, which is taken from the largest where a share is too small.
        seed: decides which class goes where.

    Raises:
        InputError: fewer than three times `ways` classes; shares that are not three positive numbers; classes that are
            quarter turns of others, which would be trained on and tested on at once.
    """
    check_split("split_classes", split)
    if len(data.start.unique()) < len(data.names):
        raise InputError(
            "split_classes: some classes are the same examples, turned, and might go to different splits; expected "
            "classes with examples of their own; split them first, then turn them"
        )
    chosen = cut("split_classes", len(data.names), shares, ways, seed)[split]
    return select_classes(data, torch.tensor(chosen))


def cut(call: str, count: int, shares: Sequence[float], ways: int, seed: int) -> dict[Split, list[int]]:
    """The numbers `0 .. count-1` of each split, ascending."""
    check_counts(call, ways=ways)
    if len(shares) != 3 or not all(0.0 < share < math.inf for share in shares):
        raise InputError(
            f"{call}(shares={tuple(shares)}): expected three positive numbers, for train, validation, test"
        )
    if count < 3 * ways:
        raise InputError(
            f"{call}(ways={ways}): there are {count} classes; expected at least {3 * ways}, {ways} for each of train, "
            "validation and test; bring more classes, or ask for fewer ways"
        )
    order = permutation(fold(key(seed), "splits of classes"), count).tolist()
    sizes = _sizes(count, shares, ways)
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    return {s: sorted(order[end - n : end]) for s, n, end in zip(get_args(Split), sizes, ends, strict=True)}


def _sizes(count: int, shares: Sequence[float], least: int) -> list[int]:
    """Whole numbers in proportion (those with the largest remainders are rounded up), none below `least`."""
    exact = [count * share / sum(shares) for share in shares]
    sizes = [int(size) for size in exact]
    for i in sorted(range(3), key=lambda i: sizes[i] - exact[i])[: count - sum(sizes)]:
        sizes[i] += 1
    while min(sizes) < least:
        sizes[sizes.index(min(sizes))] += 1
        sizes[sizes.index(max(sizes))] -= 1
    return sizes
