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

import torch
from torch import Tensor

from fmeta.core._checks import InputError


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
    """A key from a seed: an int64 scalar. Its device is where everything drawn from it will live."""
    return _mix(torch.tensor(_signed(seed), dtype=torch.int64, device=device))


def fold(key: Tensor, n: int | Tensor | str) -> Tensor:
    """The `n`-th child of a key. A tensor of numbers gives a tensor of keys of that shape.

    A word names a stream, the child for one purpose (`fold(key, "validation tasks")`), which no number reaches.

    Raises InputError for what is no key.
    """
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        came = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise InputError(f"fold: the key is {came}; expected an int64 tensor; use fmeta.key(seed)")
    if isinstance(n, str):
        return _mix(key ^ _stream(n))
    return _mix(key ^ (n.to(torch.int64) ^ _CHILD if isinstance(n, Tensor) else _signed(n) ^ _CHILD))


@functools.cache
def _stream(purpose: str) -> int:
    """The 64 bits that stand for a word, apart from those for numbers."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little", signed=True) ^ _NAMED


def split(key: Tensor, count: int) -> Tensor:
    """`count` child keys, `[count]`."""
    return fold(key, torch.arange(count, device=key.device))


def bits(key: Tensor, count: int) -> Tensor:
    """`count` int64 numbers of 64 random bits, `[count]`."""
    return _mix(key ^ (torch.arange(count, device=key.device) ^ _DRAW))


def uniform(
    key: Tensor, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in `[low, high)` (up to rounding to `dtype`) of the given shape."""
    fraction = ((bits(key, math.prod(shape)) >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
    return (low + (high - low) * fraction).to(dtype).reshape(tuple(shape))


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of the given shape (Box & Muller 1958)."""
    u = uniform(key, (2, math.prod(shape)), dtype=torch.float64)
    radius = (-2.0 * torch.log1p(-u[0])).sqrt()
    return (radius * torch.cos(2.0 * math.pi * u[1])).to(dtype).reshape(tuple(shape))


def randint(key: Tensor, high: int, shape: Sequence[int] = ()) -> Tensor:
    """Uniform int64 numbers in `0 .. high-1`. Raises InputError if `high < 1`."""
    if high < 1:
        raise InputError(f"randint(high={high}): expected at least 1")
    return (uniform(key, shape, dtype=torch.float64) * high).to(torch.int64)


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of `0 .. n-1`, `[n]`."""
    return bits(key, n).argsort()


def choice(key: Tensor, n: int, count: int, valid: Tensor | None = None) -> Tensor:
    """`count` different numbers of `0 .. n-1` in random order, `[count]`.

    With `valid`, integers <= n of any shape, one such draw for each of them from `0 .. valid-1`,
    `[*valid.shape, count]`; the caller sees to it that `count` fit. Raises InputError unless 0 <= count <= n.
    """
    if not 0 <= count <= n:
        raise InputError(f"choice(n={n}, count={count}): expected 0 <= count <= n, without replacement")
    if valid is None:
        return bits(key, n).topk(count).indices
    order = bits(key, valid.numel() * n).reshape(*valid.shape, n)
    least = torch.iinfo(torch.int64).min
    return torch.where(torch.arange(n, device=key.device) < valid[..., None], order, least).topk(count).indices
