"""Normalisation in the built-in networks: whose statistics, and FiLM after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core import InContext, InputError, Model, Tree
from fmeta.core._checks import nearest
from fmeta.models._layers import Params, init_film, modulate, with_linear_head
from fmeta.operators._norm import batch_norm, moments, rescale
from fmeta.operators._pool import max_pool2x2

Norm = Literal["batch", "frozen", "support", "task", "group", "none"]
_EPS = 1e-5


class Normalising(NamedTuple):
    """How one forward pass normalises `[example, channel, height, width]`."""

    policy: Norm
    rows: int = 0  # how many of the examples, the first ones, are the support set
    weight: Tree = ()  # [row] of these
    embedding: Tensor | None = None  # [embedding] what FiLM modulates by
    seen: dict[str, Tensor] | None = None  # where calibration collects statistics


def check_norm(call: str, norm: str) -> None:
    if norm not in get_args(Norm):
        raise InputError(f"{call}(norm={norm!r}): unknown policy; {nearest(norm, get_args(Norm))}")


def opened(call: str, x: Tree, norm: Norm, embedding: int | None) -> tuple[Tensor, Normalising]:
    """What a network was given, as one tensor (the support set first where the policy wants it) and the rest."""
    x, told = (x, None) if embedding is None else told_apart(call, x, embedding)
    if norm not in ("support", "task"):
        return x, Normalising(norm, embedding=told)
    if not isinstance(x, InContext):
        raise InputError(
            f"{call}(norm={norm!r}): x is {_came(x)}; expected the support set beside it, because the statistics are "
            "the support set's; wrap the learner in fmeta.in_context(learner)"
        )
    return torch.cat([x.support, x.x]), Normalising(norm, len(x.support), x.weight, told)


def told_apart(call: str, x: Tree, embedding: int) -> tuple[Tree, Tensor]:
    """Input and embedding of a network with FiLM."""
    if not (isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], Tensor) and x[1].shape == (embedding,)):
        raise InputError(f"{call}(film={embedding}): x is {_came(x)}; expected (x, embedding [{embedding}])")
    return x


def normalising(
    call: str,
    init: Callable[[Tensor], Params],
    encode: Callable[[Params, Tensor, Normalising], Tensor],
    headed: bool,
    norm: Norm,
    embedding: int | None,
) -> Model:
    """The `Model` of an encoder that is told how to normalise; with a linear layer `head` behind it, where `headed`."""

    def trunk(params: Params, x: Tree) -> Tensor:
        examples, how = opened(call, x, norm, embedding)
        return encode(params, examples, how)[how.rows :]

    def calibrate(params: Params, x: Tensor) -> Params:
        seen: dict[str, Tensor] = {}
        encode(params, x, Normalising("batch", seen=seen))
        return params | seen

    model = with_linear_head(init, trunk) if headed else Model(init, trunk)
    return model._replace(calibrate=calibrate if norm == "frozen" and embedding is None else None)


def _came(x: Tree) -> str:
    return f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def init_norm(
    key: Tensor, name: str, width: int, dtype: torch.dtype, norm: Norm, embedding: int | None = None
) -> Params:
    """Scale 1 and shift 0, and what the policy and FiLM need."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=key.device)

    params: Params = {}
    if norm != "none":
        params |= {f"{name}.weight": zeros(width) + 1.0, f"{name}.bias": zeros(width)}
    if norm == "frozen":
        params |= {f"{name}.mean": zeros(width), f"{name}.variance": zeros(width) + 1.0}
    if norm == "task":
        params |= {f"{name}.slope": zeros(), f"{name}.offset": zeros()}
    return params if embedding is None else params | init_film(key, f"{name}.film", width, embedding, dtype)


def normalize(params: Params, name: str, x: Tensor, how: Normalising) -> Tensor:
    if how.policy != "none":
        x = _normalized(params, name, x, how)
    if how.embedding is None:
        return x
    return modulate(params, f"{name}.film", x, how.embedding)


def _normalized(params: Params, name: str, x: Tensor, how: Normalising) -> Tensor:
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    if how.policy == "group":
        return F.group_norm(x, max(1, x.shape[1] // 8), weight, bias)
    if how.seen is not None:
        mean, variance = moments(x, [0, 2, 3])
        how.seen.update({f"{name}.mean": mean.flatten(), f"{name}.variance": variance.flatten()})
    if how.policy == "batch":
        return batch_norm(x, weight, bias, _EPS)
    if how.policy == "frozen":
        mean, variance = (params[f"{name}.{n}"].detach()[:, None, None] for n in ("mean", "variance"))
    else:
        mean, variance = _of_support(x[: how.rows], how.weight)
    if how.policy == "task":
        mean, variance = _blended(params, name, x, mean, variance, how)
    return rescale(x, mean, variance, weight[:, None, None], bias[:, None, None], _EPS)


def _of_support(x: Tensor, weight: Tree) -> tuple[Tensor, Tensor]:
    """Mean and variance over all pixels of the support set, `[1, channel, 1, 1]`, by the examples' weights."""
    if not isinstance(weight, Tensor):
        return moments(x, [0, 2, 3])
    means, variances = moments(x, [2, 3])
    share = (weight / weight.sum()).to(means.dtype)[:, None, None, None]
    mean = (share * means).sum(0, keepdim=True)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0, keepdim=True)


def _blended(
    params: Params, name: str, x: Tensor, mean: Tensor, variance: Tensor, how: Normalising
) -> tuple[Tensor, Tensor]:
    """The support's statistics and each example's own, mixed: the more of them the larger the support set."""
    count = how.weight.sum() if isinstance(how.weight, Tensor) else how.rows
    share = (params[f"{name}.slope"] * count + params[f"{name}.offset"]).sigmoid()
    means, variances = moments(x, [2, 3])
    mixed = share * mean + (1.0 - share) * means
    spread = share * (variance + (mean - mixed) ** 2) + (1.0 - share) * (variances + (means - mixed) ** 2)
    return mixed, spread


def normalize_pooled(params: Params, name: str, x: Tensor) -> Tensor:
    """2x2 max pooling of what batch norm gives, on a quarter of the values.

    a·x + b is monotone in x, so its maximum is a·max(x) + b, or a·min(x) + b where a < 0.
    """
    weight, bias = (params[f"{name}.{n}"].view(-1, 1, 1) for n in ("weight", "bias"))
    mean, variance = moments(x, [0, 2, 3])
    sign = torch.where(weight < 0, -1.0, 1.0).to(x.dtype)
    return rescale(sign * max_pool2x2(sign * x), mean, variance, weight, bias, _EPS)
