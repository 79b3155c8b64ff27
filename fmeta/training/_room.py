"""What a run takes of memory before its first step, looked at before it is taken."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from fmeta.core import PartialSampler
from fmeta.execution._memory import check_room, running_out
from fmeta.training._batches import Sample
from fmeta.training._trainer import Trainer

_SMALLER = "expected a smaller network"


def initial_state(trainer: Trainer, key: Tensor) -> Any:
    """`trainer.init(key)`. Raises OutOfMemoryError where it does not fit."""
    call, what = f"fit({trainer.name})", "the network and its optimizer"
    if trainer.learner is not None:  # others may do more than draw numbers
        check_room(call, what, _SMALLER, key.device, trainer.init, key)
    with running_out(call, what, _SMALLER):
        return trainer.init(key)


def check_batches(sources: Iterable[Sample], key: Tensor, meta_batch: int, part: range) -> None:
    """Raises OutOfMemoryError where the tasks of a meta-step do not fit, for sources that draw by the key alone."""
    for sample in sources:
        if isinstance(sample, PartialSampler):
            check_room(*_drawing(meta_batch), key.device, sample.part, key, meta_batch, part)


def drawing(meta_batch: int) -> AbstractContextManager[None]:
    """Raises OutOfMemoryError where memory ends within."""
    return running_out(*_drawing(meta_batch))


def _drawing(meta_batch: int) -> tuple[str, str, str]:
    return f"fit(meta_batch={meta_batch})", "the tasks of a meta-step", "lower meta_batch, or the examples of a task"
