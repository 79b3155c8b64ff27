"""Reads pickles of arrays in plain containers, and nothing else: a pickle is a program."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fmeta.core import InputError


def load_arrays(call: str, path: Path) -> Any:
    """What a pickle of dicts, lists, strings, numbers and numeric arrays holds, whichever Python or NumPy wrote it.

    Raises InputError, before anything of it runs, for a pickle that asks for any other function or class, and for one
    that is not whole.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()  # the encoding in which Python 2 wrote bytes
    except _Refused as error:
        raise InputError(
            f"{call}: {path} asks for {error}; expected arrays in plain containers; this pickle can run code of its "
            "own, so do not open it"
        ) from error
    except Exception as error:  # a damaged pickle fails in whatever it happens to say
        raise InputError(f"{call}: cannot read {path}: {error}; expected a whole pickle; download it again") from error


class _Refused(Exception):
    """The name of what a pickle must not have."""


class _Array(np.ndarray):
    """An array that takes numbers from a pickle; made-up types could smuggle in pointers."""

    def __setstate__(self, state: Any, /) -> None:
        version, shape, dtype, fortran, content = state
        super().__setstate__((version, shape, _number(dtype), fortran, content))


def _number(dtype: np.dtype) -> np.dtype:
    clean = np.dtype(dtype.str)
    if clean.kind not in "biuf":
        raise _Refused(f"an array of {clean}")
    return clean


def _dtype(name: str, *_: bool) -> np.dtype:
    return np.dtype(str(name), copy=True)  # pickles go on to write into it


def _blank(*_: object) -> _Array:
    return _Array((0,), np.uint8)


def _buffered(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, _number(dtype)).reshape(shape, order=order)


def _scalar(dtype: np.dtype, content: str | bytes) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, _number(dtype))[0].item()


_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "range"): range,
    ("__builtin__", "xrange"): range,  # the name of Python 2, in all pickles up to protocol 2
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): str.encode,  # bytes, in pickles of protocol 2 from Python 3
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): np.ndarray.__name__,  # named as an argument only, never called
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")  # before NumPy 2, and since
        for module, name, function in (
            ("multiarray", "_reconstruct", _blank),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _buffered),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]
