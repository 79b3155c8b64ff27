"""What a compiled or captured function was specialised to: the kind of every input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fmeta.core._torch import autocast_is_on, default_device
from fmeta.core.tree import named_leaves, tree_structure


def kind(leaf: Any) -> Any:
    """What a graph is specialised to, fast to compare: the layout of a tensor, the value of anything else."""
    if not isinstance(leaf, Tensor):
        return type(leaf), repr(leaf)
    own = type(leaf), leaf.layout, leaf.dtype, leaf.device, leaf.requires_grad, leaf.is_neg() or leaf.is_conj()
    try:
        return *own, leaf.shape, leaf.stride()
    except RuntimeError:  # sparse rows and nested tensors have none
        return own


def settings() -> tuple[Any, ...]:
    """The global state that decides what operations a function performs; `_SETTINGS` names it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        default_device(),
        _product_precision(),
        torch.get_deterministic_debug_mode(),
        _autocast() if autocast_is_on() else (),
    )


_SETTINGS = (
    "gradient mode", "inference mode", "default type", "default device", "precision of products", "deterministic mode",
    "autocast",
)  # fmt: skip


def _autocast() -> tuple[Any, ...]:
    return tuple((d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))


def _product_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for each library
        return torch.backends.cuda.matmul.fp32_precision


def signature(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, str]:
    """Each leaf by name: dtype, shape, layout and device of a tensor, the value of anything else."""
    leaves = named_leaves({**dict(enumerate(args)), **keywords})
    return (
        {f"argument {name}": _said(leaf) for name, leaf in leaves.items()}
        | {name: str(value) for name, value in zip(_SETTINGS, settings(), strict=True)}
        | {"the containers of its arguments": str(tree_structure((args, keywords)))}
    )


def differences(before: dict[str, str], now: dict[str, str], most: int = 3) -> str:
    """The first few that differ, in words; "" if none does."""
    names = dict.fromkeys([*before, *now])
    changed = [n for n in names if before.get(n) != now.get(n)]
    said = [f"{n} from {before.get(n, 'nothing')} to {now.get(n, 'nothing')}" for n in changed[:most]]
    return ", ".join(said) + (f" and {len(changed) - most} more" if len(changed) > most else "")


def _said(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    try:
        facts = [f"strides {list(leaf.stride())}"]
    except RuntimeError:  # sparse rows and nested tensors have none
        return f"{leaf.layout} of {leaf.dtype}"
    facts += [str(leaf.device)] + ["requires grad"] * leaf.requires_grad + ["a parameter"] * isinstance(leaf, Parameter)
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)} ({', '.join(facts)})"
