"""A signal that strikes torch.func between the push of a level and the `with` that pops it."""

import contextlib
import gc
import sys

import pytest
import torch
import torch._functorch.vmap as vmap_module
from helpers import striking
from torch._C import _functorch
from torch.func import grad, vmap

from fmeta.execution._interrupt import interruptible


def batched(x):
    return vmap(grad(lambda v: vmap(grad(torch.sin))(v).sum()))(x)


def struck(at, *, error=KeyboardInterrupt):
    with striking(at, error), interruptible():
        batched(torch.ones(3, 2))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_it_comes_out_as_what_it_is_and_torch_func_works_on(at, error):
    with pytest.raises(error) as caught:
        struck(at, error=error)
    assert _functorch.get_dynamic_layer_stack_depth() == 0
    x = torch.ones(3, 2)
    torch.testing.assert_close(batched(x), -x.sin())
    del caught
    gc.collect()  # what the traceback held pops no level now: pytest makes an error of one that cannot
    assert _functorch.get_dynamic_layer_stack_depth() == 0


def test_struck_before_a_level_is_popped(monkeypatch):
    real, strikes = vmap_module._vmap_decrement_nesting, [KeyboardInterrupt]

    def pops():
        if strikes:
            raise strikes.pop()
        return real()

    monkeypatch.setattr(vmap_module, "_vmap_decrement_nesting", pops)
    with pytest.raises(KeyboardInterrupt), interruptible():
        batched(torch.ones(3, 2))
    assert _functorch.get_dynamic_layer_stack_depth() == 0


PUSH = {
    "vmap": lambda: _functorch._vmap_increment_nesting(3, "error"),
    "grad": _functorch._grad_increment_nesting,
    "jvp": _functorch._jvp_increment_nesting,
    "functionalize": lambda: _functorch._func_increment_nesting(True),
}


def pushes(kind):
    with interruptible():
        PUSH["grad"]()
        PUSH[kind]()
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", PUSH)
def test_levels_of_every_kind_are_taken_off(kind):
    with pytest.raises(KeyboardInterrupt):
        pushes(kind)
    assert _functorch.get_dynamic_layer_stack_depth() == 0
    x = torch.ones(3, 2)
    torch.testing.assert_close(batched(x), -x.sin())


def test_levels_around_it_stay():
    def inner(x):
        with contextlib.suppress(KeyboardInterrupt):
            struck(3)
        return x.sin()

    x = torch.ones(3)
    torch.testing.assert_close(vmap(grad(inner))(x), x.cos())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_word_of_who_heard_it_stands(layers):
    """An interruption that was answered by another, or by an error `from` it."""

    def answers(layers, answer):
        with interruptible():
            if layers > 1:
                answers(layers - 1, answer)
            try:
                struck(2)
            except KeyboardInterrupt as interruption:
                answer(interruption)

    def refuses(interruption):
        raise ValueError("of its own") from interruption

    with pytest.raises(SystemExit) as caught:
        answers(layers, lambda _: sys.exit(3))
    assert caught.value.code == 3
    with pytest.raises(ValueError, match="of its own"):
        answers(layers, refuses)


def raises():
    raise ValueError("of its own")


def test_other_errors_stay_as_they_are():
    """Also one that is raised while an interruption is being handled."""
    with pytest.raises(ValueError, match="of its own"), interruptible():
        raises()
    try:
        struck(2)
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="of its own"), interruptible():
            raises()
