"""Names that are imported when they are asked for, so that `fmeta --help` does not wait for torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(package: str, places: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: each name is taken from its place when it is first asked for.

    Args:
        package: its `__name__`.
        places: modules, relative to the package (`._train`), and the names that each gives.
    """
    place_of = {name: place for place, names in places.items() for name in names}

    def get(name: str) -> Any:
        if name not in place_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(place_of[name], package), name)
        if hasattr(value, "_fields"):  # a named tuple, whose types are names that torch would be imported for
            value.__new__.__module__ = value.__module__  # so that tools look them up where they stand
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(place_of)
