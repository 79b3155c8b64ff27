"""What a function does besides returning its result, seen while it is traced: a graph has its result alone."""

from __future__ import annotations

import gc
import itertools
import linecache
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from fmeta.core import InputError
from fmeta.core._torch import DispatchMode, is_fake
from fmeta.core.tree import tree_leaves

LIBRARIES = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])


class Unfit(Exception):
    """What a call hands over, does or gets back cannot be part of a graph."""


class KeptError(InputError):
    """A function keeps a tensor of the trace, which has no values: neither a graph nor eager code is right any more."""


class Effects(DispatchMode):
    """Notes which tensors a traced function writes into and which it keeps.

    Raises Unfit where it would write into a tensor that it closes over, before that is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes = False  # into an argument
        self._arguments: list[torch.UntypedStorage] = []  # alive, so that no other storage takes its number
        self._made: list[tuple[TensorWeakRef, str, int]] = []  # each tensor, and the caller's line that made it

    def of(self, arguments: Sequence[Tensor]) -> Effects:
        """For a trace with these arguments."""
        self._arguments = [t.untyped_storage() for t in arguments if t.layout is torch.strided]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            if not is_fake(tensor):
                raise Unfit("it changes a tensor in place that it closes over; expected one it returns anew")
            self.writes |= any(tensor.untyped_storage() is storage for storage in self._arguments)
        result = func(*args, **kwargs)
        file, line = _callers_line()
        self._made += [(TensorWeakRef(t), file, line) for t in tree_leaves(result) if isinstance(t, Tensor)]
        return result

    def check_kept(self, name: str, error: BaseException | None = None) -> None:
        """Raises KeptError if a tensor that was made is still alive. What it holds must be gone but for an error."""
        self._arguments = []
        if not any(self._kept()):
            return
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
        for tensor, file, line in self._kept():
            kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            text = linecache.getline(file, line).strip()
            where = f" made at {text!r} ({Path(file).name}, line {line})" if text else ""
            raise KeptError(
                f"compile({name}): it keeps a tensor, {kind}{where}, for instance in a cache, a list, a module or "
                "a .grad, where it now stands without values; expected a function that returns what it makes; make "
                "what stays the same before, by calling the function once before it is compiled, and begin anew"
            )

    def _kept(self) -> Iterator[tuple[Any, str, int]]:
        for reference, file, line in self._made:
            tensor = reference()
            if tensor is not None:
                yield tensor, file, line


def overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether two of these share memory."""
    spans = sorted(_span(t) for t in tensors if t.layout is torch.strided and t.numel())
    return any(device == before and begin < end for (before, _, end), (device, begin, _) in itertools.pairwise(spans))


def _span(t: Tensor) -> tuple[str, int, int]:
    """Device, the address of its first byte, and that after its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return str(t.device), t.data_ptr(), t.data_ptr() + length * t.element_size()


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    schema = func._schema
    if not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(given) if isinstance(t, Tensor))


def _callers_line() -> tuple[str, int]:
    """The innermost line outside of torch and fmeta that is being run."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
