"""What a training loop tells: means since the last time, rates, and where the time went."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fmeta.core import Info, Tree
from fmeta.core.tree import tree_leaves


class Logger(Protocol):
    """Takes what a run tells: the step it has reached, and values by name, numbers or matplotlib figures.

    `fit` calls it as often as `Logging` says, and wherever it validates or saves.
    """

    def __call__(self, step: int, values: Mapping[str, Any]) -> None: ...


class Logging(NamedTuple):
    """How often `fit` looks at the device and writes a line of metrics, and who is told.

    fmeta.fit(..., logging=fmeta.Logging(every=500, loggers=[fmeta.tensorboard("runs/a/tensorboard")]))
    """

    every: int = 100  # meta-steps
    loggers: Sequence[Logger] = ()  # called with the step and the values of each line


class Window:
    """The steps since the last line of metrics. Their values stay on the device until it is closed."""

    def __init__(self, before: Mapping[int, Mapping[str, float]]) -> None:
        self.before = dict(before)  # steps of this window that an earlier process took
        self.rows = dict[int, dict[str, Tensor]]()
        self.closed = 0  # the step of the last line; what it told of goes when the next step comes
        self.tasks, self.flops = 0, 0.0
        self.spent = defaultdict[str, float](float)
        self.began = self.opened = self.last = time.perf_counter()

    def lap(self, what: str) -> None:
        """The time since the last lap was spent on this."""
        now = time.perf_counter()
        self.spent[what] += now - self.last
        self.last = now

    def add(self, at: int, info: Info, tasks: int, flops: float) -> None:
        if self.closed in self.rows:
            self.before.clear()
            self.rows.clear()
        self.rows[at] = {
            "loss": info.loss.detach(),
            **{name: values.detach().mean() for name, values in info.metrics.items()},
            **({"gradient_norm": info.gradient_norm} if isinstance(info.gradient_norm, Tensor) else {}),
            **({"skipped": info.skipped.sum()} if isinstance(info.skipped, Tensor) else {}),
        }
        self.tasks += tasks
        self.flops += flops

    def values(self) -> dict[str, float]:
        """Means over the steps: what a run computes, the same bits every time."""
        rows, found = list(self._told().values()), dict[str, float]()
        for name in _names(rows):
            values = [row[name] for row in rows if name in row]
            found[name] = int(sum(values)) if name == "skipped" else sum(values) / len(values)
        return found

    def close(self, at: int) -> dict[str, float]:
        """Rates of sampling and step, and shares of the time since the last log; begins anew after step `at`."""
        passed = max(self.last - self.opened, 1e-9)
        training = max(self.spent["sampling"] + self.spent["step"], 1e-9)
        found = {
            "time/seconds": round(self.last - self.began, 3),
            "time/tasks_per_second": self.tasks / training,
        }
        if self.flops:
            found["time/flop_per_second"] = self.flops / training
        found |= {f"time/{what}": round(seconds / passed, 4) for what, seconds in self.spent.items()}
        self.spent.clear()
        self.tasks, self.flops, self.opened, self.closed = 0, 0.0, self.last, at
        return found

    def left(self, at: int) -> dict[int, Mapping[str, float]]:
        """The steps up to `at` of which no line up to there tells: what a checkpoint within a window must keep."""
        since = self.closed if self.closed <= at else 0
        return {step: row for step, row in self._told().items() if since < step <= at}

    def _told(self) -> dict[int, Mapping[str, float]]:
        found: dict[int, dict[str, float]] = {step: {} for step in self.rows}
        for name in _names(self.rows.values()):
            steps = [step for step, row in self.rows.items() if name in row]
            values = torch.stack([self.rows[step][name] for step in steps])  # one copy from the device
            for step, value in zip(steps, values.tolist(), strict=True):
                found[step][name] = value
        return self.before | found


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of all rows: two phases may report different ones."""
    return list(dict.fromkeys(name for row in rows for name in row))


def learned_rates(meta: Tree) -> dict[str, float]:
    """Mean and range of the inner rates that a learner learns, those it calls `lr`."""
    rates = tree_leaves(getattr(meta, "lr", ()))
    if not rates:
        return {}
    every = torch.cat([rate.detach().reshape(-1) for rate in rates])
    return {"lr/mean": every.mean().item(), "lr/min": every.min().item(), "lr/max": every.max().item()}
