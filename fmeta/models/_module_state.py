"""What a module keeps besides its parameters: tables made at the first forward, and state that moves.

A pure function has neither. Before the first call with inputs of a kind, a copy of the module runs twice on the inputs
of one task, outside all transforms, and its tensors are compared. A table is made anew in every call, which begins with
the module as it came; one that other inputs would have filled otherwise, and what differs after the second run, is
state, and is refused by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fmeta.core._checks import InputError
from fmeta.core._types import Tree
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.models._module_layers import REGISTERED, copied, named, tensors_in
from fmeta.operators._by_key import same_bits

Place = tuple[str, bool, str]  # name of the layer, whether it is a buffer, name of the attribute
Run = Callable[[nn.Module, dict[str, Tensor], Tree], Tree]  # a copy of the module, parameters, inputs -> prediction
_ABSENT = object()


class Kept(NamedTuple):
    """What the calls of a module with inputs of one kind leave behind."""

    filled: dict[Place, Any]  # what the first of them wrote in place, and all use
    written: frozenset[Place]  # what each of them makes anew, of no use to the next
    changes_input: bool

    @contextlib.contextmanager
    def installed(self, module: nn.Module) -> Iterator[None]:
        """Within this context the module has what was filled; afterwards it is as it was before."""
        before = {place: _noted(_get(module, place)) for place in (*self.filled, *self.written)}
        for place, value in self.filled.items():
            _set(module, place, value)
        try:
            yield
        finally:
            for place, noted in before.items():
                _set(module, place, _put_back(*noted))


def _noted(value: Any) -> tuple[Any, Any]:
    """A value, and what it holds where that can be changed in place."""
    return value, value.copy() if isinstance(value, dict | list) else None


def _put_back(value: Any, contents: Any) -> Any:
    if contents is not None:
        value.clear()
        value.update(contents) if isinstance(value, dict) else value.extend(contents)
    return value


@contextlib.contextmanager
def undisturbed(module: nn.Module, buffers: dict[str, Tensor]) -> Iterator[None]:
    """Within this context the module has these buffers; afterwards it is as it was before, whatever the calls within
    set: the tensors of a trace have no values.

    Raises InputError where a tensor was replaced that was there before: in a trace nobody can see whether it moves.
    """
    own: list[Any] = [(layer._buffers, dict(layer._buffers)) for layer in module.modules()]
    for name, layer in module.named_modules():
        for attribute in layer._buffers:
            layer._buffers[attribute] = buffers.get(path(name, attribute), layer._buffers[attribute])
    values = [(name, now) for name, layer in module.named_modules() for now in (vars(layer), layer._buffers)]
    before = [{n: _noted(v) for n, v in now.items() if n not in REGISTERED} for _, now in values]
    replaced = []
    try:
        yield
    finally:
        for (layer, now), then in zip(values, before, strict=True):
            for name in [n for n, value in now.items() if n not in REGISTERED and tensors_in(value)]:
                if name not in then:
                    del now[name]
                    continue
                if now[name] is not then[name][0] and tensors_in(then[name][0]):
                    replaced.append(path(layer, name))
                now[name] = _put_back(*then[name])
        for now, then in own:
            now.update(then)
    if replaced:
        raise InputError(
            f"from_module: {replaced[0]} is set anew while the network is compiled, where nobody can see whether it "
            "moves; expected one call on real inputs before, which looks at it; or forward without that line"
        )


def look(module: nn.Module, buffers: dict[str, Tensor], params: dict[str, Tensor], x: Tree, run: Run) -> Kept:
    """Runs a copy of the module on `x`, which stays as it is, and says what that left behind.

    Raises InputError for parameters and state that change, for a table that depends on what it was filled from, and for
    two runs that give two predictions.
    """
    scratch, given, own = _scratch(module, buffers), _clones(x), _clones(params)
    at_first = _state(scratch)
    before = _versions(given)
    once = _clones(run(scratch, own, given))
    changes_input = before != _versions(given)
    for name, tensor in params.items():
        if not same_bits(tensor, own[name]):
            raise InputError(
                f"from_module: forward changes the parameter {name!r} in place; expected one that computes from it: a "
                "new tensor, such as weight = self.weight.clamp(-1, 1), used in its place"
            )
    after_one, numbers = _state(scratch), _numbers(scratch)
    twice = run(scratch, own, _clones(x))
    after_two = _state(scratch)

    for place, now in after_two.items():
        if place not in after_one or not _equal(after_one[place].values, now.values):
            raise InputError(_moves(scratch, place))
    if not _equal(once, twice, exact=False):
        moved = [place for place, value in _numbers(scratch).items() if numbers.get(place) != value]
        raise InputError(
            _moves(scratch, moved[0])
            if moved
            else f"from_module: {type(module).__name__} gives two predictions for the same parameters, input and key; "
            "expected one; it draws numbers that are not torch's, or keeps state in an object of its own"
        )
    written = {p for p, now in after_two.items() if p not in at_first or not _is(at_first[p], now)}
    tables = {  # what the first run alone has set
        p: now
        for p, now in after_one.items()
        if _is(now, after_two[p]) and (p not in at_first or not _equal(at_first[p].values, now.values))
    }
    in_place = {p: now for p, now in tables.items() if p not in written}
    for found, others in (tables, (params, tree_map(_other, x))), (in_place, (_otherwise(params), x)):
        told = _told_by(_scratch(module, buffers), others, run, found)
        if told is not None:
            raise InputError(
                f"from_module: {_said(scratch, told)} is set at the first call from its input or the parameters, and "
                "would stay so; expected a table of neither; compute it at every call; statistics of typical data: run "
                "the module on those first, then give it to from_module"
            )
    return Kept({p: now.held for p, now in in_place.items()}, frozenset(written), changes_input)


def _otherwise(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 0.5 * tensor + 0.1 for name, tensor in params.items()}


def _other(value: Any) -> Any:
    """Another input of the same kind."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return 0.5 * value.flip(0) if value.is_floating_point() else value.flip(0)


def _told_by(scratch: nn.Module, given: tuple[Any, Any], run: Run, filled: dict[Place, _Held]) -> Place | None:
    """What is filled otherwise from these parameters and inputs."""
    if not filled:
        return None
    try:
        run(scratch, *_clones(given))
    except Exception:  # these may be none for this network
        return None
    now = _state(scratch)
    return next((p for p, held in filled.items() if p in now and not _equal(held.values, now[p].values)), None)


def _moves(module: nn.Module, place: Place) -> str:
    return (
        f"from_module: {_said(module, place)} changes with every call, so the network is no function of its parameters "
        "and input; expected none that moves; pass it as a part of the input, compute it from the parameters, or leave "
        "out the line that writes it"
    )


def _said(module: nn.Module, place: Place) -> str:
    name, is_buffer, attribute = place
    kind = "buffer" if is_buffer else "attribute"
    return f"the {kind} {attribute!r} of {named(name, module.get_submodule(name))}"


def _scratch(module: nn.Module, buffers: dict[str, Tensor]) -> nn.Module:
    """A copy that may be written to."""
    scratch = copied(module)
    for name, layer in scratch.named_modules():
        for attribute, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[attribute] = buffers.get(path(name, attribute), buffer).clone()
    return scratch


def path(layer: str, attribute: str) -> str:
    return f"{layer}.{attribute}" if layer else attribute


def _versions(x: Tree) -> list[int]:
    return [leaf._version for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def _clones(x: Tree) -> Tree:
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)


class _Held(NamedTuple):
    """A buffer or attribute that holds tensors: itself, these, and copies of them as they are now."""

    held: Any
    tensors: list[Tensor]
    values: list[Tensor]


def _state(module: nn.Module) -> dict[Place, _Held]:
    found = {}
    for name, layer in module.named_modules():
        attributes = {n: v for n, v in vars(layer).items() if n not in REGISTERED}
        for is_buffer, values in ((True, layer._buffers), (False, attributes)):
            for attribute, value in values.items():
                tensors = tensors_in(value)
                if tensors:
                    found[name, is_buffer, attribute] = _Held(value, tensors, [t.detach().clone() for t in tensors])
    return found


def _numbers(module: nn.Module) -> dict[Place, Any]:
    return {
        (name, False, attribute): value
        for name, layer in module.named_modules()
        for attribute, value in vars(layer).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _is(before: _Held, now: _Held) -> bool:
    """Whether nothing was put in its place, nor into it."""
    return before.held is now.held and [id(t) for t in before.tensors] == [id(t) for t in now.tensors]


def _equal(a: Any, b: Any, exact: bool = True) -> bool:
    one, other = tensors_in(a), tensors_in(b)
    if [(t.shape, t.dtype) for t in one] != [(t.shape, t.dtype) for t in other]:
        return False
    pairs = zip(one, other, strict=True)
    return all(same_bits(s, t) if exact else torch.allclose(s, t, equal_nan=True) for s, t in pairs)


def _get(module: nn.Module, place: Place) -> Any:
    name, is_buffer, attribute = place
    layer = module.get_submodule(name)
    return (layer._buffers if is_buffer else vars(layer)).get(attribute, _ABSENT)


def _set(module: nn.Module, place: Place, value: Any) -> None:
    name, is_buffer, attribute = place
    layer = module.get_submodule(name)
    values = layer._buffers if is_buffer else vars(layer)
    if value is _ABSENT:
        values.pop(attribute, None)
    else:
        values[attribute] = value
