"""What becomes of layers that keep running statistics, which a pure function cannot update."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fmeta.core._checks import InputError, nearest
from fmeta.core._torch import BatchNorm, RunningNorm
from fmeta.core._types import Tree
from fmeta.models._module_layers import each, named, replace

Norm = Literal["batch", "frozen", "group"]
_POLICIES = {
    "batch": "statistics of the present batch, in training and in test (transductive)",
    "frozen": "running or calibrated statistics as constants",
    "group": "GroupNorm in its place",
}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def check_policy(norm: Norm | None, calibrate: Tree) -> None:
    if norm is not None and norm not in _POLICIES:
        raise InputError(f"from_module(norm={norm!r}): unknown policy; {nearest(str(norm), _POLICIES)}")
    if calibrate is not None and norm != "frozen":
        raise InputError(f"from_module(norm={norm!r}, calibrate=…): only norm='frozen' uses calibration inputs")


def replace_norms(module: nn.Module, norm: Norm | None, groups: int) -> None:
    """Makes every layer with running statistics follow the policy. A class with a forward of its own (an activation
    inside, as in timm's BatchNormAct2d) keeps it, and normalises otherwise within it."""
    for name, layer in each(module, RunningNorm):
        if layer.running_mean is None or layer.running_var is None:
            continue  # batch or instance statistics already
        here = named(name, layer)
        if norm is None:
            raise InputError(
                f"from_module: {here} keeps running statistics, which a pure function cannot update; expected a "
                "policy: " + "; ".join(f"norm={k!r} ({v})" for k, v in _POLICIES.items())
            )
        if isinstance(layer, nn.SyncBatchNorm):
            layer.__class__ = _BatchNorm  # type: ignore[assignment]
        if norm == "frozen":
            if bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all()):
                raise InputError(
                    f"from_module(norm='frozen'): {here} has seen no data, its statistics are 0 and 1; "
                    "expected trained statistics; pass calibrate=inputs to take them in one pass"
                )
        elif norm == "batch":
            _forget_statistics(layer)
        elif type(layer).forward in _OF_TORCH:
            if not name:
                raise InputError(f"from_module: {here} is itself a norm; wrap it, e.g. nn.Sequential(layer)")
            group = nn.GroupNorm(_groups(layer, groups), layer.num_features, layer.eps, affine=layer.affine)
            group.weight, group.bias = layer.weight, layer.bias
            replace(module, name, group)
        else:
            _forget_statistics(layer)
            layer.__class__ = _grouped(type(layer), here, _groups(layer, groups))


def keep_frozen(module: nn.Module) -> None:
    """Lets norms with running statistics use them, whatever the mode of what is around and inside them."""
    for _, layer in each(module, RunningNorm):
        layer.training = False


def _groups(layer: Any, groups: int) -> int:
    return math.gcd(groups, layer.num_features)


def _forget_statistics(layer: nn.Module) -> None:
    """Torch's own word for statistics of the batch, or of the instance, in training and in test."""
    for name in _STATISTICS:
        layer.register_buffer(name, None)
    layer.track_running_stats = False  # type: ignore[assignment]


class _BatchNorm(BatchNorm):
    """Of any number of axes, as nn.SyncBatchNorm, which runs on CUDA alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


_OF_TORCH = {kind.forward for kind in (nn.BatchNorm1d, nn.InstanceNorm1d)}


def _grouped(kind: type[nn.Module], here: str, groups: int) -> type[nn.Module]:
    """A class of norms with a forward of its own, whose batch norm is a group norm."""

    class Grouped(kind):  # type: ignore[valid-type,misc]
        def forward(self, *args: Any, **keywords: Any) -> Any:
            with _GroupNormInstead(groups) as mode:
                y = super().forward(*args, **keywords)
            if not mode.called:
                raise InputError(
                    f"from_module(norm='group'): {here} normalises without F.batch_norm; expected norm='frozen' or "
                    "'batch', or nn.GroupNorm in its place"
                )
            return y

    Grouped.__name__ = kind.__name__
    return Grouped


class _GroupNormInstead(TorchFunctionMode):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.called = groups, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        self.called = True

        def group_norm(
            x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
            momentum: float = 0.1, eps: float = 1e-5,
        ) -> Tensor:  # fmt: skip
            return F.group_norm(x, self.groups, weight, bias, eps)

        return group_norm(*args, **(kwargs or {}))


def calibrate_norms(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Statistics of every norm from one pass, each layer seeing its predecessors normalised by batch."""
    for _, layer in each(module, RunningNorm):
        if layer.running_mean is None:
            continue
        for name in _STATISTICS:  # shared with the user's module: give the copy its own before they are written
            layer.register_buffer(name, getattr(layer, name).clone())
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative average
        layer.training = True
    with torch.no_grad():
        module(*args, **keywords)
    module.eval()
