"""The classes behind the labels: how well each is recognised, and which is taken for which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import InputError
from fmeta.core._checks import check_counts

TaskClasses = tuple[Tensor, Sequence[str]]  # int64 [task, way] the class of each label, the names of all classes


class ClassCounts(NamedTuple):
    """How often query examples of one class were taken for another, in all tasks, after the last of the steps."""

    names: tuple[str, ...]
    pairs: Tensor  # int64 [pair, 2] class and predicted class that occurred together; -1 is a prediction of NaN
    counts: Tensor  # int64 [pair]

    def examples(self) -> Tensor:
        """Query examples of each class, int64 `[class]`."""
        return self._sums(self.pairs[:, 0], self.counts)

    def recall(self) -> Tensor:
        """The share of its examples that was recognised, float64 `[class]`; NaN for a class without examples."""
        return self._right().double() / self.examples()

    def precision(self) -> Tensor:
        """The share that was right when the class was predicted, float64 `[class]`; NaN for one never predicted."""
        named = self.pairs[:, 1] >= 0
        return self._right().double() / self._sums(self.pairs[named, 1], self.counts[named])

    def confusion(self) -> Tensor:
        """int64 `[class, predicted class]`, without the predictions of NaN."""
        size, named = len(self.names), self.pairs[:, 1] >= 0
        confusion = torch.zeros(size, size, dtype=torch.int64)
        return confusion.index_put_(tuple(self.pairs[named].T), self.counts[named])

    def confused(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The pairs of different classes most often confused: class, what it was taken for, how often."""
        wrong = (self.pairs[:, 0] != self.pairs[:, 1]) & (self.pairs[:, 1] >= 0)
        order = self.counts[wrong].argsort(descending=True, stable=True)[:most]
        pairs, counts = self.pairs[wrong][order].tolist(), self.counts[wrong][order].tolist()
        return [(self.names[a], self.names[b], count) for (a, b), count in zip(pairs, counts, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for JSON; a precision of a class that was never predicted is None."""
        columns = [t.tolist() for t in (self.examples(), self.recall(), self.precision())]
        of_class = {
            name: {"examples": examples, "recall": recall, "precision": precision if precision == precision else None}
            for name, examples, recall, precision in zip(self.names, *columns, strict=True)
            if examples
        }
        return {"classes": of_class, "confused": self.confused()}

    def _right(self) -> Tensor:
        right = self.pairs[:, 0] == self.pairs[:, 1]
        return self._sums(self.pairs[right, 0], self.counts[right])

    def _sums(self, at: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(len(self.names), dtype=torch.int64).index_add_(0, at, values)


def check_classes(classes: TaskClasses, tasks: int, ways: int | None) -> int:
    """Returns the number of ways."""
    index, names = classes
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 2 or len(index) != tasks:
        came = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise InputError(
            f"evaluate(classes=…): got {came} for {tasks} tasks; expected int64 [{tasks}, way] and the names of all "
            "classes; draw them by the key and count of the tasks: (sample.classes(key, count), sample.names)"
        )
    check_counts("evaluate(classes=…)", least=2, ways=index.shape[1])
    if ways not in (None, index.shape[1]):
        raise InputError(f"evaluate(ways={ways}): classes has {index.shape[1]} ways; expected the same; leave ways out")
    low, high = (int(v) for v in index.aminmax())
    if low < 0 or high >= len(names):
        raise InputError(
            f"evaluate(classes=…): classes run from {low} to {high} with {len(names)} names; expected positions in the "
            "names"
        )
    return index.shape[1]


def count_classes(truth: Tensor, predicted: Tensor, classes: TaskClasses) -> ClassCounts:
    """From labels `[task, example]`, in which -1 is no label (see `Judged`)."""
    index, names = classes
    index = torch.cat([index.cpu(), torch.full((len(index), 1), -1)], 1)  # so that label -1 stands for class -1
    pairs = torch.stack([index.gather(1, label % index.shape[1]) for label in (truth, predicted)], -1)
    kinds, counts = pairs[truth >= 0].unique(dim=0, return_counts=True)
    return ClassCounts(tuple(names), kinds, counts)
