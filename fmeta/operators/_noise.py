"""What torch draws at random, drawn from a key instead.

A network's dropout, in whatever words it is written, calls one of these operators of torch. `Noise` counts the calls of
one forward pass; the n-th draws from `fold(key, n)`, so the same key gives the same masks: eager, compiled, recomputed,
and for each task its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmeta.core import InputError, Tree, fold, normal, permutation, uniform
from fmeta.core._torch import spellings


@dataclass
class Noise:
    """The draws of one forward pass."""

    key: Tree  # int64 [], or () where nothing may be drawn
    why: str = ""  # the cure where there is no key
    drawn: int = 0

    def next(self, call: str) -> Tensor:
        """The key of the next draw."""
        if not isinstance(self.key, Tensor):
            raise InputError(f"{call} draws random numbers, and there is no key to draw them from; {self.why}")
        self.drawn += 1
        return fold(self.key, self.drawn)


def dropout(noise: Noise, input: Tensor, p: float = 0.5, train: bool = True) -> Tensor:
    """`input` where it is kept, divided by 1 − p (Srivastava et al. 2014,
    https://jmlr.org/papers/v15/srivastava14a.html)."""
    return _scaled(input, p, noise, input.shape) if _drops(p, train) else input


def _feature_dropout(noise: Noise, input: Tensor, p: float, train: bool) -> Tensor:
    """Whole channels at a time, `[example, channel, ...]`."""
    return _scaled(input, p, noise, _channels(input)) if _drops(p, train) else input


def _alpha_dropout(noise: Noise, input: Tensor, p: float, train: bool) -> Tensor:
    return _alpha(input, p, noise, input.shape) if _drops(p, train) else input


def _feature_alpha_dropout(noise: Noise, input: Tensor, p: float, train: bool) -> Tensor:
    return _alpha(input, p, noise, _channels(input)) if _drops(p, train) else input


def _native_dropout(noise: Noise, input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if not _drops(p, train is not False):
        return input, torch.ones_like(input, dtype=torch.bool)
    kept = _kept(noise, p, input.shape)
    return _divided(input, p, kept), kept


def _drops(p: float, train: bool) -> bool:
    if not 0.0 <= p <= 1.0:
        raise InputError(f"dropout(p={p}): expected a probability, from 0 to 1")
    return bool(train) and p > 0


def _channels(input: Tensor) -> tuple[int, ...]:
    return (*input.shape[:2], *(1 for _ in input.shape[2:]))


def _kept(noise: Noise, p: float, shape: tuple[int, ...]) -> Tensor:
    return uniform(noise.next("dropout"), shape, dtype=torch.float64) >= p


def _divided(input: Tensor, p: float, kept: Tensor) -> Tensor:
    return input * kept.to(input.dtype) / (1.0 - p) if p < 1 else input * 0.0


def _scaled(input: Tensor, p: float, noise: Noise, shape: tuple[int, ...]) -> Tensor:
    return _divided(input, p, _kept(noise, p, shape))


def _alpha(input: Tensor, p: float, noise: Noise, shape: tuple[int, ...]) -> Tensor:
    """What is dropped becomes SELU's lowest value, and mean and variance stay (Klambauer et al. 2017,
    https://arxiv.org/abs/1706.02515)."""
    if p == 1:
        return input * 0.0
    lowest = -1.7580993408473766  # −λα of SELU
    slope = ((1 - p) * (1 + p * lowest**2)) ** -0.5
    return slope * torch.where(_kept(noise, p, shape), input, lowest) - slope * p * lowest


def _rrelu(noise: Noise, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """A slope for each negative number, uniform between the two (Xu et al. 2015, https://arxiv.org/abs/1505.00853)."""
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    slope = uniform(noise.next("rrelu"), input.shape, lower, upper, input.dtype)
    return torch.where(input < 0, input * slope, input)


# ---- plain random numbers ------------------------------------------------------------------------


def _shape(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _uniform(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return uniform(key, shape, dtype=dtype)


def _fresh(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.rand` and its kin."""

    def call(noise: Noise, *size: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
        _refuse_generator(name, options)
        shape = tuple(options.pop("size", ())) or _shape(size)
        drawn = draw(noise.next(f"torch.{name}"), shape, dtype or torch.get_default_dtype())
        return drawn if device is None else drawn.to(device)

    return call


def _like(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.rand_like` and its kin."""

    def call(noise: Noise, input: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        _refuse_generator(name, options)
        drawn = draw(noise.next(f"torch.{name}"), tuple(input.shape), dtype or input.dtype)
        return drawn.to(options.get("device") or input.device)

    return call


def _into(name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.uniform_` and its kin: the numbers are written into the tensor."""

    def call(noise: Noise, self: Tensor, *args: Any, **options: Any) -> Tensor:
        _refuse_generator(name, options)
        values = draw(noise.next(f"Tensor.{name}"), self, *args, **options)
        return self.copy_(values.to(self.dtype))

    return call


def _bernoulli(noise: Noise, input: Tensor, p: float | None = None, **options: Any) -> Tensor:
    _refuse_generator("bernoulli", options)
    return _chances(noise.next("bernoulli"), input, input if p is None else p).to(input.dtype)


def _chances(key: Tensor, like: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return uniform(key, like.shape, dtype=torch.float64) < p


def _between(key: Tensor, like: Tensor, a: float = 0.0, b: float = 1.0, **names: float) -> Tensor:
    return uniform(key, like.shape, names.get("from", a), names.get("to", b), dtype=torch.float64)


def _gaussian(key: Tensor, like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * normal(key, like.shape, torch.float64)


def _exponential(key: Tensor, like: Tensor, lambd: float = 1.0) -> Tensor:
    # never 0, of which Gumbel's numbers take the logarithm
    return (-torch.log1p(-uniform(key, like.shape, dtype=torch.float64))).clamp_min(1e-17) / lambd


def _normal(noise: Noise, mean: Any = 0.0, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    """`torch.normal`, of numbers or of tensors."""
    _refuse_generator("normal", options)
    like = [t for t in (mean, std) if isinstance(t, Tensor)]
    shape = torch.broadcast_shapes(*(t.shape for t in like)) if like else tuple(size)
    dtype = options.get("dtype") or (like[0].dtype if like else torch.get_default_dtype())
    return mean + std * normal(noise.next("torch.normal"), shape, dtype)


def _integers(noise: Noise, *args: Any, dtype: torch.dtype = torch.int64, **options: Any) -> Tensor:
    """`torch.randint(high, size)` and `torch.randint(low, high, size)`."""
    _refuse_generator("randint", options)
    given = list(args)
    size = options["size"] if "size" in options else given.pop()
    high = options["high"] if "high" in options else given.pop()
    low = options.get("low", given.pop() if given else 0)
    drawn = uniform(noise.next("torch.randint"), tuple(size), dtype=torch.float64)
    return (low + (drawn * (high - low)).to(torch.int64)).to(dtype)


def _order(noise: Noise, n: int, **options: Any) -> Tensor:
    _refuse_generator("randperm", options)
    return permutation(noise.next("torch.randperm"), n).to(options.get("device"), options.get("dtype", torch.int64))


def _empty(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Tensors that differ by task, because random numbers that differ by task may be written into them next."""

    def call(noise: Noise, *args: Any, **options: Any) -> Tensor:
        options.pop("memory_format", None)
        found = make(*args, **options)
        return found + torch.zeros_like(noise.key).to(found.dtype) if isinstance(noise.key, Tensor) else found

    return call


def _refuse_generator(name: str, options: dict[str, Any]) -> None:
    if options.pop("generator", None) is not None:
        raise InputError(
            f"{name}(generator=…): expected no generator, because the numbers are drawn from the task's key"
        )


def _refused(name: str) -> Callable[..., Tensor]:
    def call(noise: Noise, *args: Any, **keywords: Any) -> Tensor:
        raise InputError(
            f"{name} draws random numbers in a way that fmeta has no draw by key for; expected dropout, or uniform, "
            "normal or Bernoulli numbers, of which it can be made"
        )

    return call


def _in_place(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(noise: Noise, input: Tensor, *args: Any) -> Tensor:
        return input.copy_(function(noise, input, *args))

    return call


_KERNELS: dict[str, Callable[..., Any]] = {
    "dropout": dropout,
    "feature_dropout": _feature_dropout,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _feature_alpha_dropout,
    "native_dropout": _native_dropout,
    "rrelu": _rrelu,
    "bernoulli": _bernoulli,
    "normal": _normal,
    "randint": _integers,
    "randperm": _order,
    "empty": _empty(torch.zeros),
    "empty_like": _empty(torch.zeros_like),
    "new_empty": _empty(Tensor.new_zeros),
    "rand": _fresh("rand", _uniform),
    "randn": _fresh("randn", normal),
    "rand_like": _like("rand_like", _uniform),
    "randn_like": _like("randn_like", normal),
    "bernoulli_": _into("bernoulli_", _chances),
    "uniform_": _into("uniform_", _between),
    "normal_": _into("normal_", _gaussian),
    "exponential_": _into("exponential_", _exponential),
}
_KERNELS |= {
    f"{name}_": _in_place(name, _KERNELS[name])
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu")
}
_KERNELS |= {
    name: _refused(name)
    for name in (
        "binomial", "cauchy_", "geometric_", "log_normal_", "multinomial", "poisson", "random_", "randint_like",
        "rrelu_with_noise", "fractional_max_pool2d", "fractional_max_pool3d", "_standard_gamma", "_sample_dirichlet",
    )
}  # fmt: skip

# every callable of torch that draws, and what draws in its place: `(noise, *its arguments)`
DRAWN: dict[Any, Callable[..., Any]] = {
    **{each: f for name, f in _KERNELS.items() for each in spellings(name)},
    nn.init.uniform_: lambda noise, tensor, **given: _KERNELS["uniform_"](noise, tensor, **given),
    nn.init.normal_: lambda noise, tensor, **given: _KERNELS["normal_"](noise, tensor, **given),
    nn.init.kaiming_uniform_: _refused("kaiming_uniform_"),
}
