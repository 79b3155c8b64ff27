"""`trainer`: one meta-step is a meta-gradient and an outer update, and non-finite numbers never reach the state."""

import functools

import pytest
import torch
from helpers import LEARNERS, distance, regressor, vectors

import fmeta
from fmeta.core import key
from fmeta.core.tree import tree_leaves, tree_map


def _same(a, b):
    return all(torch.equal(u, v) for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))


def _finite(state):
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(state))


def flagged(prediction, y):
    """Squared error of the first target plus |prediction · flag|, written with a root: where the flag is 0 the value is
    finite and the gradient is 0·∞."""
    return (prediction[:, 0] - y[:, 0]) ** 2 + ((prediction[:, 0] * y[:, 1]) ** 2).sqrt()


def flagged_tasks(seed):
    tasks = vectors(key(seed), outputs=2)
    for examples in (tasks.support, tasks.query):
        examples.y[..., 1] = 1.0
    return tasks


def poisoned(kind, seed):
    """A batch whose second task gives a loss, or only a gradient, that is not finite."""
    tasks = flagged_tasks(seed)
    if kind == "gradient":
        tasks.query.y[1, 2, 1] = 0.0
    else:
        tasks.query.y[1, 2, 0] = {"inf": torch.inf, "nan": torch.nan}[kind]
    return tasks


FLAGGED = fmeta.maml(regressor(width=4), flagged, optimizer=fmeta.sgd(0.05), steps=1)
OUTER = fmeta.adam(0.01)


@functools.cache  # each way compiles once for all tests
def flagged_step(how):
    def stage(function):
        return fmeta.compile(function, backend="aot_eager")

    if how == "stages":
        return fmeta.trainer(FLAGGED, OUTER, stage=stage).step
    step = fmeta.trainer(FLAGGED, OUTER).step
    return stage(step) if how == "whole" else step


HOW = ["eager", "whole", "stages"]


@pytest.mark.parametrize("name", ["maml", "meta_sgd", "reptile"])
def test_sgd_step_is_meta_minus_rate_times_meta_gradient(name):
    learner, tasks = LEARNERS[name].learner, LEARNERS[name].tasks(key(1))
    train = fmeta.trainer(learner, fmeta.sgd(0.1))
    state = train.init(key(0))
    grads, expected = fmeta.meta_grad(learner)(state.meta, tasks)
    after, info = train.step(state, tasks)
    assert distance(after.meta, tree_map(lambda p, g: p - 0.1 * g, state.meta, grads)) < 1e-15
    assert torch.equal(info.loss, expected.loss)
    assert torch.equal(info.losses, expected.losses)


@pytest.mark.parametrize("how", HOW)
def test_three_steps_equal_meta_grad_followed_by_torch_adam(how):
    state = fmeta.trainer(FLAGGED, OUTER).init(key(0))
    names = list(state.meta)
    params = [state.meta[n].clone().requires_grad_() for n in names]
    optimizer = torch.optim.Adam(params, lr=0.01)
    for seed in (1, 2, 3):
        tasks = flagged_tasks(seed)
        meta = {n: p.detach().clone() for n, p in zip(names, params, strict=True)}
        grads, _ = fmeta.meta_grad(FLAGGED)(meta, tasks)
        for n, p in zip(names, params, strict=True):
            p.grad = grads[n]
        optimizer.step()
        state, info = flagged_step(how)(state, tasks)
        assert info.losses.shape == (4,)
    assert int(state.step) == 3
    assert distance([state.meta[n] for n in names], [p.detach() for p in params]) < 1e-11


def test_the_gradient_argument_replaces_the_learners_own():
    learner, tasks = LEARNERS["maml"].learner, vectors(key(1))
    state = fmeta.trainer(learner, fmeta.sgd(0.1)).init(key(0))
    after, _ = fmeta.trainer(learner, fmeta.sgd(0.1), fmeta.first_order()).step(state, tasks)
    grads, _ = fmeta.meta_grad(learner, fmeta.first_order())(state.meta, tasks)
    own, _ = fmeta.trainer(learner, fmeta.sgd(0.1)).step(state, tasks)
    assert distance(after.meta, tree_map(lambda p, g: p - 0.1 * g, state.meta, grads)) < 1e-15
    assert distance(after.meta, own.meta) > 1e-6


def test_init_counts_from_zero_and_each_step_adds_one():
    train = fmeta.trainer(LEARNERS["maml"].learner, fmeta.adam(0.01))
    state = train.init(key(0))
    assert (int(state.step), int(state.bad), state.step.dtype) == (0, -1, torch.int64)
    for k in range(1, 4):
        state, _ = train.step(state, vectors(key(k)))
        assert (int(state.step), int(state.bad)) == (k, -1)


def test_step_is_pure_the_old_state_is_untouched_and_repeats_give_the_same_bits():
    train = fmeta.trainer(LEARNERS["maml"].learner, fmeta.adam(0.01))
    state, tasks = train.init(key(0)), vectors(key(1))
    before = tree_map(torch.clone, state)
    first, _ = train.step(state, tasks)
    second, _ = train.step(state, tasks)
    assert _same(state, before)
    assert _same(first, second)
    assert not _same(first.meta, before.meta)


def test_the_gradient_case_really_has_a_finite_loss():
    """Guards the tests below: the loss must not give the bad gradient away."""
    state = fmeta.trainer(FLAGGED, OUTER).init(key(0))
    grads, info = fmeta.meta_grad(FLAGGED)(state.meta, poisoned("gradient", 1))
    assert bool(info.losses.isfinite().all())
    assert not _finite(grads)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["inf", "nan", "gradient"])
def test_non_finite_loss_or_gradient_withholds_this_and_every_later_update(kind, how):
    step, state = flagged_step(how), fmeta.trainer(FLAGGED, OUTER).init(key(0))
    for seed in (1, 2):
        state, _ = step(state, flagged_tasks(seed))
    assert int(state.bad) == -1
    stopped, _ = step(state, poisoned(kind, 3))
    assert int(stopped.bad) == 2
    assert int(stopped.step) == 2
    assert _same(stopped._replace(bad=state.bad), state)
    assert _finite(stopped)
    later, info = step(stopped, flagged_tasks(4))
    assert bool(info.loss.isfinite())
    assert _same(later, stopped)
    again, _ = step(later, poisoned("nan", 5))  # a second bad step does not overwrite the first
    assert _same(again, stopped)


def test_an_update_that_overflows_leaves_no_infinity_in_the_state():
    """Loss and gradient are finite, but rate · gradient is not: there would be no state to go on from."""
    learner, tasks = LEARNERS["maml"].learner, vectors(key(1))
    tasks.query.y.mul_(100.0)
    train = fmeta.trainer(learner, fmeta.sgd(1e308))
    state = train.init(key(0))
    grads, info = fmeta.meta_grad(learner)(state.meta, tasks)
    assert _finite(grads)
    assert bool(info.loss.isfinite())
    assert max(float(g.abs().max()) for g in tree_leaves(grads)) > 2
    after, _ = train.step(state, tasks)
    assert _finite(after)


def test_init_refuses_meta_parameters_that_are_not_floating():
    learner = LEARNERS["maml"].learner
    learner = learner._replace(init=lambda k: {**LEARNERS["maml"].learner.init(k), "count": torch.tensor(3)})
    with pytest.raises(fmeta.InputError, match=r"trainer\(maml\)\.init.*count.*int64.*floating"):
        fmeta.trainer(learner, fmeta.sgd(0.1)).init(key(0))
