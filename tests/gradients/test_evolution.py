"""`evolution` against the statistics of its estimator, known in closed form where the loss is quadratic in meta."""

import math

import pytest
import torch
from helpers import F64, vectors
from torch._dynamo.testing import CompileCounterWithBackend

import fmeta
from fmeta import Examples, Task
from fmeta.core import fold, normal
from fmeta.core.tree import tree_map
from fmeta.gradients._evolution import perturbation
from fmeta.testing import distance

KEY = fmeta.key(8)
# with a linear model adaptation is linear in meta, so the query loss is quadratic in it
QUADRATIC = fmeta.maml(fmeta.models.mlp([2, 1], dtype=F64), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
META, TASKS = QUADRATIC.init(KEY), vectors(fold(KEY, 1))


def flat(params):
    return torch.cat([params["head.weight"].reshape(-1), params["head.bias"]])


def estimate(sigma=0.5, pairs=3, learner=QUADRATIC, tasks=TASKS):
    return flat(fmeta.meta_grad(learner, fmeta.evolution(sigma, pairs))(META, tasks)[0])


def exact(tasks=TASKS):
    return flat(fmeta.meta_grad(QUADRATIC, fmeta.unrolled())(META, tasks)[0])


def copies(count, seed):
    """The first task many times over, each time with another key."""
    one = tree_map(lambda t: t[:1].expand(count, *t.shape[1:]), TASKS)
    return one._replace(key=fmeta.split(fmeta.key(seed), count))


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 30.0])
def test_of_a_quadratic_it_is_the_mean_of_projections_whatever_sigma(sigma):
    """F(m + σε) − F(m − σε) is then 2σ ε·g exactly."""
    projections = []
    for t in range(4):
        g = exact(tree_map(lambda leaf, t=t: leaf[t : t + 1], TASKS))
        for i in range(3):
            noise = flat(perturbation(TASKS.key[t], torch.tensor(i), META))
            projections.append(noise * (noise @ g))
    assert distance(estimate(sigma), torch.stack(projections).mean(0)) < 1e-9


@pytest.mark.parametrize(("count", "pairs"), [(200, 1), (5000, 1), (250, 20)])
def test_unbiased_and_the_error_falls_like_one_over_the_root(count, pairs):
    """One ε(ε·g) has mean g and, for normal ε, variance |g|² + gᵢ²: over n of them 1/n of it."""
    tasks = copies(count, seed=count + pairs)
    g = exact(tasks)
    deviation = ((g @ g + g**2) / (count * pairs)).sqrt()
    errors = (estimate(pairs=pairs, tasks=tasks) - g) / deviation
    assert (errors.abs() < 4.5).all()
    assert errors.norm() > 0.05  # nor is it exact


def test_the_perturbations_of_a_task_are_standard_normal_and_independent():
    """Between entries, leaves of one shape, indices and keys."""
    meta = {"a": torch.zeros(2, dtype=F64), "b": torch.zeros(2, dtype=F64)}

    def drawn(key):
        return torch.cat([perturbation(key, torch.tensor(index), meta)[n] for index in (0, 1) for n in ("a", "b")])

    rows = torch.func.vmap(drawn)(fmeta.split(KEY, 20000))
    deviation = 4.5 / math.sqrt(len(rows))
    assert rows.mean(0).abs().max() < deviation
    covariance = rows.T @ rows / len(rows)
    assert (covariance - torch.eye(8, dtype=F64)).abs().max() < math.sqrt(2) * deviation
    assert ((rows**4).mean(0) - 3.0).abs().max() < math.sqrt(96) * deviation  # the variance of ε⁴ is 105 − 9
    next_task = rows[:-1].T @ rows[1:] / (len(rows) - 1)
    assert next_task.abs().max() < deviation


def with_loss(change):
    def loss(fast, meta, query):
        value, metrics = QUADRATIC.loss(fast, meta, query)
        return change(value), metrics

    return QUADRATIC._replace(loss=loss)


def test_a_constant_added_to_the_loss_changes_nothing():
    assert distance(estimate(learner=with_loss(lambda value: value + 1e4)), estimate()) < 1e-10


def test_a_factor_of_the_loss_is_a_factor_of_the_estimate():
    assert distance(estimate(learner=with_loss(lambda value: -3.0 * value)), -3.0 * estimate()) < 1e-12


def test_the_same_keys_give_the_same_bits_and_others_do_not():
    assert torch.equal(estimate(), estimate())
    others = TASKS._replace(key=fmeta.split(fold(KEY, 2), 4))
    assert distance(estimate(tasks=others), estimate()) > 1e-2


def test_more_pairs_go_on_where_fewer_stopped():
    """The mean over four pairs is that of the first three and another."""
    fourth = []
    for t in range(4):
        g = exact(tree_map(lambda leaf, t=t: leaf[t : t + 1], TASKS))
        noise = flat(perturbation(TASKS.key[t], torch.tensor(3), META))
        fourth.append(noise * (noise @ g))
    expected = (3 * estimate(pairs=3) + torch.stack(fourth).mean(0)) / 4
    assert distance(estimate(pairs=4), expected) < 1e-9


def test_the_loss_reported_is_that_of_the_unperturbed_meta():
    info = fmeta.meta_grad(QUADRATIC, fmeta.evolution(5.0, 2))(META, TASKS)[1]
    assert distance(info, fmeta.meta_grad(QUADRATIC, fmeta.unrolled())(META, TASKS)[1]) < 1e-14


def test_a_learner_without_an_inner_loop():
    def loss(fast, meta, query):
        return ((meta["w"] - query.y.mean()) ** 2).sum(), {}

    learner = fmeta.Learner(None, lambda meta, support, key: (), None, loss, None, fmeta.unrolled(), "plain")
    meta = {"w": torch.tensor([1.0, -2.0], dtype=F64)}
    expected = []
    for y, key in zip(TASKS.query.y, TASKS.key, strict=True):
        noise = perturbation(key, torch.tensor(0), meta)["w"]
        expected.append(noise * (noise @ (2 * (meta["w"] - y.mean()))))
    found, _ = fmeta.meta_grad(learner, fmeta.evolution(0.3, 1))(meta, TASKS)
    assert distance(found["w"], torch.stack(expected).mean(0)) < 1e-10


# ---- a loss that counts errors -------------------------------------------------------------------


def errors_as_loss():
    """Adapts by cross entropy, is judged by 1 − accuracy."""
    learner = fmeta.maml(fmeta.models.mlp([2, 2], dtype=F64), fmeta.cross_entropy, optimizer=fmeta.sgd(0.01), steps=1)

    def loss(fast, meta, query):
        return 1.0 - fmeta.accuracy(learner.predict(fast, meta, query.x), query.y).mean(), {}

    return learner._replace(loss=loss)


def half_planes(key, count):
    """The label is the side of one line for all tasks, so an initialisation can know it."""

    def examples(number):
        x = normal(fold(key, number), (count, 20, 2), F64)
        return Examples(x, (x @ torch.tensor([1.0, -2.0], dtype=F64) > 0.3).long())

    return Task(examples(0), examples(1), fmeta.split(fold(key, 2), count))


def test_it_descends_a_loss_that_has_no_gradient():
    learner = errors_as_loss()
    trainer = fmeta.trainer(learner, fmeta.adam(0.1), fmeta.evolution(0.3, 4))
    state = trainer.init(fmeta.key(1))
    tests = half_planes(fold(KEY, 5), 200)
    start = fmeta.evaluate(learner, state.meta, tests).mean("loss")[0]
    assert not any(g.any() for g in fmeta.meta_grad(learner, fmeta.unrolled())(state.meta, tests)[0].values())
    for k in range(60):
        state, _ = trainer.step(state, half_planes(fold(fold(KEY, 4), k), 10))
    assert start > 0.3
    assert fmeta.evaluate(learner, state.meta, tests).mean("loss")[0] < 0.08


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_a_sigma_that_is_no_deviation_is_refused(sigma):
    with pytest.raises(fmeta.InputError, match=r"evolution\(sigma=.*expected a positive"):
        fmeta.evolution(sigma, 3)


@pytest.mark.parametrize("pairs", [0, -2])
def test_no_pairs_are_refused(pairs):
    with pytest.raises(fmeta.InputError, match=rf"evolution\(pairs={pairs}\): expected a whole number, at least 1"):
        fmeta.evolution(0.1, pairs)


def test_tasks_without_keys_are_refused():
    with pytest.raises(fmeta.InputError, match=r"evolution.*drawn from the task's key.*fmeta\.split"):
        estimate(tasks=TASKS._replace(key=()))


# ---- compiled ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["step", pytest.param("whole", marks=pytest.mark.thorough)])
def test_compiled_equals_eager_and_compiles_once(scope):
    counter, way = CompileCounterWithBackend("aot_eager"), fmeta.evolution(0.5, 3)

    def stage(function):
        return fmeta.compile(function, backend=counter)

    eager = fmeta.meta_grad(QUADRATIC, way)
    run = stage(eager) if scope == "whole" else fmeta.meta_grad(QUADRATIC, way, stage)
    assert distance(run(META, TASKS), eager(META, TASKS)) < 1e-10
    graphs = counter.frame_count
    assert graphs == (1 if scope == "whole" else 2)  # a pair, whichever it is, and the loss
    others = vectors(fold(KEY, 3))
    assert distance(run(META, others), eager(META, others)) < 1e-10
    assert counter.frame_count == graphs
