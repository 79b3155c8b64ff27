"""Sinusoid regression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmeta.core import Examples, PartialSampler, Task, fold, uniform
from fmeta.core._checks import check_counts
from fmeta.tasks._sampler import TaskSampler


def sinusoid(*, shots: int = 10, query: int = 10, dtype: torch.dtype = torch.float32) -> PartialSampler:
    """Sine waves y = A·sin(x − φ) with A ~ U[0.1, 5], φ ~ U[0, π], x ~ U[−5, 5] (Finn et al. 2017, section 5.1,
    https://arxiv.org/abs/1703.03400). `x` and `y` are `[task, example, 1]`.

    >>> import fmeta
    >>> fmeta.tasks.sinusoid(shots=5)(fmeta.key(0), 25).support.x.shape
    torch.Size([25, 5, 1])
    """
    check_counts("sinusoid", shots=shots, query=query)

    def one(key: Tensor) -> Task:
        u = uniform(key, (2 + shots + query,), dtype=dtype)
        amplitude, phase, x = 0.1 + 4.9 * u[0], math.pi * u[1], 10.0 * u[2:, None] - 5.0
        y = amplitude * torch.sin(x - phase)
        return Task(Examples(x[:shots], y[:shots]), Examples(x[shots:], y[shots:]), fold(key, 0))

    return TaskSampler(one)
