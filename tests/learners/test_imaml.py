"""iMAML: adaptation is descent to a proximal optimum (Rajeswaran et al. 2019). Its meta-gradient: test_implicit.py."""

import math

import pytest
import torch
from helpers import F64, regressor, vectors, with_dropout

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(22)
LINEAR = fmeta.models.mlp([2, 1], dtype=F64)
META, TASKS = LINEAR.init(KEY), vectors(fold(KEY, 1), shots=12)
TASK = tree_map(lambda t: t[0], TASKS)


def imaml(damping, lr, steps, model=LINEAR, **more):
    return fmeta.imaml(model, fmeta.mse, damping=damping, optimizer=fmeta.sgd(lr), steps=steps, **more)


def flat(params):
    return torch.cat([params["head.weight"].reshape(-1), params["head.bias"]])


def proximal(damping):
    """Hessian and optimum of mean (Xw − y)² + λ/2 ‖w − meta‖², a ridge regression towards meta."""
    x = torch.cat([TASK.support.x, torch.ones(12, 1, dtype=F64)], 1)
    hessian = 2 * x.T @ x / 12 + damping * torch.eye(3, dtype=F64)
    return hessian, torch.linalg.solve(hessian, 2 * x.T @ TASK.support.y[:, 0] / 12 + damping * flat(META))


@pytest.mark.parametrize("damping", [0.1, 2.0])
def test_descent_ends_at_the_proximal_optimum(damping):
    fast = imaml(damping, 0.3, 150).adapt(META, TASK.support, TASK.key)
    assert distance(flat(fast), proximal(damping)[1]) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_shrinks_the_distance_to_the_optimum_by_the_curvature(steps):
    """fastₖ − fast* = (I − αA)ᵏ (meta − fast*)."""
    hessian, best = proximal(0.5)
    shrink = torch.linalg.matrix_power(torch.eye(3, dtype=F64) - 0.2 * hessian, steps)
    fast = imaml(0.5, 0.2, steps).adapt(META, TASK.support, TASK.key)
    assert distance(flat(fast), best + shrink @ (flat(META) - best)) < 1e-12


def test_no_damping_can_be_felt_is_least_squares():
    x = torch.cat([TASK.support.x, torch.ones(12, 1, dtype=F64)], 1)
    fast = imaml(1e-9, 0.3, 300).adapt(META, TASK.support, TASK.key)
    assert distance(flat(fast), torch.linalg.lstsq(x, TASK.support.y).solution[:, 0]) < 1e-7


def test_infinite_damping_is_no_adaptation():
    """fast − meta falls like 1/λ: it is −∇loss(meta)/λ to first order."""
    x = torch.cat([TASK.support.x, torch.ones(12, 1, dtype=F64)], 1)
    slope = 2 * x.T @ (x @ flat(META) - TASK.support.y[:, 0]) / 12
    moved = []
    for damping in (1e4, 1e6):
        fast = imaml(damping, 1.0 / damping, 5).adapt(META, TASK.support, TASK.key)
        moved.append(damping * (flat(fast) - flat(META)))
    assert distance(moved[0], -slope) < 1e-3
    assert distance(moved[1], -slope) < 1e-5


def test_the_query_loss_has_no_proximal_term():
    learner = imaml(100.0, 0.001, 3)
    fast = learner.adapt(META, TASK.support, TASK.key)
    expected = fmeta.mse(LINEAR.apply(fast, TASK.query.x), TASK.query.y).mean()
    assert learner.loss(fast, META, TASK.query)[0] == expected


def test_the_inner_problem_is_not_random():
    """Dropout is off in it: a random loss has no one solution."""
    learner = imaml(2.0, 0.1, 3, model=with_dropout())
    meta = learner.init(KEY)
    ends = [learner.adapt(meta, TASK.support, key) for key in (fmeta.key(1), fmeta.key(2), ())]
    assert distance(ends[0], ends[1]) == distance(ends[0], ends[2]) == 0


def test_its_own_gradient_is_implicit():
    """Not the path's: after two steps the two differ."""
    learner = imaml(2.0, 0.1, 2, model=regressor())
    meta = learner.init(KEY)
    own, implicit = (fmeta.meta_grad(learner, g)(meta, TASKS)[0] for g in (None, fmeta.implicit(fmeta.cg(5))))
    assert distance(own, implicit) == 0
    assert distance(own, fmeta.meta_grad(learner, fmeta.unrolled())(meta, TASKS)[0]) > 1e-2


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_a_damping_that_does_not_damp_is_refused(damping):
    with pytest.raises(fmeta.InputError, match=r"imaml\(damping=.*expected a positive number"):
        imaml(damping, 0.1, 3)


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(steps):
    with pytest.raises(fmeta.InputError, match=rf"imaml\(steps={steps}\): expected a whole number, at least 1"):
        imaml(2.0, 0.1, steps)
