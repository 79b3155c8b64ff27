"""What a module keeps besides its parameters: tables filled at the first forward, and state that moves.

A pure function has neither. Before the first call with inputs of a kind, a copy of the module runs twice on the inputs
of one task, outside all transforms, and its tensors are compared: what the first run alone changed is a table, filled
once and for all, and is given to every call; what the second run changed too is state, and is refused by name.
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
from fmeta.models._module_layers import copied, named, tensors_in

Place = tuple[str, bool, str]  # name of the layer, whether it is a buffer, name of the attribute
Run = Callable[[nn.Module, Tree], Tree]  # a copy of the module, inputs -> prediction
_ABSENT = object()


class Kept(NamedTuple):
    """What the calls of a module with inputs of one kind leave behind."""

    filled: dict[Place, Any]  # what the first of them made, and all use
    written: frozenset[Place]  # what each of them sets anew, of no use to the next
    changes_input: bool

    @contextlib.contextmanager
    def installed(self, module: nn.Module) -> Iterator[None]:
        """Within this context the module has what was filled; afterwards it is as it was before."""
        before = {place: _get(module, place) for place in (*self.filled, *self.written)}
        for place, value in self.filled.items():
            _set(module, place, value)
        try:
            yield
        finally:
            for place, value in before.items():
                _set(module, place, value)


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Puts back whatever tensors the calls within set: those of a trace have no values."""
    values = [values for layer in module.modules() for values in (vars(layer), layer._buffers)]
    before = [dict(each) for each in values]
    try:
        yield
    finally:
        for now, then in zip(values, before, strict=True):
            for name in [n for n, value in now.items() if tensors_in(value) and value is not then.get(n, _ABSENT)]:
                if name in then:
                    now[name] = then[name]
                else:
                    del now[name]


def look(module: nn.Module, buffers: dict[str, Tensor], x: Tree, run: Run) -> Kept:
    """Runs a copy of the module on `x`, which stays as it is, and says what that left behind.

    Raises InputError for state that moves, and for a table that depends on the values it was filled from.
    """
    scratch, given = _scratch(module, buffers), _clones(x)
    at_first = _tensors(scratch)
    before = _versions(given)
    once = run(scratch, given)
    changes_input = before != _versions(given)
    after_one, numbers = _tensors(scratch), _numbers(scratch)
    twice = run(scratch, _clones(x))
    after_two = _tensors(scratch)

    written = {place for place in after_two if _changed(place, after_one, after_two)}
    for place in written:
        old, new = after_one.get(place), after_two[place]
        if old is None or old[0] is new[0] or not _equal(old[0], new[0]):
            raise InputError(_moves(scratch, place))
    moved = [place for place, value in _numbers(scratch).items() if numbers.get(place) != value]
    if moved and not _equal(once, twice, exact=False):
        raise InputError(_moves(scratch, moved[0]))
    filled = {p: after_one[p][0] for p in after_one if p not in written and _changed(p, at_first, after_one)}
    told = _told_by_values(_scratch(module, buffers), x, run, filled) if filled else None
    if told is not None:
        raise InputError(
            f"from_module: {_said(scratch, told)} is set from the first batch that the network sees; expected one that "
            "does not depend on values; run the module on typical data first, then give it to from_module"
        )
    return Kept(filled, frozenset(written), changes_input)


def _told_by_values(scratch: nn.Module, x: Tree, run: Run, filled: dict[Place, Any]) -> Place | None:
    """What is filled otherwise from an input of zeros."""
    try:
        run(scratch, tree_map(lambda t: torch.zeros_like(t) if isinstance(t, Tensor) else t, x))
    except Exception:  # zeros may be no input for this network
        return None
    now = _tensors(scratch)
    return next((p for p, value in filled.items() if p in now and not _equal(value, now[p][0])), None)


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


def _tensors(module: nn.Module) -> dict[Place, tuple[Any, list[tuple[int, int]]]]:
    """Buffers and attributes that hold tensors: each, and which tensors it holds in which state."""
    found = {}
    for name, layer in module.named_modules():
        attributes = {n: v for n, v in vars(layer).items() if not n.startswith(("_parameters", "_buffers", "_modules"))}
        for is_buffer, values in ((True, layer._buffers), (False, attributes)):
            for attribute, value in values.items():
                held = tensors_in(value)
                if held:
                    found[name, is_buffer, attribute] = (value, [(id(t), t._version) for t in held])
    return found


def _numbers(module: nn.Module) -> dict[Place, Any]:
    return {
        (name, False, attribute): value
        for name, layer in module.named_modules()
        for attribute, value in vars(layer).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _changed(place: Place, before: dict[Place, Any], after: dict[Place, Any]) -> bool:
    return place not in before or before[place][1] != after[place][1]


def _equal(a: Any, b: Any, exact: bool = True) -> bool:
    one, other = tensors_in(a), tensors_in(b)
    if len(one) != len(other) or any(s.shape != t.shape or s.dtype != t.dtype for s, t in zip(one, other, strict=True)):
        return False
    same = torch.equal if exact else torch.allclose
    return all(same(s.nan_to_num(), t.nan_to_num()) for s, t in zip(one, other, strict=True))


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
