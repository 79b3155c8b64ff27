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
from typing import Any

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_counts, hidden


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
    """`count` int64 numbers of 64 random bits, `[count]`. Raises InputError for what is no key, or no count."""
    return _numbers("bits", key, _whole("bits", "count", count))


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in `[low, high)` (up to rounding to `dtype`) of the given shape.

        >>> import fmeta
        >>> fmeta.uniform(fmeta.key(0), (2, 3), -1.0, 1.0).shape
        torch.Size([2, 3])

    Args:
        key: where from; the same key gives the same numbers.
        shape: how many.
        low: a number, or a tensor that broadcasts to `shape`, with a gradient if that is wanted.
        high: likewise.
        dtype: a floating one.

    Raises:
        InputError: what is no key, no shape or no floating dtype; bounds of another shape, that are not finite, or of
            which low is above high. In a compiled function the values of tensors cannot be looked at.
    """
    size = _size("uniform", shape)
    _check_dtype("uniform", dtype)
    _check_bound("uniform", "low", low, size)
    _check_bound("uniform", "high", high, size)
    if not _holds(low <= high):
        raise InputError(f"uniform(low={_said(low)}, high={_said(high)}): low is above high; expected low <= high")
    return (low + (high - low) * _fractions("uniform", key, size)).to(dtype)


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of the given shape (Box & Muller 1958).

    Raises InputError for what is no key, no shape or no floating dtype.
    """
    size = _size("normal", shape)
    _check_dtype("normal", dtype)
    u = _fractions("normal", key, (2, math.prod(size)))
    radius = (-2.0 * torch.log1p(-u[0])).sqrt()
    return (radius * torch.cos(2.0 * math.pi * u[1])).to(dtype).reshape(size)


def randint(key: Tensor, high: int | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform int64 numbers in `0 .. high-1`, of the given shape.

        >>> import torch
        >>> import fmeta
        >>> fmeta.randint(fmeta.key(0), torch.tensor([2, 20, 200]), (3,))  # one number below each
        tensor([  1,  12, 183])

    Args:
        key: where from; the same key gives the same numbers.
        high: a whole number, or an integer tensor that broadcasts to `shape`; 1 to 2^53.
        shape: how many.

    Raises:
        InputError: what is no key or no shape; a `high` that is no whole number, of another shape, or not in 1 .. 2^53.
            In a compiled function the values of a tensor cannot be looked at.
    """
    size = _size("randint", shape)
    if isinstance(high, Tensor):
        high = _integers("randint", "high", high)
        _check_fits("randint", "high", high, size)
    else:
        _whole("randint", "high", high)
    if not (_holds(high >= 1) and _holds(high <= 1 << 53)):
        raise InputError(
            f"randint(high={_said(high)}): expected 1 to 2^53, because numbers are below it and have 53 bits"
        )
    return (_fractions("randint", key, size) * high).to(torch.int64)


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of `0 .. n-1`, `[n]`. Raises InputError for what is no key, or no whole number."""
    return _numbers("permutation", key, _whole("permutation", "n", n)).argsort()


def choice(key: Tensor, n: int, count: int, valid: Tensor | None = None) -> Tensor:
    """`count` different numbers of `0 .. n-1` in random order, `[count]`.

    With `valid`, integers of any shape, one such draw for each of them from `0 .. valid-1`, `[*valid.shape, count]`.

    Raises InputError for what is no key or no whole number, and unless 0 <= count <= valid <= n (in a compiled function
    the values of `valid` cannot be looked at).
    """
    _whole("choice", "n", n)
    _whole("choice", "count", count)
    if count > n:
        raise InputError(f"choice(n={n}, count={count}): expected 0 <= count <= n, without replacement")
    if valid is None:
        return _numbers("choice", key, n).topk(count).indices
    if not isinstance(valid, Tensor):
        raise InputError(f"choice(valid={valid!r}): expected an integer tensor; use torch.tensor(…)")
    valid = _integers("choice", "valid", valid)
    if not (_holds(valid >= count) and _holds(valid <= n)):
        raise InputError(
            f"choice(n={n}, count={count}, valid={_said(valid)}): expected count <= valid <= n, because numbers are "
            "drawn without replacement out of n"
        )
    return choice_within(key, n, count, valid)


def choice_within(key: Tensor, n: int, count: int, valid: Tensor) -> Tensor:
    """`choice` without a look at `valid`; where that is below `count`, numbers from it on follow those below it."""
    order = _numbers("choice", key, valid.numel() * n).reshape(*valid.shape, n)
    least = torch.iinfo(torch.int64).min
    return torch.where(torch.arange(n, device=key.device) < valid[..., None], order, least).topk(count).indices


def _numbers(call: str, key: Tensor, count: int) -> Tensor:
    check_key(call, key)
    return _mix(key ^ (torch.arange(count, device=key.device) ^ _DRAW))


def _fractions(call: str, key: Tensor, size: tuple[int, ...]) -> Tensor:
    """Uniform numbers in `[0, 1)` with all 53 bits of float64."""
    numbers = (_numbers(call, key, math.prod(size)) >> 11) & ((1 << 53) - 1)
    return (numbers.to(torch.float64) * 2.0**-53).reshape(size)


def _whole(call: str, name: str, value: Any) -> Any:
    """A whole number on which depends what shape a draw has."""
    if isinstance(value, Tensor):
        raise InputError(
            f"{call}({name}=a tensor): expected a whole number, because a shape depends on it, which the value of "
            f"a tensor cannot decide under vmap; use int({name}) outside"
        )
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt) or value < 0:
        raise InputError(f"{call}({name}={value!r}): expected a whole number, at least 0")
    return value


def _size(call: str, shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise InputError(f"{call}(shape={_said(shape)}): expected a tuple of whole numbers, such as (3,)")
    return tuple(_whole(call, "shape", length) for length in shape)


def _check_dtype(call: str, dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"{call}(dtype={dtype}): expected a floating-point one; for whole numbers use randint")


def _integers(call: str, name: str, values: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(
            f"{call}({name}=a tensor): it is {values.dtype}; expected an integer tensor; use {name}.long()"
        )
    return values.to(torch.int64)


def _check_bound(call: str, name: str, bound: Any, size: tuple[int, ...]) -> None:
    if isinstance(bound, Tensor) and not bound.is_complex() and bound.dtype != torch.bool:
        _check_fits(call, name, bound, size)
        finite = _holds(bound.isfinite())
    elif not isinstance(bound, bool) and isinstance(bound, Real):
        finite = math.isfinite(bound)
    else:
        raise InputError(f"{call}({name}={_said(bound)}): expected a number, or a tensor of numbers")
    if not finite:
        raise InputError(f"{call}({name}={_said(bound)}): expected what is finite")


def _check_fits(call: str, name: str, values: Tensor, size: tuple[int, ...]) -> None:
    """That there is a number for each value, as well as a value for each number."""
    ends = zip(reversed(values.shape), reversed(size), strict=False)
    if values.ndim > len(size) or any(own not in (1, length) for own, length in ends):
        raise InputError(
            f"{call}({name}=a tensor): it is {list(values.shape)} for numbers of shape {list(size)}; expected one that "
            f"broadcasts to that; for a number of each use shape={tuple(values.shape)}"
        )


def _holds(condition: bool | Tensor) -> bool:
    """Whether it does everywhere, in all tasks under vmap; True where values cannot be looked at."""
    if not isinstance(condition, Tensor):
        return condition
    return hidden(condition) or bool(torch.func.debug_unwrap(condition).all())


def _said(value: object) -> str:
    return f"a {value.dtype} tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
