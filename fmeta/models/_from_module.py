"""`from_module`: any nn.Module as a pure `Model`, with batch norm, dropout, caches and tied weights made explicit."""

from __future__ import annotations

import contextlib
import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fmeta.core._checks import InputError, hidden, refuse_compiled
from fmeta.core._torch import first_of_batch, without_levels
from fmeta.core._types import Model, Tree
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map
from fmeta.models._module_layers import check_layers, copied, exchange_layers
from fmeta.models._module_norms import Norm, calibrate_norms, check_policy, keep_frozen, replace_norms
from fmeta.models._module_state import Kept, look, path, undisturbed
from fmeta.operators._explain import explained_by_layer
from fmeta.operators._noise import Noise
from fmeta.operators._over_tasks import drawing


def from_module(module: nn.Module, *, norm: Norm | None = None, calibrate: Tree = None, groups: int = 8) -> Model:
    """A pure `Model` from a module, which stays as it is.

    `init(key)` returns copies of the module's present weights by name, the same for every key (which says on which
    device): seeds that shall differ need modules drawn anew. `apply(params, x)` calls the module in evaluation mode: a
    tensor `x` as the one argument, a tuple as arguments, a dict as keywords. `noisy(params, x, key)`, which the inner
    loop uses, calls it in training mode and draws from the key whatever it draws at random: dropout in all its forms,
    in attention and between recurrent layers too, stochastic depth, noise. It is None where the module, made of
    torch's own layers, draws nothing.

    Parameters with `requires_grad=False` and buffers are constants, best on the device of the parameters; where all are
    constants, `init` gives `{}`. They keep the dtype they came with; those in the dtype of the parameters follow these
    into another. Tied weights stay tied. A table that the first forward makes is made in every call.
    nn.LSTM and its kin run in plain operations, with torch's weights and names; spectral norm is computed anew.

    Args:
        norm: what to do about layers that keep running statistics, which a pure function cannot update.
            "batch": statistics of the present batch, as MAML's (https://arxiv.org/abs/1703.03400) own code does;
            padding counts in them.
            "frozen": the running statistics as constants: y = (x − mean)/√(var + eps)·weight + bias.
            "group": GroupNorm (Wu & He 2018, https://arxiv.org/abs/1803.08494) with the layer's weight and bias.
        calibrate: for "frozen": inputs (as `x`) from which one pass takes the statistics.
        groups: for "group": the largest number of groups; a layer uses its greatest common divisor with the channels.

    Raises:
        InputError: a compiled module; a layer with running statistics and no policy, or frozen without statistics; the
            old weight_norm and spectral_norm; a forward set on an instance; complex or uninitialised lazy parameters;
            an embedding with `max_norm` or `scale_grad_by_freq`. Each names the layer. At the first call: state that
            moves with every call, by its name; what torch cannot do over tasks, with the layer and the line.
    """
    quiet = _prepared(module, norm, calibrate, groups)
    restless = copied(quiet).train()
    keep_frozen(restless)
    trained = {n: p.detach().clone() for n, p in quiet.named_parameters() if p.requires_grad}
    constants = {n: p.detach().clone() for n, p in quiet.named_parameters() if not p.requires_grad}
    constants |= {n: b.detach().clone() for n, b in quiet.named_buffers()}
    call, noisy_call = _Call(quiet, trained, constants), _Call(restless, trained, constants)

    def init(key: Tensor) -> Tree:
        return {name: p.clone().to(key.device) for name, p in trained.items()}

    def apply(params: Tree, x: Tree) -> Tree:
        return call(params, x, (), "expected none in evaluation mode; draw where self.training is set")

    def noisy(params: Tree, x: Tree, key: Tree) -> Tree:
        return noisy_call(params, x, key, "expected tasks with keys: tasks._replace(key=fmeta.split(key, count))")

    return Model(init, apply, noisy if _may_draw(restless) else None)


def to_module(
    module: nn.Module, params: Tree, *, norm: Norm | None = None, calibrate: Tree = None, groups: int = 8
) -> nn.Module:
    """The way back: a copy of `module` with these parameters, which in `eval()` predicts what `from_module` does.

        net = fmeta.to_module(module, learner.adapt(meta, support, key), norm="batch")

    Args:
        module: what `from_module` was given.
        params: of its model: `meta`, or the fast weights of a task.
        norm: the policy that `from_module` was given: "batch" norms take statistics of the batch in `eval()` too;
            "group" puts nn.GroupNorm in their place, "frozen" leaves the running statistics.
        calibrate: as in `from_module`; for "batch" networks that shall run with running statistics from now on, give
            norm="frozen" and inputs to take them from.
        groups: as in `from_module`.

    Raises:
        InputError: parameters of another module; what `from_module` raises.
    """
    net = _prepared(module, norm, calibrate, groups)
    if not isinstance(params, dict):
        raise InputError(f"to_module: params is a {type(params).__name__}; expected a dict, parameters by name")
    present = {n: p for n, p in net.named_parameters() if p.requires_grad}
    odd = [n for n, t in params.items() if n not in present or present[n].shape != t.shape]
    missing = [n for n in present if n not in params]
    if odd or missing:
        said = [f"{n} has no place here" for n in odd[:3]] + [f"{n} is missing" for n in missing[:3]]
        raise InputError(f"to_module: {', '.join(said)}; expected the parameters that from_module(module).init gives")
    net = copy.deepcopy(net)  # its parameters are still those of `module`
    for name, parameter in net.named_parameters():
        if name in params:
            parameter.data = params[name].detach().clone()
    return net


def _prepared(module: nn.Module, norm: Norm | None, calibrate: Tree, groups: int) -> nn.Module:
    """A copy in evaluation mode whose layers are pure."""
    refuse_compiled("from_module", module)
    if not isinstance(module, nn.Module):
        raise InputError(f"from_module: got a {type(module).__name__}; expected an nn.Module")
    check_policy(norm, calibrate)
    check_layers(module)
    quiet = copied(module).eval()
    if calibrate is not None:
        calibrate_norms(quiet, *_arguments(calibrate))
    replace_norms(quiet, norm, groups)
    exchange_layers(quiet)
    return quiet


class _Call:
    """The forward pass of a module as a function of parameters, inputs and a key."""

    def __init__(self, module: nn.Module, trained: dict[str, Tensor], constants: dict[str, Tensor]) -> None:
        self.module, self.constants = module, constants
        self.dtypes = {name: p.dtype for name, p in trained.items()}
        self.frozen = {name for name, _ in module.named_parameters()} - trained.keys()
        self.kept: dict[Any, Kept] = {}  # by the kind of the input
        self.lock = threading.RLock()  # a call exchanges the tensors of the module

    def __call__(self, params: Tree, x: Tree, key: Tree, why: str) -> Tree:
        constants = self._constants(params, x)
        with self.lock, explained_by_layer:
            kept = self._kept(params, constants, x, key, why)
            if kept is None:
                around: Any = undisturbed(self.module, constants)
                constants = {name: c for name, c in constants.items() if name in self.frozen}
            elif kept.filled or kept.written:
                around = kept.installed(self.module)
                tables = {path(name, attribute) for name, _, attribute in kept.filled}
                constants = {name: c for name, c in constants.items() if name not in tables}
            else:
                around = contextlib.nullcontext()
            if kept is None or kept.changes_input:
                x = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)
            with drawing(Noise(key, why)), around:
                return self._run(self.module, {**constants, **params}, x)

    @staticmethod
    def _run(module: nn.Module, tensors: dict[str, Tensor], x: Tree) -> Tree:
        args, keywords = _arguments(x)
        return functional_call(module, tensors, args, keywords)

    def _constants(self, params: Tree, x: Tree) -> dict[str, Tensor]:
        """On the device of the others; those in the dtype of the parameters in what that is now."""
        if not self.constants:
            return {}
        inputs = [t for t in tree_leaves(x) if isinstance(t, Tensor)]
        device = next(iter((*params.values(), *inputs))).device
        dtypes = {self.dtypes[name]: p.dtype for name, p in params.items() if name in self.dtypes}
        if not self.dtypes:  # all are frozen: the input says in which precision, of those that a check or a cast takes
            given = next((t.dtype for t in inputs if t.is_floating_point()), torch.float32)
            dtypes = dict.fromkeys((torch.float32, torch.float64), given)
        return {n: c.to(device, dtypes.get(c.dtype, c.dtype)) for n, c in self.constants.items()}

    def _kept(self, params: Tree, constants: dict[str, Tensor], x: Tree, key: Tree, why: str) -> Kept | None:
        """What calls with inputs of this kind leave behind; None where that is not known and cannot be found now."""
        leaves, structure = tree_flatten((x, key, *list(params.values())[:1]))
        facts = [(t.shape, t.dtype, t.device) if isinstance(t, Tensor) else repr(t) for t in leaves]
        kind = (structure, *facts)
        kept = self.kept.get(kind)
        if kept is not None:
            return kept
        if any(hidden(t) for t in (*leaves, *params.values()) if isinstance(t, Tensor)):
            return None

        def run(scratch: nn.Module, params: dict[str, Tensor], x: Tree) -> Tree:
            with drawing(Noise(plain_key, why)):
                return self._run(scratch, frozen | params, x)

        with torch.no_grad():
            plain, plain_x, plain_key = tree_map(
                lambda t: first_of_batch(t) if isinstance(t, Tensor) else t, (params, x, key)
            )
            frozen = {name: c for name, c in constants.items() if name in self.frozen}
            with without_levels():
                kept = self.kept[kind] = look(self.module, constants, plain, plain_x, run)
        return kept


def _arguments(x: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


def _may_draw(module: nn.Module) -> bool:
    """Whether training mode may differ by what is drawn: a layer of torch's says so; of any other nobody knows."""
    return any(_draws(layer) for layer in module.modules())


def _draws(layer: nn.Module) -> bool:
    if not type(layer).__module__.startswith(("torch.nn.", "fmeta.")):
        return True
    if "Fractional" in type(layer).__name__:
        return True
    rate = getattr(layer, "p", 0.0) if "Dropout" in type(layer).__name__ else getattr(layer, "dropout", 0.0)
    return isinstance(layer, nn.RReLU) or (isinstance(rate, float | int) and rate > 0)
