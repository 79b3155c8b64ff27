"""Images that take long to make, kept in the cache folder."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmeta.core import InputError
from fmeta.operators import cache_folder

Named = tuple[Tensor, list[str]]  # images, and the names that belong to them


def cached_images(name: str, make: Callable[[], Named]) -> Named:
    """What `make` returns, made once and kept as `name`.safetensors in the cache folder.

    The name must tell apart whatever the images depend on. The file appears whole or not at all; one that was cut or
    removed later is made again. Raises InputError where the folder cannot be written to.
    """
    found = _read(name, lambda file: (file.get_tensor("images"), _names(file)))
    return _made(name, make) if found is None else found


def cached_names(name: str, make: Callable[[], Named]) -> list[str]:
    """The names alone, without reading the images where they are kept."""
    found = _read(name, _names)
    return _made(name, make)[1] if found is None else found


def _place(name: str) -> Path:
    return cache_folder() / f"{name}.safetensors"


def _read(name: str, take: Callable[[Any], Any]) -> Any:
    """What `take` finds in the file, None where there is none, or half of one, or another's."""
    try:
        with safe_open(_place(name), "pt") as file:
            return take(file)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None


def _names(file: Any) -> list[str]:
    return json.loads(file.metadata()["names"])


def _made(name: str, make: Callable[[], Named]) -> Named:
    images, names = make()
    path = _place(name)
    fresh = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"images": images}, fresh, {"names": json.dumps(names)})
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot keep {path}: {error}; expected a cache folder that takes files; make room, or set FMETA_CACHE to "
            "another folder"
        ) from error
    return images, names
