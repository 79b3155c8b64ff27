"""Intervals of means: by resampling tasks, and by Student's t over few runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from fmeta.core import InputError, fold, randint
from fmeta.core import key as key_of
from fmeta.core._checks import check_counts

_BLOCK = 1 << 20  # numbers drawn at a time


def bootstrap_means(values: Tensor, key: Tensor | None = None, resamples: int = 10_000) -> Tensor:
    """Means over tasks drawn with replacement, `[task, ...]` -> float64 `[resample, ...]` (Efron 1979).

    The draws depend on the key and the number of tasks alone, so that different figures of the same tasks are resampled
    alike. None is `key(0)`. Raises InputError for fewer than two tasks, whose resamples show no spread.
    """
    if len(values) < 2:
        raise InputError(f"bootstrap_means: of {len(values)} task; expected at least 2, because one shows no spread")
    check_counts("bootstrap_means", resamples=resamples)
    key = key_of(0) if key is None else key.cpu()
    tasks, flat = len(values), values.double().reshape(len(values), -1)
    rows = max(1, _BLOCK // tasks)
    means = []
    for block, begin in enumerate(range(0, resamples, rows)):
        drawn = randint(fold(key, block), tasks, (min(rows, resamples - begin), tasks))
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
        means.append(times @ flat / tasks)
    return torch.cat(means).reshape(-1, *values.shape[1:])


def percentiles95(resampled: Tensor) -> Tensor:
    """The 2.5% and 97.5% points, `[resample, ...]` -> `[2, ...]`."""
    return resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype), 0)


def t_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of a few numbers' mean; NaN for fewer than two, or infinite ones."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return _t975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def _t975(freedom: int) -> float:
    """The 97.5% point of Student's t, by bisection."""
    low, high = 1.9, 13.0  # of infinitely many degrees of freedom, of one
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _t_within(t: float, freedom: int) -> float:
    """P(|T| < t) (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for n in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (n - 1) / n * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
