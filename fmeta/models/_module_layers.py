"""The layers of a module as a pure function needs them: what is refused, and what is exchanged in a copy."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fmeta.core._checks import InputError
from fmeta.core._torch import SpectralNorm
from fmeta.core.tree import tree_leaves
from fmeta.operators._embedding import refuse_options


def named(name: str, layer: nn.Module) -> str:
    return f"{name or 'the module'} ({type(layer).__name__})"


def copied(module: nn.Module) -> nn.Module:
    """The structure copied, parameters and buffers shared; tensors kept as plain attributes are copied without their
    history, because a result of the network has one."""
    memo: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    for layer in module.modules():
        for tensor in tensors_in({n: v for n, v in vars(layer).items() if n not in REGISTERED}):
            memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(module, memo)


REGISTERED = ("_parameters", "_buffers", "_modules")


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an attribute: itself, or those of a list, a tuple or a dict."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict | list | tuple):
        with contextlib.suppress(RecursionError):  # a list that holds itself
            return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return []


def check_layers(module: nn.Module) -> None:
    """Raises InputError for what cannot be a pure function over tasks, by its name."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"from_module: {name} has no shape yet; run the module once on real input first")
    for name, tensor in module.named_parameters():
        if tensor.is_complex():
            raise InputError(
                f"from_module: {name} is {tensor.dtype}; expected real parameters, because a meta-gradient is real; "
                "keep torch.view_as_real of it, and make it complex in forward with torch.view_as_complex"
            )
    for name, layer in module.named_modules():
        here = f"from_module: {named(name, layer)}"
        own = vars(layer).get("forward")
        if own is not None and getattr(own, "__self__", None) is not layer:  # a copy rebinds methods of the layer's own
            raise InputError(
                f"{here} has a forward set on the instance, which keeps the old weights; expected it in the class"
            )
        for hook in layer._forward_pre_hooks.values():
            old = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}.get(type(hook).__name__)
            if old is not None:
                raise InputError(
                    f"{here} is under torch.nn.utils.{old}, which keeps the weight it computed as an attribute; "
                    f"expected torch.nn.utils.parametrizations.{old}"
                )
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            refuse_options(f"{here}", layer.max_norm, layer.scale_grad_by_freq)


def exchange_layers(module: nn.Module) -> None:
    """Makes the layers of a copy pure: what keeps state, and what takes a way that no transform can follow."""
    for layer in module.modules():
        for checkpointing in ("gradient_checkpointing", "grad_checkpointing"):
            if getattr(layer, checkpointing, None) is True:  # `adjoint` and `chunked` do its work
                setattr(layer, checkpointing, False)
        if isinstance(layer, nn.TransformerEncoder):
            layer.enable_nested_tensor = layer.use_nested_tensor = False
        for parametrisation in layer.children() if isinstance(layer, nn.utils.parametrize.ParametrizationList) else ():
            if isinstance(parametrisation, SpectralNorm):
                parametrisation.__class__ = _PureSpectralNorm


class _PureSpectralNorm(SpectralNorm):
    """W/σ, σ the largest singular value of W, by power iteration from the vectors that the layer came with.

    torch moves these by one iteration at each training step and takes them for constants; here σ is a function of W
    alone, and so are its derivatives. Miyato et al. 2018, https://arxiv.org/abs/1802.05957.
    """

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        matrix = self._reshape_weight_to_matrix(weight)
        u, v = self._u, self._v
        for _ in range(max(_ITERATIONS, self.n_power_iterations)):
            u = F.normalize(matrix @ v, dim=0, eps=self.eps)
            v = F.normalize(matrix.mT @ u, dim=0, eps=self.eps)
        return weight / (u @ matrix @ v)


_ITERATIONS = 15  # as many as torch takes to begin with


def each(module: nn.Module, kind: Any) -> list[tuple[str, Any]]:
    """Layers of a kind by name; one that stands in two places has two names."""
    return [(name, m) for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, kind)]


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts a layer in the place of that name."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
