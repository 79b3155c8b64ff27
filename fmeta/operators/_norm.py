"""Normalisation written out.

In torch 2.11 to 2.13 the second derivative of `layer_norm`, `batch_norm` and `instance_norm` is silently wrong where
`torch.func.grad` surrounds `vmap` (as in a meta-gradient over tasks): inside vmap the backward is taken apart into
formulas that read the saved mean and scale, whose own derivatives are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fmeta.core import InputError


def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over `axes`, which stay as axes of size 1.

    Both in one pass, after the shift by one of the values, which keeps the difference of squares exact where the mean
    is large against the spread.
    """
    x = at_least_float32(x)
    shift = x.detach()
    for axis in axes:
        shift = shift.narrow(axis, 0, 1)
    moved, count = x - shift, math.prod([x.shape[axis] for axis in axes])
    # sums, because the derivative of a mean is written out in a layout of its own, and what follows takes that over
    mean = moved.sum(axes, keepdim=True) / count
    variance = (moved * moved).sum(axes, keepdim=True) / count - mean * mean
    return mean + shift, variance.clamp_min(0.0)


def normalise(x: Tensor, axes: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x − mean)/√(var + eps)·weight + bias, mean and (biased) variance over `axes`."""
    return rescale(x, *moments(x, axes), weight, bias, eps)


def rescale(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    factor = (variance + eps).rsqrt()
    y = (at_least_float32(x) - mean) * (factor if weight is None else factor * weight)
    return (y if bias is None else y + bias).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Batch norm with the statistics of the present batch, `[example, channel, ...]`.

    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167. Raises InputError for one value per channel, as torch does.
    """
    if x.shape[0] * math.prod(x.shape[2:]) <= 1:
        raise InputError(
            f"batch norm by the batch's statistics: {len(x)} example, {list(x.shape)}, which is its own mean, so that "
            "every input would get the same prediction; expected more examples; or norm='frozen' or 'group'"
        )
    return normalise(x, [0, *range(2, x.ndim)], by_channel(weight, x), by_channel(bias, x), eps)


def by_channel(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    if parameter is None:
        return None
    if parameter.shape != x.shape[1:2]:
        raise InputError(
            f"norm: a parameter or statistic {list(parameter.shape)} for {x.shape[1]} channels of {list(x.shape)}; "
            f"expected [{x.shape[1]}]"
        )
    return parameter.view((-1,) + (1,) * (x.ndim - 2))


# with torch's signatures


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return normalise(input, _last(input, normalized_shape), weight, bias, eps)


def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = moments(input, _last(input, normalized_shape))
    return rescale(input, mean, variance, weight, bias, eps), mean, (variance + eps).rsqrt()


def functional_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training and running_mean is not None and running_var is not None:
        mean, variance = (by_channel(t, input) for t in (running_mean, running_var))
        assert mean is not None
        assert variance is not None
        return rescale(input, mean, variance, by_channel(weight, input), by_channel(bias, input), eps)
    if not training:
        raise InputError("batch_norm(training=False): no running statistics; expected both, or training=True")
    _refuse_running("batch_norm", running_mean, running_var)
    return batch_norm(input, weight, bias, eps)


def torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return functional_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y = functional_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training:
        return y, input.new_empty(0), input.new_empty(0)  # as torch has it
    mean, variance = moments(input, [0, *range(2, input.ndim)])
    return y, mean.flatten(), (variance + eps).rsqrt().flatten()


def functional_instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return functional_batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _refuse_running("instance_norm", running_mean, running_var)
    if math.prod(input.shape[2:]) == 1:
        raise InputError(f"instance_norm: one value per channel, {list(input.shape)}; expected more, to take a mean of")
    return normalise(input, list(range(2, input.ndim)), by_channel(weight, input), by_channel(bias, input), eps)


def torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return functional_instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _last(x: Tensor, shape: Sequence[int]) -> list[int]:
    if not len(shape) or tuple(x.shape[-len(shape) :]) != tuple(shape):
        raise InputError(
            f"layer_norm(normalized_shape={list(shape)}): the input is {list(x.shape)}, which ends otherwise"
        )
    return list(range(-len(shape), 0))


def _refuse_running(call: str, *statistics: Tensor | None) -> None:
    if any(t is not None for t in statistics):
        raise InputError(
            f"{call}(training=True): it moves running statistics, which a pure function cannot; expected a layer of "
            "torch's in its place, of which from_module(norm=…) makes a pure one; or statistics of the batch alone"
        )
