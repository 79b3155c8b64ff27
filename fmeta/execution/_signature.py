"""What a compiled or captured function was specialised to: the kind of every input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmeta.core._tree import named_leaves


def signature(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, str]:
    """Each leaf by name: dtype, shape, layout and device of a tensor, the value of anything else."""
    return {
        f"argument {name}": _kind(leaf) for name, leaf in named_leaves({**dict(enumerate(args)), **keywords}).items()
    }


def differences(before: dict[str, str], now: dict[str, str], most: int = 3) -> str:
    """The first few that differ, in words; "" if none does."""
    names = dict.fromkeys([*before, *now])
    changed = [n for n in names if before.get(n) != now.get(n)]
    said = [f"{n} from {before.get(n, 'nothing')} to {now.get(n, 'nothing')}" for n in changed[:most]]
    return ", ".join(said) + (f" and {len(changed) - most} more" if len(changed) > most else "")


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    facts = [f"strides {list(leaf.stride())}", str(leaf.device)] + ["requires grad"] * leaf.requires_grad
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)} ({', '.join(facts)})"
