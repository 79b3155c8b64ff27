"""Weights from a file: reading it, names that are others, and what it lacks or has beside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from fmeta.core import InputError

_WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model")  # what training scripts keep beside other things


def read_weights(call: str, file: Path) -> dict[str, Tensor]:
    """What a file holds by its own names."""
    if not file.is_file():
        raise InputError(f"{call}: no such file; expected one, 'hub', or None")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in the file
        raise InputError(f"{call}: {error}; expected weights of this network, .safetensors or .pth") from error
    inside = next((n for n in _WITHIN if isinstance(held, dict) and isinstance(held.get(n), dict)), None)
    found = held if inside is None else held[inside]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{call}: the file holds a {type(found).__name__}; expected tensors by name, a state_dict()")
    return found


def renamed(call: str, weights: dict[str, Tensor], rename: Callable[[str], str | None] | None) -> dict[str, Tensor]:
    """Weights by other names, without those whose name is None."""
    if rename is None:
        return weights
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        new = rename(name)
        if new is None:
            continue
        if not isinstance(new, str) or new in found:
            came = "for the second time" if isinstance(new, str) else f"a {type(new).__name__}"
            raise InputError(f"{call}: rename({name!r}) gave {new!r}, {came}; expected a name of its own, or None")
        found[new] = weight
    return found


def misfits(missing: list[str], unexpected: list[str]) -> str:
    """What is wrong with names that do not fit, and the cure."""
    lacks = f"it lacks {_some(missing)} of the network" if missing else ""
    holds = f"it holds {_some(unexpected)} that the network has not" if unexpected else ""
    wrapped = bool(unexpected) and all(n.startswith("module.") for n in unexpected)
    example = 'lambda name: name.removeprefix("module.")' if wrapped else "a function from the file's names to timm's"
    said = " and ".join(filter(None, (lacks, holds)))
    return f"{said}; expected the weights of this network; pass rename={example} (None leaves a weight out)"


def _some(names: list[str]) -> str:
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"


@contextlib.contextmanager
def loading() -> Iterator[tuple[list[str], list[str]]]:
    """The names that the last `load_state_dict` of a module made within found missing, and unexpected."""
    missing: list[str] = []
    unexpected: list[str] = []
    hooks: dict[nn.Module, Any] = {}

    def loaded(module: nn.Module, keys: Any) -> None:
        missing[:], unexpected[:] = keys.missing_keys, keys.unexpected_keys

    def made(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if module not in hooks:
            hooks[module] = module.register_load_state_dict_post_hook(loaded)

    watch = register_module_module_registration_hook(made)
    try:
        yield missing, unexpected
    finally:
        for handle in (watch, *hooks.values()):
            handle.remove()
