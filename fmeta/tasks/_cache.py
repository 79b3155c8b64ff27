"""Images that take long to make, kept in the cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmeta.operators import cache_folder


def cached_images(name: str, make: Callable[[], tuple[Tensor, list[str]]]) -> tuple[Tensor, list[str]]:
    """What the file of `cached_file` holds."""
    with safe_open(cached_file(name, make), "pt") as file:
        return file.get_tensor("images"), json.loads(file.metadata()["names"])


def cached_file(name: str, make: Callable[[], tuple[Tensor, list[str]]]) -> Path:
    """`name`.safetensors in the cache folder, with the `images` and `names` that `make` returns, made once.

    The name must tell apart whatever the images depend on. The file appears whole or not at all; one that was cut
    later is made again.
    """
    path = cache_folder() / f"{name}.safetensors"
    try:
        with safe_open(path, "pt"):
            return path
    except (OSError, SafetensorError):
        pass  # not made yet, or half a file
    images, names = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"images": images}, fresh, {"names": json.dumps(names)})
    os.replace(fresh, path)
    return path
