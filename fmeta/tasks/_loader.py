"""Tasks from a Python source: a DataLoader, a list, a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmeta.core import Examples, InputError, PythonSource, Task
from fmeta.core.tree import tree_map
from fmeta.tasks._sampler import Sampler, stacked


def from_loader(loader: Iterable[Any], *, batched: bool = True, to_task: Callable[[Any], Any] | None = None) -> Sampler:
    """A `Sampler` from a Python source of tasks, of which each call takes the next: a torch DataLoader, torchmeta's
    `BatchMetaDataLoader`, a list of tasks, a generator.

        >>> import fmeta, torch
        >>> def loader():
        ...     while True:
        ...         x = torch.randn(4, 6, 2)  # 4 tasks of 6 examples
        ...         yield {"train": (x, x.sum(-1)), "test": (x, x.sum(-1))}
        >>> fmeta.tasks.from_loader(loader())(fmeta.key(0), 4).support.x.shape
        torch.Size([4, 6, 2])

    A run with it is no function of its key: `fmeta.fit` calls it at every step, and a run that is resumed goes on with
    new draws, with a warning. On several processes each has a loader of its own and takes its part of what that gives.

    Args:
        loader: begun anew when it ends. An item is a `Task`, a dict of "train" and "test" (or "support" and "query"),
            or a pair of them; each of these is `Examples` or a pair `(x, y)` of tensors or NumPy arrays.
        batched: whether an item is a batch of tasks, `[task, example, ...]`; else it is one task, `[example, ...]`, and
            as many as are asked for are stacked.
        to_task: makes one of these of an item that is none.

    Raises:
        InputError: when it is called: an item that is no task; a loader that is empty, or that has ended and cannot
            begin anew.
    """
    if not isinstance(loader, Iterable):
        raise InputError(
            f"from_loader({type(loader).__name__}): expected something to iterate over, such as a DataLoader"
        )
    return _Loader(loader, batched, to_task)


class _Loader(PythonSource):
    def __init__(self, loader: Iterable[Any], batched: bool, to_task: Callable[[Any], Any] | None) -> None:
        self.loader, self.batched, self.to_task = loader, batched, to_task
        self._items: Iterator[Any] | None = None

    def __call__(self, key: Tensor, count: int) -> Task:
        if self.batched:
            return self._next(key)
        return stacked("from_loader(batched=False)", [self._next(key) for _ in range(count)])

    def _next(self, key: Tensor) -> Task:
        for _ in range(2):
            if self._items is None:
                self._items = iter(self.loader)
            try:
                item = next(self._items)
            except StopIteration:
                self._items = None
                continue
            return _task(item if self.to_task is None else self.to_task(item), key.device)
        raise InputError(
            f"from_loader({type(self.loader).__name__}): it has ended, and iterating it again gives nothing; expected "
            "one that begins anew, such as a DataLoader or a list, or a generator without an end"
        )


def _task(item: Any, device: torch.device) -> Task:
    if isinstance(item, Task):
        support, query, key = item
    elif isinstance(item, Mapping) and {"train", "test"} <= item.keys():
        support, query, key = item["train"], item["test"], ()
    elif isinstance(item, Mapping) and {"support", "query"} <= item.keys():
        support, query, key = item["support"], item["query"], ()
    elif isinstance(item, list | tuple) and len(item) == 2:
        (support, query), key = item, ()
    else:
        raise InputError(
            f"from_loader: an item is a {type(item).__name__}; expected a fmeta.Task, a dict of 'train' and 'test', or "
            "a pair (support, query), each of them (x, y); pass to_task= to make one of it"
        )
    tensors = Task(_examples("support", support), _examples("query", query), key)
    return tree_map(lambda leaf: _tensor(leaf).to(device), tensors)


def _examples(name: str, value: Any) -> Examples:
    if isinstance(value, Examples):
        return value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"from_loader: {name} is a {type(value).__name__}; expected a pair (x, y), or fmeta.Examples")
    return Examples(*value)


def _tensor(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor | np.ndarray | np.generic):
        raise InputError(f"from_loader: a task holds a {type(leaf).__name__}; expected tensors or NumPy arrays")
    return leaf if isinstance(leaf, Tensor) else torch.as_tensor(np.array(leaf))  # a copy, which may be written to
