"""A model whose forward and backward pass run in a lower precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_model, nearest
from fmeta.core._torch import fast_bfloat16
from fmeta.core._types import Model, Tree

Precision = Literal["float32", "tf32", "bfloat16"]


def with_precision(model: Model, precision: Precision, device: torch.device | str = "cpu") -> Model:
    """`model` in another precision; its parameters, and so every inner and outer update, stay as they are.

        apply(params, x) = model.apply(bfloat16(params), bfloat16(x)) in the precision of the parameters

    Args:
        model: any model.
        precision: "float32": as it is. "bfloat16": activations and their gradients have 8 bits of mantissa; norms take
            their moments in float32. "tf32": products of 10 bits on the tensor cores of CUDA, a setting of the whole
            process (`torch.set_float32_matmul_precision`).
        device: where it will run. What the device does not have is left at float32, with a warning.
    """
    check_model("with_precision", model)
    if precision not in get_args(Precision):
        known = nearest(str(precision), get_args(Precision))
        raise InputError(f"with_precision(precision={precision!r}): unknown precision; {known}")
    if precision == "float32":
        return model
    lacks = _lacks(precision, torch.device(device))
    if lacks:
        warnings.warn(f"fmeta stays in float32: precision={precision!r} needs {lacks}", stacklevel=2)
        return model
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        return model
    return in_dtype(model, torch.bfloat16)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """`model` with every floating tensor it sees in `dtype`, and its prediction in the parameters' own."""

    def lower(values: Tree) -> Tree:
        return tree.tree_map(lambda t: t.to(dtype) if _floating(t) else t, values)

    def back(prediction: Tree, *given: Tree) -> Tree:
        full = tree.scalar_like(*given).dtype
        return tree.tree_map(lambda t: t.to(full) if _floating(t) else t, prediction)

    def apply(params: Tree, x: Tree) -> Tree:
        return back(model.apply(lower(params), lower(x)), params, x)

    def with_noise(noisy: Callable[[Tree, Tree, Tensor], Tree] | None) -> Callable[[Tree, Tree, Tensor], Tree] | None:
        if noisy is None:
            return None
        return lambda params, x, key: back(noisy(lower(params), lower(x), key), params, x)

    parts = model.parts
    if parts is not None:
        trunk, head = parts.trunk, parts.head
        parts = parts._replace(
            trunk=lambda params, x: back(trunk(lower(params), lower(x)), params, x),
            head=lambda params, x: back(head(lower(params), lower(x)), params, x),
            noisy=with_noise(parts.noisy),
        )
    return model._replace(apply=apply, noisy=with_noise(model.noisy), parts=parts)


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _lacks(precision: str, device: torch.device) -> str | None:
    """What the device would need, or None."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "a CUDA device, and there is none"
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "compute capability 8.0"
    if precision == "tf32":
        return "the tensor cores of a CUDA device"
    return None if fast_bfloat16() else "a processor with AVX-512 or AMX"
