"""BOIL: the body adapts, the head stands still (Oh et al. 2021)."""

import pytest
import torch
from helpers import regressor, vectors

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(21)
NET = regressor()
META, TASKS = NET.init(KEY), vectors(fold(KEY, 1))
BODY = ["hidden1.weight", "hidden1.bias", "hidden2.weight", "hidden2.bias"]
HEAD = ["head.weight", "head.bias"]


def boil(steps=3, **more):
    return fmeta.boil(NET, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=steps, **more)


def first():
    return tree_map(lambda t: t[0], TASKS)


def by_hand(meta, task):
    """Three steps of gradient descent in the body, by plain autograd."""
    fast = dict(meta)
    for _ in range(3):
        loss = ((NET.apply(fast, task.support.x) - task.support.y) ** 2).mean()
        grads = torch.autograd.grad(loss, [fast[n] for n in BODY], create_graph=True)
        fast |= {n: fast[n] - 0.1 * g for n, g in zip(BODY, grads, strict=True)}
    return fast


def leaves():
    return {n: p.clone().requires_grad_() for n, p in META.items()}


def test_the_body_moves_as_gradient_descent_moves_it():
    fast = boil().adapt(META, first().support, ())
    assert list(fast) == BODY
    expected = by_hand(leaves(), first())
    assert distance(fast, {n: expected[n].detach() for n in BODY}) < 1e-12
    assert all((fast[n] - META[n]).abs().max() > 1e-4 for n in BODY)


def test_the_prediction_is_of_the_new_body_and_the_old_head():
    learner, task = boil(), first()
    fast = learner.adapt(META, task.support, ())
    expected = NET.apply({n: fast.get(n, p) for n, p in META.items()}, task.query.x)
    assert torch.equal(learner.predict(fast, META, task.query.x), expected)


def test_the_head_is_meta_learned():
    meta = leaves()
    losses = []
    for i in range(4):
        task = tree_map(lambda t, i=i: t[i], TASKS)
        losses.append(((NET.apply(by_hand(meta, task), task.query.x) - task.query.y) ** 2).mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(meta.values()))
    found, _ = fmeta.meta_grad(boil())(META, TASKS)
    assert distance(list(found.values()), list(expected)) < 1e-10
    assert all(found[n].abs().max() > 1e-3 for n in HEAD)


@pytest.mark.parametrize(
    ("head", "adapt"),
    [("head.*", "!head.*"), ("hidden*", "head.*"), ("head.*,*.bias", "hidden1.weight,hidden2.weight")],
)
def test_it_is_anil_with_the_complement(head, adapt):
    anil = fmeta.anil(NET, fmeta.mse, adapt=adapt, optimizer=fmeta.sgd(0.1), steps=3)
    found, info = fmeta.meta_grad(boil(head=head))(META, TASKS)
    expected, expected_info = fmeta.meta_grad(anil)(META, TASKS)
    assert distance(found, expected) < 1e-15  # anil takes its features once where the head alone adapts
    assert distance(info, expected_info) < 1e-15


def test_a_head_that_is_not_there_is_named_with_near_names():
    with pytest.raises(fmeta.InputError, match=r"boil.*'haed\.\*' matches no parameter; did you mean 'head") as caught:
        fmeta.meta_grad(boil(head="haed.*"))(META, TASKS)
    assert all(name in str(caught.value) for name in BODY + HEAD)


def test_a_head_that_is_everything_is_refused():
    with pytest.raises(fmeta.InputError, match=r"boil.*leaves no parameter"):
        fmeta.meta_grad(boil(head="*"))(META, TASKS)


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(steps):
    with pytest.raises(fmeta.InputError, match=rf"boil\(steps={steps}\): expected a whole number, at least 1"):
        boil(steps=steps)
