"""What a training loop tells: means since the last time, rates, and where the time went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fmeta.core import Info, Tree


class Logger(Protocol):
    """Takes what a run tells: the step it has reached, and values by name, numbers or matplotlib figures.

    `fit` calls it every `log_every` steps, and wherever it validates or saves.
    """

    def __call__(self, step: int, values: Mapping[str, Any]) -> None: ...


class Window:
    """The steps since the last log. Their values stay on the device until it is closed."""

    def __init__(self) -> None:
        self.infos = list[Info]()
        self.tasks, self.flops = 0, 0.0
        self.spent = defaultdict[str, float](float)
        self.began = self.opened = self.last = time.perf_counter()

    def lap(self, what: str) -> None:
        """The time since the last lap was spent on this."""
        now = time.perf_counter()
        self.spent[what] += now - self.last
        self.last = now

    def add(self, info: Info, tasks: int, flops: float) -> None:
        self.infos.append(info)
        self.tasks += tasks
        self.flops += flops

    def values(self) -> dict[str, float]:
        """Means over the steps: what a run computes, the same bits every time."""
        infos, found = self.infos, dict[str, float]()
        if not infos:
            return found
        found["loss"] = _mean([i.loss for i in infos])
        for name in dict.fromkeys(name for i in infos for name in i.metrics):  # two phases may report different ones
            found[name] = _mean([i.metrics[name].mean() for i in infos if name in i.metrics])
        found["gradient_norm"] = _mean([i.gradient_norm for i in infos])
        if isinstance(infos[0].skipped, Tensor):
            found["skipped"] = int(torch.stack([i.skipped.sum() for i in infos]).sum())
        return found

    def close(self) -> dict[str, float]:
        """Rates of sampling and step, and shares of the time since the last log; begins anew."""
        passed = max(self.last - self.opened, 1e-9)
        training = max(self.spent["sampling"] + self.spent["step"], 1e-9)
        found = {
            "time/seconds": round(self.last - self.began, 3),
            "time/tasks_per_second": self.tasks / training,
            "time/flop_per_second": self.flops / training,
        }
        found |= {f"time/{what}": round(seconds / passed, 4) for what, seconds in self.spent.items()}
        self.infos.clear()
        self.spent.clear()
        self.tasks, self.flops, self.opened = 0, 0.0, self.last
        return found


def learned_rates(meta: Tree) -> dict[str, float]:
    """Mean and range of the inner rates that a learner learns, those it calls `lr`."""
    rates = tree_leaves(getattr(meta, "lr", ()))
    if not rates:
        return {}
    every = torch.cat([rate.detach().reshape(-1) for rate in rates])
    return {"lr/mean": every.mean().item(), "lr/min": every.min().item(), "lr/max": every.max().item()}


def _mean(values: list[Tensor]) -> float:
    return torch.stack(values).mean().item()
