"""What a compiled or captured function was specialised to: the kind of every input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmeta.core._torch import autocast_is_on
from fmeta.core.tree import named_leaves


def kind(leaf: Any) -> Any:
    """What a graph is specialised to, fast to compare: the layout of a tensor, the value of anything else."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), repr(leaf)


def settings() -> tuple[Any, ...]:
    """The global state that decides what operations a function performs."""
    if not autocast_is_on():
        return torch.is_grad_enabled(), torch.get_default_dtype()
    kinds = [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    return torch.is_grad_enabled(), torch.get_default_dtype(), *kinds


def signature(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, str]:
    """Each leaf by name: dtype, shape, layout and device of a tensor, the value of anything else."""
    leaves = named_leaves({**dict(enumerate(args)), **keywords})
    return {f"argument {name}": _said(leaf) for name, leaf in leaves.items()} | {
        "gradient mode, default type, autocast": str(settings())
    }


def differences(before: dict[str, str], now: dict[str, str], most: int = 3) -> str:
    """The first few that differ, in words; "" if none does."""
    names = dict.fromkeys([*before, *now])
    changed = [n for n in names if before.get(n) != now.get(n)]
    said = [f"{n} from {before.get(n, 'nothing')} to {now.get(n, 'nothing')}" for n in changed[:most]]
    return ", ".join(said) + (f" and {len(changed) - most} more" if len(changed) > most else "")


def _said(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    facts = [f"strides {list(leaf.stride())}", str(leaf.device)] + ["requires grad"] * leaf.requires_grad
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)} ({', '.join(facts)})"
