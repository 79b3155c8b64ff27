"""CAVIA: the context adapts, the network does not (Zintgraf et al. 2019)."""

import pytest
import torch
from helpers import F64, regressor, vectors
from torch import nn

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(20)
NET = regressor(2 + 3)
LEARNER = fmeta.cavia(NET, fmeta.mse, context=3, optimizer=fmeta.sgd(0.7), steps=4)
META, TASKS = LEARNER.init(KEY), vectors(fold(KEY, 1))


def task_of(i=0):
    return tree_map(lambda t: t[i], TASKS)


def beside(x, context):
    return torch.cat([x, context.expand(len(x), 3)], -1)


def by_hand(meta, task, steps=4):
    """The contexts after each step, by plain autograd."""
    context = torch.zeros(3, dtype=F64, requires_grad=True)
    path = [context]
    for _ in range(steps):
        loss = ((NET.apply(meta, beside(task.support.x, context)) - task.support.y) ** 2).mean()
        context = context - 0.7 * torch.autograd.grad(loss, context, create_graph=True)[0]
        path.append(context)
    return path


def test_the_context_starts_at_zero():
    task = task_of()
    assert torch.equal(fmeta.trajectory(LEARNER.inner)(META, task.support)[0], torch.zeros(3, dtype=F64))


def test_every_step_descends_in_the_context_alone():
    task = task_of()
    path = fmeta.trajectory(LEARNER.inner)(META, task.support, task.key)
    assert distance(path, [c.detach() for c in by_hand(META, task)]) < 1e-12
    assert path[-1].abs().min() > 1e-3


def test_adaptation_gives_the_context_and_leaves_meta_untouched():
    before, task = {n: p.clone() for n, p in META.items()}, task_of()
    fast = LEARNER.adapt(META, task.support, task.key)
    assert fast.shape == (3,)
    expected = NET.apply(META, beside(task.query.x, fast))
    assert torch.equal(LEARNER.predict(fast, META, task.query.x), expected)
    assert all(torch.equal(META[n], before[n]) for n in META)


@pytest.mark.parametrize("gradient", [fmeta.unrolled, fmeta.adjoint])
def test_the_meta_gradient_passes_through_every_step(gradient):
    meta = {n: p.clone().requires_grad_() for n, p in META.items()}
    losses = []
    for i in range(4):
        task = task_of(i)
        prediction = NET.apply(meta, beside(task.query.x, by_hand(meta, task)[-1]))
        losses.append(((prediction - task.query.y) ** 2).mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(meta.values()))
    found = fmeta.meta_grad(LEARNER, gradient())(META, TASKS)[0]
    assert distance(list(found.values()), list(expected)) < 1e-10


class FiLM(nn.Module):
    """Features scaled and shifted by what the context says, as in the paper's image experiments."""

    def __init__(self):
        super().__init__()
        self.body, self.film, self.head = nn.Linear(2, 5), nn.Linear(3, 10), nn.Linear(5, 1)

    def forward(self, x, context):
        scale, shift = self.film(context).chunk(2)
        return self.head(torch.tanh((1.0 + scale) * self.body(x) + shift))


def film():
    torch.manual_seed(0)
    return FiLM().double()


def film_learner(module, steps=3):
    return fmeta.cavia(
        fmeta.from_module(module),
        fmeta.mse,
        context=3,
        optimizer=fmeta.sgd(0.5),
        steps=steps,
        condition=lambda x, context: (x, context),
    )


def test_a_condition_of_the_users():
    module, task = film(), task_of()
    learner = film_learner(module)
    context = torch.zeros(3, dtype=F64, requires_grad=True)
    for _ in range(3):
        loss = ((module(task.support.x, context) - task.support.y) ** 2).mean()
        context = (context - 0.5 * torch.autograd.grad(loss, context)[0]).detach().requires_grad_()
    found = learner.adapt(learner.init(KEY), task.support, task.key)
    assert distance(found, context.detach()) < 1e-12


def test_a_condition_of_the_users_has_an_exact_meta_gradient():
    learner = film_learner(film(), steps=2)
    assert fmeta.check_meta_grad(learner, learner.init(KEY), TASKS).order == "exact"


@pytest.mark.parametrize("context", [0, -1, 2.5])
def test_a_context_of_no_length_is_refused(context):
    with pytest.raises(fmeta.InputError, match=rf"cavia\(context={context}\): expected a whole number"):
        fmeta.cavia(NET, fmeta.mse, context=context, optimizer=fmeta.sgd(0.7), steps=1)


def test_a_first_layer_without_room_for_the_context_is_named():
    learner = fmeta.cavia(regressor(2), fmeta.mse, context=3, optimizer=fmeta.sgd(0.7), steps=1)
    with pytest.raises(fmeta.InputError, match=r"mlp.*x has shape \[6, 5\]; expected \[example, 2\]"):
        fmeta.meta_grad(learner)(learner.init(KEY), TASKS)


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(steps):
    with pytest.raises(fmeta.InputError, match=rf"cavia\(steps={steps}\): expected a whole number, at least 1"):
        fmeta.cavia(NET, fmeta.mse, context=3, optimizer=fmeta.sgd(0.7), steps=steps)


@pytest.mark.parametrize("x", [torch.arange(6)[:, None], torch.ones(6, dtype=F64), {"a": torch.ones(6, 1, dtype=F64)}])
def test_inputs_that_the_context_cannot_stand_beside_are_named(x):
    """Cast to integers it would have no gradient, and nothing would adapt."""
    learner = fmeta.cavia(regressor(3), fmeta.mse, context=2, optimizer=fmeta.sgd(0.1), steps=1)
    support = fmeta.Examples(x, torch.zeros(6, 1, dtype=F64))
    with pytest.raises(fmeta.InputError, match=r"cavia: x is a .*expected \[example, …, feature\].*condition="):
        learner.adapt(learner.init(KEY), support, ())
