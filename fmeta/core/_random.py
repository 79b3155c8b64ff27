"""Randomness is data: numbers computed from an int64 key by a counter-based hash.

The same key gives the same numbers eager, compiled, recomputed, under `vmap`, on any device and rank, so a replayed
inner step sees the same dropout mask and a resumed run needs no generator state. Number `i` of a key is
`mix(key ^ stream ^ i)`, where `mix` is a Weyl step and the finalizer of SplitMix64 (Steele, Lea & Flood 2014,
https://doi.org/10.1145/2714064.2660195). Child keys and drawn numbers come from different streams of the same key, so a
key may be used for both. Not for cryptography.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_counts


def _signed(n: int) -> int:
    """`n` modulo 2^64, as the int64 with the same bits."""
    return (n + (1 << 63)) % (1 << 64) - (1 << 63)


_CHILD = _signed(0xD1B54A32D192ED03)  # the streams of a key
_DRAW = _signed(0x8CB92BA72F3D8DD7)
_NAMED = _signed(0xF1357AEA2E62A9C5)


def _mix(z: Tensor) -> Tensor:
    """Scrambles the 64 bits of each element, one to one.

    An operator of its own, because inductor must not look inside: it writes these products as C++ signed arithmetic,
    whose overflow is undefined (g++ folded some into other numbers), and takes exponential time over `z ^ (z >> n)`.
    """
    return torch.ops.fmeta.mix(z)


def _mixed(z: Tensor) -> Tensor:
    z = (z * _signed(0x9E3779B97F4A7C15)).add_(_signed(0xA0761D6478BD642F))
    # int64 has no logical shift: shift arithmetically, then clear the copies of the sign
    z ^= (z >> 30).bitwise_and_(0x3FFFFFFFF)
    z *= _signed(0xBF58476D1CE4E5B9)
    z ^= (z >> 27).bitwise_and_(0x1FFFFFFFFF)
    z *= _signed(0x94D049BB133111EB)
    z ^= (z >> 31).bitwise_and_(0x1FFFFFFFF)
    return z


# not `torch.library.custom_op`, whose first call imports the tracer of torch.compile: as long as torch itself takes
_library = torch.library.Library("fmeta", "DEF")
_library.define("mix(Tensor z) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("mix", _mixed, "CompositeExplicitAutograd")
torch.library.register_fake("fmeta::mix", torch.empty_like, lib=_library)
torch.library.register_vmap("fmeta::mix", lambda info, in_dims, z: (_mix(z), in_dims[0]), lib=_library)


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key from a seed: an int64 scalar. Its device is where everything drawn from it will live.

    Raises InputError for a seed that is no whole number of 64 bits, signed or unsigned.
    """
    return _mix(torch.tensor(_word("key", "seed", seed), dtype=torch.int64, device=device))


def fold(key: Tensor, n: int | Tensor | str) -> Tensor:
    """The `n`-th child of a key. A tensor of numbers gives a tensor of keys of that shape.

    A word names a stream, the child for one purpose (`fold(key, "validation tasks")`), which no number reaches.

    Raises InputError for what is no key, and for a number that is not a whole one of 64 bits.
    """
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        came = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise InputError(f"fold: the key is {came}; expected an int64 tensor; use fmeta.key(seed)")
    if isinstance(n, str):
        return _mix(key ^ _stream(n))
    if not isinstance(n, Tensor):
        return _mix(key ^ (_word("fold", "n", n) ^ _CHILD))
    if n.is_floating_point() or n.is_complex() or n.dtype == torch.bool:
        raise InputError(f"fold(n={n.dtype} {list(n.shape)}): expected integers, which number the children")
    return _mix(key ^ (n.to(torch.int64) ^ _CHILD))


def check_key(call: str, key: Tensor) -> None:
    """Raises InputError for what is not one key."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.ndim:
        came = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else f"a {type(key).__name__}"
        raise InputError(
            f"{call}: the key is {came}; expected one key, int64 []; use fmeta.key(seed), and torch.func.vmap for many"
        )


def _word(call: str, name: str, n: object) -> int:
    """A whole number of 64 bits, signed or unsigned, as the int64 with the same bits."""
    if isinstance(n, bool) or not isinstance(n, Integral) or not -(1 << 63) <= int(n) < 1 << 64:
        raise InputError(
            f"{call}({name}={n!r}): expected a whole number of 64 bits, because others would give the same keys"
        )
    return _signed(int(n))


@functools.cache
def _stream(purpose: str) -> int:
    """The 64 bits that stand for a word, apart from those for numbers."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little", signed=True) ^ _NAMED


def split(key: Tensor, count: int) -> Tensor:
    """`count` child keys, `[count]`. Raises InputError for what is not one key, or no count."""
    check_key("split", key)
    check_counts("split", least=0, count=count)
    return fold(key, torch.arange(count, device=key.device))


def bits(key: Tensor, count: int) -> Tensor:
    """`count` int64 numbers of 64 random bits, `[count]`. Raises InputError for what is not one key, or no count."""
    check_key("bits", key)
    check_counts("bits", least=0, count=count)
    return _mix(key ^ (torch.arange(count, device=key.device) ^ _DRAW))


def uniform(
    key: Tensor, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in `[low, high)` (up to rounding to `dtype`) of the given shape.

    Raises InputError for what is not one key, no shape, a dtype of integers, or bounds in the wrong order.
    """
    sides = _sides("uniform", shape, dtype)
    _check_bounds(low, high)
    fraction = ((bits(key, math.prod(sides)) >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
    return (low + (high - low) * fraction).to(dtype).reshape(sides)


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of the given shape (Box & Muller 1958).

    Raises InputError for what is not one key, no shape, or a dtype of integers.
    """
    sides = _sides("normal", shape, dtype)
    u = uniform(key, (2, math.prod(sides)), dtype=torch.float64)
    radius = (-2.0 * torch.log1p(-u[0])).sqrt()
    return (radius * torch.cos(2.0 * math.pi * u[1])).to(dtype).reshape(sides)


def _check_bounds(low: object, high: object) -> None:
    """Of numbers; the values of tensors may be hidden."""
    if isinstance(low, Real) and isinstance(high, Real) and not -math.inf < float(low) <= float(high) < math.inf:
        raise InputError(f"uniform(low={low}, high={high}): expected two finite numbers, low <= high")


def _sides(call: str, shape: object, dtype: torch.dtype) -> tuple[int, ...]:
    """The shape of real numbers."""
    if not dtype.is_floating_point:
        raise InputError(f"{call}(dtype={dtype}): expected a floating-point dtype; fmeta.randint draws integers")
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (None,)
    if any(isinstance(side, bool) or not isinstance(side, Integral) or side < 0 for side in sides):
        raise InputError(
            f"{call}(shape={shape!r}): expected a whole number, at least 0, for each axis, such as (3,), or () for one "
            "number"
        )
    return sides


def randint(key: Tensor, high: int, shape: Sequence[int] = ()) -> Tensor:
    """Uniform int64 numbers in `0 .. high-1`. Raises InputError if `high < 1`."""
    if high < 1:
        raise InputError(f"randint(high={high}): expected at least 1")
    return (uniform(key, shape, dtype=torch.float64) * high).to(torch.int64)


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of `0 .. n-1`, `[n]`. Raises InputError for what is not one key, or no count."""
    check_counts("permutation", least=0, n=n)
    return bits(key, n).argsort()


def choice(key: Tensor, n: int, count: int, valid: Tensor | None = None) -> Tensor:
    """`count` different numbers of `0 .. n-1` in random order, `[count]`.

    With `valid`, integers <= n of any shape, one such draw for each of them from `0 .. valid-1`,
    `[*valid.shape, count]`; the caller sees to it that `count` fit. Raises InputError unless 0 <= count <= n.
    """
    check_counts("choice", least=0, n=n, count=count)
    if not 0 <= count <= n:
        raise InputError(f"choice(n={n}, count={count}): expected 0 <= count <= n, without replacement")
    if valid is None:
        return bits(key, n).topk(count).indices
    order = bits(key, valid.numel() * n).reshape(*valid.shape, n)
    least = torch.iinfo(torch.int64).min
    return torch.where(torch.arange(n, device=key.device) < valid[..., None], order, least).topk(count).indices
