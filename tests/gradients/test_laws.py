"""Every law of fmeta.testing for every learner, and facts about particular ones."""

import pytest
import torch
from helpers import LEARNERS, STEPPING, distance, labelled, regressor, vectors
from hypothesis import HealthCheck, given, settings

import fmeta
from fmeta import Examples, testing
from fmeta.core import _inner as inner
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution._memory import _Living
from fmeta.testing import strategies

ALL = sorted(LEARNERS)
KEY = fmeta.key(5)
DRAWN = "hypothesis examples"
COMPILED = ("compiled equals eager", "compiled on aliased arguments equals eager")


def setup(name):
    learner, sample, _ = LEARNERS[name]
    return learner, learner.init(KEY), sample(fold(KEY, 1))


LEARNING = sorted(n for n in STEPPING if tree_leaves(LEARNERS[n].learner.init(KEY)))  # not all frozen


def grads(learner, gradient, meta, tasks):
    return fmeta.meta_grad(learner, gradient)(meta, tasks)[0]


def pairs():
    for name in ALL:
        for law in testing.LAWS:
            if law not in COMPILED and law not in LEARNERS[name].broken:  # tests/execution compiles
                yield name, law


@pytest.mark.parametrize(("name", "law"), list(pairs()))
def test_law(name, law):
    learner, meta, tasks = setup(name)
    report = testing.check_learner(learner, tasks, meta=meta, laws=[law])
    assert report.passed == [law] or report.skipped


@pytest.mark.parametrize(("name", "law"), [(n, law) for n in ALL for law in LEARNERS[n].broken])
def test_laws_that_a_learner_does_not_promise_are_broken_indeed(name, law):
    learner, meta, tasks = setup(name)
    with pytest.raises(testing.LawError, match=law):
        testing.check_learner(learner, tasks, meta=meta, laws=[law])


QUICK = ["equals plain autograd", "preparing equals computing every step", "truncation equals plain autograd",
         "multi step losses equal plain autograd", "losses are the querys",
         "difference is meta minus fast"]  # fmt: skip


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_laws_for_any_setting(kind, record_property):
    """Whatever the sizes, steps, rates, optimizers and numbers of tasks."""
    drawn = 0

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(strategies.learners([kind]))
    def holds(case):
        nonlocal drawn
        drawn += 1
        learner, tasks = case
        testing.check_learner(learner, tasks, laws=QUICK)

    holds()
    record_property(DRAWN, drawn)
    assert drawn >= 20


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.learners(["imaml"]))
def test_implicit_at_convergence_for_any_setting(case):
    testing.check_learner(*case, laws=["implicit equals unrolled at convergence"])


@pytest.mark.parametrize("name", LEARNING)
def test_first_order_differs_from_exact_where_there_is_curvature(name):
    learner, meta, tasks = setup(name)
    exact = grads(learner, fmeta.unrolled(), meta, tasks)
    assert distance(grads(learner, fmeta.first_order(), meta, tasks), exact) > 1e-3


@pytest.mark.parametrize("name", [n for n in LEARNING if STEPPING[n] > 1])
def test_truncated_lies_between(name):
    """Keeping the Hessian term in some steps is neither first order nor exact."""
    learner, meta, tasks = setup(name)
    some = grads(learner, fmeta.truncated(1), meta, tasks)
    assert distance(some, grads(learner, fmeta.first_order(), meta, tasks)) > 1e-4
    assert distance(some, grads(learner, fmeta.unrolled(), meta, tasks)) > 1e-4


@pytest.mark.parametrize("name", ["maml-dropout", "reptile", "drawn_head"])
def test_another_key_is_another_run(name):
    learner, meta, tasks = setup(name)
    shifted = tasks._replace(key=fmeta.split(fold(KEY, 77), len(tasks.key)))
    exact = grads(learner, fmeta.unrolled(), meta, tasks)
    assert distance(grads(learner, fmeta.unrolled(), meta, shifted), exact) > 1e-3


def test_relu_and_adam_stay_finite():
    """Exact zeros in the inner gradient met Adam's square root: NaN in three of four random nets, once."""
    net = fmeta.models.mlp([2, 8, 8, 1], torch.relu, torch.float64)
    for optimizer in (fmeta.adam(0.01), fmeta.rmsprop(0.01)):
        for seed in range(4):
            learner = fmeta.maml(net, fmeta.mse, optimizer=optimizer, steps=3)
            meta = learner.init(fmeta.key(seed))
            tasks = vectors(fmeta.key(seed + 10))
            g = grads(learner, fmeta.unrolled(), meta, tasks)
            assert all(t.isfinite().all() for t in tree_leaves(g))
            assert distance(grads(learner, fmeta.adjoint(), meta, tasks), g) < 1e-10


def test_classification_metrics_are_reported_per_task():
    learner, meta, tasks = setup("maml-classes")
    info = fmeta.meta_grad(learner)(meta, tasks)[1]
    for i in range(3):
        task = tree_map(lambda t, i=i: t[i], tasks)
        fast = learner.adapt(meta, task.support, task.key)
        right = (learner.predict(fast, meta, task.query.x).argmax(-1) == task.query.y).double().mean()
        assert info.metrics["accuracy"][i] == right


def test_anil_gives_the_body_no_inner_gradient():
    learner, meta, tasks = setup("anil")
    task = tree_map(lambda t: t[0], tasks)
    fast = learner.adapt(meta, task.support, task.key)
    assert sorted(fast) == ["head.bias", "head.weight"]
    assert all(not torch.equal(fast[n], meta[n]) for n in fast)
    by_hand = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    pattern = fmeta.anil(regressor(), fmeta.mse, adapt="*", optimizer=fmeta.sgd(0.1), steps=3)
    exact = grads(by_hand, fmeta.unrolled(), meta, tasks)
    assert distance(grads(pattern, fmeta.unrolled(), meta, tasks), exact) < 1e-12


def test_reptile_walks_its_epochs_without_replacement():
    """Over an epoch every support example is used once; another epoch has another order."""
    from fmeta.learners._reptile import minibatches

    support = Examples(torch.arange(7.0)[:, None], torch.arange(7))
    batch = minibatches(3)
    drawn = torch.cat([batch(support, inner.at_step(torch.tensor(k), KEY)).y for k in range(14)])
    epochs = drawn.reshape(6, 7)
    assert all(sorted(e.tolist()) == list(range(7)) for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) > 3


def test_trajectory_ends_where_adapt_ends():
    learner, meta, tasks = setup("maml-adam")
    task = tree_map(lambda t: t[0], tasks)
    path = fmeta.trajectory(learner.inner)(meta, task.support, task.key)
    assert len(path) == 4
    assert distance(path[0], meta) == 0
    assert distance(path[-1], learner.adapt(meta, task.support, task.key)) == 0
    longer = fmeta.trajectory(learner.inner, 6)(meta, task.support, task.key)
    assert len(longer) == 7
    assert distance(longer[3], path[3]) == 0


@pytest.mark.parametrize("name", sorted(STEPPING))
def test_trajectory_at_some_steps_is_the_path_there(name):
    learner, meta, tasks = setup(name)
    task = tree_map(lambda t: t[0], tasks)
    path = fmeta.trajectory(learner.inner, 4)(meta, task.support, task.key)
    some = fmeta.trajectory(learner.inner, at=(4, 0, 2, 2))(meta, task.support, task.key)
    assert [distance(a, path[k]) for a, k in zip(some, (4, 0, 2, 2), strict=True)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"at": ()}, "at least one"),
        ({"at": (-1, 2)}, "from 0 to 2"),
        ({"steps": 3, "at": (4,)}, "from 0 to 3"),
        ({"steps": -1}, "expected 0 or more"),
    ],
)
def test_trajectory_refuses_steps_that_it_does_not_take(given, expected):
    with pytest.raises(fmeta.InputError, match=expected):
        fmeta.trajectory(LEARNERS["maml"].learner.inner, **given)


def test_a_long_path_keeps_the_steps_that_were_asked_for_and_no_others():
    net = fmeta.models.mlp([2, 256, 256, 1])
    learner = fmeta.maml(net, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=3)
    meta, task = learner.init(KEY), tree_map(lambda t: t[0].float() if t.is_floating_point() else t[0], vectors(KEY))
    tasks = tree_map(lambda t: t[None], task)
    size = sum(p.numel() * 4 for p in tree_leaves(meta))

    def of_path(steps, **asked):
        with torch.no_grad():
            return fmeta.peak_memory(fmeta.trajectory(learner.inner, steps, **asked), meta, task.support, task.key)

    assert of_path(40) - of_path(10) > 25 * size
    assert of_path(40, at=(0, 40)) - of_path(10, at=(0, 10)) < size

    def of_evaluation(steps):
        with _Living(tree_leaves((meta, tasks))) as living:  # on data, which a fingerprint needs
            fmeta.evaluate(learner, meta, tasks, steps=range(steps + 1))
        return living.peak

    assert of_evaluation(40) - of_evaluation(10) < size


def test_labelled_helper_needs_no_key():
    """Learners without randomness work on tasks without keys."""
    learner, meta, tasks = setup("maml-classes")
    bare = labelled(fold(KEY, 1))._replace(key=())
    for gradient in (fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order()):
        assert distance(grads(learner, gradient, meta, bare), grads(learner, gradient, meta, tasks)) < 1e-14
