"""`from_module`: any nn.Module as a pure `Model`, with batch norm, dropout and tied weights made explicit."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fmeta.core._checks import InputError, nearest, refuse_compiled
from fmeta.core._random import fold, uniform
from fmeta.core._torch import Dropout, RunningNorm
from fmeta.core._types import Model, Tree
from fmeta.core.tree import tree_leaves
from fmeta.operators._norm import batch_norm

Norm = Literal["batch", "frozen", "group"]
_POLICIES = {
    "batch": "statistics of the present batch, in training and in test (transductive)",
    "frozen": "running or calibrated statistics as constants",
    "group": "GroupNorm in its place",
}


def from_module(module: nn.Module, *, norm: Norm | None = None, calibrate: Tree = None, groups: int = 8) -> Model:
    """A pure `Model` from a module, which stays as it is.

    `init(key)` returns copies of the module's present weights by name (the key only says on which device).
    `apply(params, x)` calls the module: a tensor `x` as the one argument, a tuple as arguments, a dict as keywords.
    Parameters with `requires_grad=False` and buffers are constants, best on the device of the parameters; where all are
    constants, `init` gives `{}`. Tied weights
    stay tied. Dropout is off in `apply` and drawn from the key in `noisy(params, x, key)`, which the inner loop uses; a
    dropout layer that one forward pass calls twice draws the same mask twice, so give each place its own.

    Args:
        norm: what to do about layers that keep running statistics, which a pure function cannot update.
            "batch": statistics of the present batch, as MAML's (https://arxiv.org/abs/1703.03400) own code does;
            padding counts in them.
            "frozen": the running statistics as constants: y = (x − mean)/√(var + eps)·weight + bias.
            "group": GroupNorm (Wu & He 2018, https://arxiv.org/abs/1803.08494) with the layer's weight and bias.
        calibrate: for "frozen": inputs (as `x`) from which one pass takes the statistics.
        groups: for "group": the largest number of groups; a layer uses its greatest common divisor with the channels.

    Raises:
        InputError: a compiled module; a layer with running statistics and no policy, or frozen without statistics; a
            layer whose randomness cannot be drawn by key; a fused recurrent layer, which vmap cannot batch; a forward
            set on an instance; uninitialised lazy parameters. Each names the layer.
    """
    refuse_compiled("from_module", module)
    if not isinstance(module, nn.Module):
        raise InputError(f"from_module: got a {type(module).__name__}; expected an nn.Module")
    if norm is not None and norm not in _POLICIES:
        raise InputError(f"from_module(norm={norm!r}): unknown policy; {nearest(str(norm), _POLICIES)}")
    _check_layers(module)
    quiet = _copy(module).eval()
    if calibrate is not None:
        if norm != "frozen":
            raise InputError(f"from_module(norm={norm!r}, calibrate=…): only norm='frozen' uses calibration inputs")
        _calibrate(quiet, calibrate)
    _replace_norms(quiet, norm, groups)
    noisy = _copy(quiet)
    sources = _key_dropouts(noisy)

    trained = {n: p.detach().clone() for n, p in quiet.named_parameters() if p.requires_grad}
    constants = {n: p.detach().clone() for n, p in quiet.named_parameters() if not p.requires_grad}
    constants |= {n: b.detach().clone() for n, b in quiet.named_buffers()}

    def init(key: Tensor) -> Tree:
        return {name: p.clone().to(key.device) for name, p in trained.items()}

    def fixed(params: Tree, x: Tree) -> dict[str, Tensor]:
        beside = [t for t in tree_leaves((params, x)) if isinstance(t, Tensor)]
        floating = [t.dtype for t in beside if t.is_floating_point()]
        device, dtype = beside[0].device, floating[0] if floating else None
        return {n: c.to(device, dtype if c.is_floating_point() else None) for n, c in constants.items()}

    def apply(params: Tree, x: Tree) -> Tree:
        return functional_call(quiet, {**fixed(params, x), **params}, *_arguments(x))

    def apply_noisy(params: Tree, x: Tree, key: Tensor) -> Tree:
        keys = {f"{name}.key": fold(key, i) for i, name in enumerate(sources)}
        return functional_call(noisy, {**fixed(params, x), **keys, **params}, *_arguments(x))

    return Model(init, apply, apply_noisy if sources else None)


def _arguments(x: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


def _copy(module: nn.Module) -> nn.Module:
    """The structure copied, the tensors shared."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(t): t for t in tensors})


def _check_layers(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"from_module: {name} has no shape yet; run the module once on real input first")
    for name, layer in module.named_modules():
        here = f"from_module: {name or 'the module'} ({type(layer).__name__})"
        if "forward" in vars(layer):
            raise InputError(
                f"{here} has a forward set on the instance, which keeps the old weights; expected it in the class"
            )
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            raise InputError(f"{here} is fused and cannot be batched by vmap; expected gates written with nn.Linear")
        if isinstance(layer, nn.MultiheadAttention) and layer.dropout > 0:
            raise InputError(f"{here} has dropout {layer.dropout} inside, not drawn by key; expected 0; set it to 0")


def _each(module: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Layers of a kind by name; one that stands in two places has two names."""
    return [(name, m) for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, kind)]


def _replace(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`module` with the layer of that name exchanged (the module itself has the name '')."""
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
    return module


# ---- norm policies -----------------------------------------------------------------------------


class _BatchStatistics(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.weight, self.bias, self.eps)


class _FrozenStatistics(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.register_buffer("mean", layer.running_mean)
        self.register_buffer("variance", layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        channels = (-1,) + (1,) * (x.ndim - 2)
        factor = (self.variance + self.eps).rsqrt()
        if self.weight is not None:
            factor = factor * self.weight
        y = (x - self.mean.view(channels)) * factor.view(channels)
        return y if self.bias is None else y + self.bias.view(channels)


def _replace_norms(module: nn.Module, norm: Norm | None, groups: int) -> None:
    for name, layer in _each(module, RunningNorm):
        assert isinstance(layer, RunningNorm)
        if layer.running_mean is None or layer.running_var is None:
            continue  # batch or instance statistics already
        here = f"{name or 'the module'} ({type(layer).__name__})"
        if not name:
            raise InputError(f"from_module: {here} is itself a norm; wrap it, e.g. nn.Sequential(layer)")
        if norm is None:
            raise InputError(
                f"from_module: {here} keeps running statistics, which a pure function cannot update; expected a "
                "policy: " + "; ".join(f"norm={k!r} ({v})" for k, v in _POLICIES.items())
            )
        if norm == "batch" and "InstanceNorm" in type(layer).__name__:
            layer.register_buffer("running_mean", None)
            layer.register_buffer("running_var", None)
            layer.track_running_stats = False
        elif norm == "batch":
            _replace(module, name, _BatchStatistics(layer))
        elif norm == "frozen":
            if bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all()):
                raise InputError(
                    f"from_module(norm='frozen'): {here} has seen no data, its statistics are 0 and 1; "
                    "expected trained statistics; pass calibrate=inputs to take them in one pass"
                )
            _replace(module, name, _FrozenStatistics(layer))
        else:
            channels = layer.num_features
            group = nn.GroupNorm(math.gcd(groups, channels), channels, layer.eps, affine=layer.affine)
            group.weight, group.bias = layer.weight, layer.bias
            _replace(module, name, group)


def _calibrate(module: nn.Module, inputs: Tree) -> None:
    """Statistics of every norm from one pass over `inputs`, each layer seeing its predecessors normalised by batch."""
    layers = [layer for _, layer in _each(module, RunningNorm) if getattr(layer, "running_mean", None) is not None]
    for layer in layers:
        # the copy shares its tensors with the user's module: give it its own before they are written
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            layer.register_buffer(name, getattr(layer, name).clone())
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]  # torch's word for a cumulative average
        layer.train()
    args, keywords = _arguments(inputs)
    with torch.no_grad():
        module(*args, **keywords)
    module.eval()


# ---- dropout by key ----------------------------------------------------------------------------


class _KeyedDropout(nn.Module):
    key: Tensor

    def __init__(self, rate: float, whole_channels: bool) -> None:
        super().__init__()
        self.rate, self.whole_channels = rate, whole_channels
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], *(1 for _ in x.shape[2:])) if self.whole_channels else x.shape
        kept = uniform(self.key, shape, dtype=torch.float64) >= self.rate
        return x * kept.to(x.dtype) / (1.0 - self.rate)


def _key_dropouts(module: nn.Module) -> list[str]:
    """Makes dropout layers draw from a key buffer. Returns their names."""
    sources = []
    for name, layer in _each(module, Dropout):
        assert isinstance(layer, Dropout)
        here = f"from_module: {name or 'the module'} ({type(layer).__name__})"
        if layer.p == 0:
            continue
        if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout) or layer.p >= 1:
            raise InputError(f"{here} cannot be drawn by key; expected Dropout, Dropout1d/2d/3d with p < 1")
        if not name:
            raise InputError(f"{here} is itself a dropout; wrap it, e.g. nn.Sequential(layer)")
        _replace(module, name, _KeyedDropout(layer.p, not isinstance(layer, nn.Dropout)))
        sources.append(name)
    return sources
