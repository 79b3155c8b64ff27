"""A model whose forward and backward pass run in a lower precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

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

    Only float32 is lowered. Parameters in float64 are run as they are, with their inputs: this is how checks
    (`check_meta_grad`, `fmeta check`, `fmeta.testing`), which cast to float64, look at the mathematics.

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
    """`model` with every float32 tensor it sees in `dtype`, and its prediction in the parameters' own.

    Where the parameters are float64 it is `model`.
    """

    def cast(values: Tree, old: torch.dtype, new: torch.dtype) -> Tree:
        return tree.tree_map(lambda t: t.to(new) if isinstance(t, Tensor) and t.dtype == old else t, values)

    def lowered(function: Callable[..., Tree] | None) -> Any:
        if function is None:
            return None

        def run(params: Tree, x: Tree, *key: Tensor) -> Tree:
            full = tree.scalar_like(params, x).dtype
            if full != torch.float32:
                return function(params, x, *key)
            low = (cast(values, full, dtype) for values in (params, x))
            return cast(function(*low, *key), dtype, full)

        return run

    parts = model.parts
    if parts is not None:
        parts = parts._replace(trunk=lowered(parts.trunk), head=lowered(parts.head), noisy=lowered(parts.noisy))
    return model._replace(apply=lowered(model.apply), noisy=lowered(model.noisy), parts=parts)


def _lacks(precision: str, device: torch.device) -> str | None:
    """What the device would need, or None."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "a CUDA device, and there is none"
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "compute capability 8.0"
    if precision == "tf32":
        return "the tensor cores of a CUDA device"
    return None if fast_bfloat16() else "a processor with AVX-512 or AMX"
