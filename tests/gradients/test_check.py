"""check_meta_grad tells what was really computed."""

import pytest
import torch
from helpers import F64, LEARNERS, regressor, vectors

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_map
from fmeta.gradients._check import believed

KEY = fmeta.key(3)
LEARNER = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
META, TASKS = LEARNER.init(KEY), vectors(fold(KEY, 1))


def check(learner=LEARNER, gradient=None, meta=None):
    return fmeta.check_meta_grad(learner, META if meta is None else meta, TASKS, gradient)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_exact_for_every_learner(name):
    learner, sample, _ = LEARNERS[name]
    meta = learner.init(KEY)
    report = fmeta.check_meta_grad(learner, meta, sample(fold(KEY, 1)), fmeta.unrolled())
    assert report.exact
    if meta == {}:
        return  # all frozen
    assert report.order == "exact"
    assert report.cosine == pytest.approx(1.0, abs=1e-9)
    assert max(report.relative_error.values()) < 1e-4
    assert report.detached == []
    unused = [n for n in meta if n.startswith("conv") and n.endswith("bias")] if name == "anil-conv4" else []
    assert report.without_gradient == unused  # what batch norm takes away


def test_the_multi_step_loss_is_checked_as_what_it_is():
    learner, sample, _ = LEARNERS["maml_plus_plus"]
    meta, tasks = learner.init(KEY), sample(fold(KEY, 1))
    assert fmeta.check_meta_grad(learner, meta, tasks).order == "exact"
    simple = fmeta.first_order(fmeta.multi_step(3))
    assert fmeta.check_meta_grad(learner, meta, tasks, simple).order == "first order"


def test_implicit_is_exact_where_descent_has_converged_and_not_before():
    model, gradient = regressor(width=4), fmeta.implicit(fmeta.direct())
    for steps, order in ((30, "exact"), (3, "neither")):
        learner = fmeta.imaml(model, fmeta.mse, damping=4.0, optimizer=fmeta.sgd(0.1), steps=steps)
        assert fmeta.check_meta_grad(learner, learner.init(KEY), TASKS, gradient).order == order


def test_first_order_is_called_first_order():
    report = check(gradient=fmeta.first_order())
    assert report.order == "first order"
    assert not report.exact
    assert max(report.relative_error.values()) > 1e-2


def test_difference_is_no_gradient_of_the_query_loss():
    assert check(gradient=fmeta.difference()).order == "neither"


def test_first_order_in_disguise_is_caught():
    """A learner whose adaptation detaches its inner gradients claims to be exact and is not."""

    def adapt(meta, support, key):
        fast = meta
        for _ in range(2):
            g = torch.func.grad(lambda f: fmeta.mse(regressor().apply(f, support.x), support.y).mean())(fast)
            fast = tree_map(lambda w, g: w - 0.1 * g.detach(), fast, g)
        return fast

    report = check(LEARNER._replace(adapt=adapt), fmeta.unrolled())
    assert report.order == "first order"


def test_no_second_order_term_is_said():
    """A linear model under a linear loss has no curvature: both orders are exact."""
    model = fmeta.models.mlp([2, 1], dtype=F64)
    learner = fmeta.maml(model, lambda p, y: (p * y)[:, 0], optimizer=fmeta.sgd(0.1), steps=2)
    report = fmeta.check_meta_grad(learner, learner.init(KEY), TASKS, fmeta.first_order())
    assert report.order == "exact (no second-order term here)"


def test_a_detached_parameter_is_named():
    def adapt(meta, support, key):
        return LEARNER.adapt(meta | {"head.bias": meta["head.bias"].detach()}, support, key)

    report = check(LEARNER._replace(adapt=adapt))
    assert report.detached == ["head.bias"]
    assert not report.exact


def test_a_parameter_without_influence_is_named():
    model = regressor()
    idle = model._replace(init=lambda key: model.init(key) | {"idle": torch.ones(3, dtype=F64)})
    learner = fmeta.maml(idle, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    report = check(learner, meta=learner.init(KEY))
    assert report.without_gradient == ["idle"]
    assert report.exact


def test_kinks_are_stepped_around_and_told_where_there_is_no_way_around():
    """A ReLU's loss jumps where an inner step crosses its kink, here within every length of many directions."""
    tasks = fmeta.testing.random_regression(fmeta.key(0), inputs=1)
    model = fmeta.models.mlp([1, 40, 40, 1], dtype=F64)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=5)
    report = fmeta.check_meta_grad(learner, learner.init(fmeta.key(0)), tasks, fmeta.adjoint(), directions=1)
    assert report.order == "exact"
    assert report.kinks == []
    saw = model._replace(apply=lambda p, x: model.apply(p, x) + 1e-3 * torch.sin(1e9 * p["head.bias"]))
    learner = fmeta.maml(saw, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    report = fmeta.check_meta_grad(learner, learner.init(fmeta.key(0)), tasks, directions=1)
    assert "head.bias" in report.kinks
    assert report.order == "neither"


@pytest.mark.parametrize(
    ("found", "value", "steady"),
    [
        ([1.0, 1.0, 1.0], 1.0, True),
        ([5.0, 1.0, 1.0 + 1e-9], 1.0, True),
        ([1.0, 1.0 + 1e-9, 7.0], 1.0, True),
        ([1.9, 7.0, 1.4], 1.9, False),
        ([1.0, 1.1, 1.3], 1.0, False),
        ([1e-10, -1e-10, 1e-9], 1e-10, True),
    ],
)
def test_of_three_lengths_the_two_that_agree_are_believed(found, value, steady):
    assert believed(found) == (value, steady)


def test_float32_learners_are_checked_in_float64():
    model = fmeta.models.mlp([2, 8, 1], torch.tanh)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    tasks = tree_map(lambda t: t.float() if t.is_floating_point() else t, TASKS)
    assert fmeta.check_meta_grad(learner, learner.init(KEY), tasks).order == "exact"


def test_a_learner_without_an_inner_loop():
    """Plain training of a ridge head in closed form: exact, and no first order to compare with."""

    def adapt(meta, support, key):
        z = torch.tanh(support.x @ meta["body"])
        return torch.linalg.solve(z.T @ z + 0.1 * torch.eye(4, dtype=F64), z.T @ support.y)

    def predict(fast, meta, x):
        return torch.tanh(x @ meta["body"]) @ fast

    def loss(fast, meta, query):
        return fmeta.mse(predict(fast, meta, query.x), query.y).mean(), {}

    learner = fmeta.Learner(None, adapt, predict, loss, None, fmeta.unrolled(), "ridge")
    meta = {"body": torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))}
    assert fmeta.check_meta_grad(learner, meta, TASKS).order == "exact"


@pytest.mark.parametrize("bad", [{"directions": 0}, {"step": 0.0}])
def test_bad_settings(bad):
    with pytest.raises(fmeta.InputError, match="check_meta_grad"):
        fmeta.check_meta_grad(LEARNER, META, TASKS, **bad)


def test_a_wholly_detached_model_is_not_called_first_order():
    model = fmeta.models.mlp([2, 1], dtype=F64)
    cut = model._replace(apply=lambda p, x: model.apply({n: w.detach() for n, w in p.items()}, x))
    learner = fmeta.maml(cut, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    report = check(learner, meta=learner.init(KEY))
    assert report.order == "neither"
    assert report.cosine == 0.0
    assert report.detached == ["head.weight", "head.bias"]
