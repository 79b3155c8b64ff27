"""Laws that hold for every learner and every meta-gradient (DESIGN: one table × contract tests)."""

import pytest
import torch
from helpers import F64, LEARNERS, distance, labelled, regressor, vectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

import fmeta
from fmeta import Examples
from fmeta.core import _inner as inner
from fmeta.core import _tree as tree
from fmeta.core import fold, normal

ALL = sorted(LEARNERS)
KEY = fmeta.key(5)
SAME_SHAPE = ["maml", "maml-adam", "maml-clip-momentum", "maml-dropout", "maml-classes", "reptile"]


def setup(name):
    learner, sample, _ = LEARNERS[name]
    return learner, learner.init(KEY), sample(fold(KEY, 1))


def grads(learner, gradient, meta, tasks):
    return fmeta.meta_grad(learner, gradient)(meta, tasks)[0]


def value(learner, meta, tasks):
    """The mean query loss after adaptation, one task after another in a plain loop."""
    total = 0.0
    count = tree_leaves(tasks.support.x)[0].shape[0]
    for i in range(count):
        task = tree_map(lambda t, i=i: t[i], tasks)
        total += learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)[0].item() / count
    return total


@pytest.mark.parametrize("gradient", ["unrolled", "adjoint"])
@pytest.mark.parametrize("name", ALL)
def test_exact_equals_finite_differences(name, gradient):
    learner, meta, tasks = setup(name)
    g = grads(learner, getattr(fmeta, gradient)(), meta, tasks)
    for i in range(3):
        move = tree_map(lambda t, i=i: normal(fold(KEY, 100 + i), t.shape, F64), meta)
        h = 1e-6
        numeric = (value(learner, tree.add(meta, tree.scale(move, h)), tasks) - value(learner, tree.add(meta, tree.scale(move, -h)), tasks)) / (2 * h)  # fmt: skip  # noqa: E501
        assert tree.dot(g, move).item() == pytest.approx(numeric, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_adjoint_and_truncated_steps_equal_unrolled(name):
    learner, meta, tasks = setup(name)
    exact, info = fmeta.meta_grad(learner, fmeta.unrolled())(meta, tasks)
    for gradient in (fmeta.adjoint(), fmeta.truncated(learner.inner.steps)):
        other, other_info = fmeta.meta_grad(learner, gradient)(meta, tasks)
        assert distance(other, exact) < 1e-12
        assert distance(other_info, info) < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_first_order_equals_a_loop_with_constant_inner_gradients(name):
    """An independent FOMAML: every inner gradient is computed, detached, and fed to the same optimizer."""
    learner, meta, tasks = setup(name)

    def detached(m, task):
        fast, state = inner.begin(learner.inner, m, task.support)
        for k in range(learner.inner.steps):
            at = inner.at_step(torch.tensor(k), task.key)
            plain = tree_map(lambda t: t.detach(), (fast, m))
            g = torch.func.grad(learner.inner.loss)(*plain, learner.inner.batch(task.support, at), at)
            fast, state = inner.move(learner.inner, tree_map(lambda t: t.detach(), g), fast, state, m)
        return learner.loss(fast, m, task.query)[0]

    leaves = tree_map(lambda t: t.clone().requires_grad_(), meta)
    count = tree_leaves(tasks.support.x)[0].shape[0]
    loss = sum(detached(leaves, tree_map(lambda t, i=i: t[i], tasks)) for i in range(count)) / count
    expected = torch.autograd.grad(loss, tree_leaves(leaves))
    for gradient in (fmeta.first_order(), fmeta.truncated(0)):
        assert distance(tree_leaves(grads(learner, gradient, meta, tasks)), list(expected)) < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_first_order_differs_from_exact_where_there_is_curvature(name):
    learner, meta, tasks = setup(name)
    exact = grads(learner, fmeta.unrolled(), meta, tasks)
    assert distance(grads(learner, fmeta.first_order(), meta, tasks), exact) > 1e-3


@pytest.mark.parametrize("name", [n for n in ALL if LEARNERS[n].learner.inner.steps > 1])
def test_truncated_lies_between(name):
    """Keeping the Hessian term in some steps is neither first order nor exact."""
    learner, meta, tasks = setup(name)
    some = grads(learner, fmeta.truncated(1), meta, tasks)
    assert distance(some, grads(learner, fmeta.first_order(), meta, tasks)) > 1e-4
    assert distance(some, grads(learner, fmeta.unrolled(), meta, tasks)) > 1e-4


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_difference_is_meta_minus_fast(name):
    learner, meta, tasks = setup(name)
    count = tree_leaves(tasks.support.x)[0].shape[0]
    one = [learner.adapt(meta, *(tree_map(lambda t, i=i: t[i], p) for p in (tasks.support, tasks.key))) for i in range(count)]  # fmt: skip  # noqa: E501
    expected = tree_map(lambda m, *f: m - torch.stack(f).mean(0), meta, *one)
    g = grads(learner, fmeta.difference(), meta, tasks)
    assert distance(g, expected) < 1e-12
    assert distance(g, grads(learner, fmeta.unrolled(), meta, tasks)) > 1e-3


GRADIENTS = {
    "unrolled": fmeta.unrolled(),
    "adjoint": fmeta.adjoint(),
    "truncated": fmeta.truncated(1),
    "first_order": fmeta.first_order(),
    "difference": fmeta.difference(),
}
PAIRS = [(n, g) for n in ALL for g in GRADIENTS if g != "difference" or n in SAME_SHAPE]


@pytest.mark.parametrize(("name", "gradient"), PAIRS)
def test_a_batch_equals_a_loop_over_tasks_in_any_order_and_chunks(name, gradient):
    learner, meta, tasks = setup(name)
    f = fmeta.meta_grad(learner, GRADIENTS[gradient])
    together, info = f(meta, tasks)
    count = len(info.losses)
    pieces = [f(meta, tree_map(lambda t, i=i: t[i : i + 1], tasks)) for i in range(count)]
    mean = tree_map(lambda *ts: torch.stack(ts).mean(0), *(g for g, _ in pieces))
    assert distance(together, mean) < 1e-12
    assert distance(info.losses, torch.cat([i.losses for _, i in pieces])) < 1e-12
    backwards, _ = f(meta, tree_map(lambda t: t.flip(0), tasks))
    assert distance(backwards, together) < 1e-12
    split = [f(meta, tree_map(lambda t, s=s: t[s], tasks))[0] for s in (slice(0, 1), slice(1, None))]
    weighted = tree_map(lambda a, b: (a + (count - 1) * b) / count, *split)
    assert distance(weighted, together) < 1e-12


@pytest.mark.parametrize(("name", "gradient"), PAIRS)
def test_inputs_are_untouched_dtype_is_kept_and_runs_repeat(name, gradient):
    learner, meta, tasks = setup(name)
    before = tree_map(torch.clone, (meta, tasks))
    f = fmeta.meta_grad(learner, GRADIENTS[gradient])
    once, twice = f(meta, tasks), f(meta, tasks)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(before), tree_leaves((meta, tasks)), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(once), tree_leaves(twice), strict=True))
    assert all(g.dtype == F64 and g.shape == m.shape for g, m in zip(*map(tree_leaves, (once[0], meta)), strict=True))
    assert not any(t.requires_grad for t in tree_leaves(once))


@pytest.mark.parametrize("name", ALL)
def test_adaptation_never_sees_the_query(name):
    learner, meta, tasks = setup(name)
    losses = fmeta.meta_grad(learner)(meta, tasks)[1].losses
    task = tree_map(lambda t: t[0], tasks)
    fast = learner.adapt(meta, task.support, task.key)
    other = task.query._replace(x=task.query.x + 1.0)
    assert learner.loss(fast, meta, task.query)[0] == pytest.approx(losses[0].item(), rel=1e-12)
    assert learner.loss(fast, meta, other)[0] != learner.loss(fast, meta, task.query)[0]


@pytest.mark.parametrize("name", [n for n in ALL if LEARNERS[n].stochastic])
def test_another_key_is_another_run(name):
    learner, meta, tasks = setup(name)
    shifted = tasks._replace(key=fmeta.split(fold(KEY, 77), len(tasks.key)))
    exact = grads(learner, fmeta.unrolled(), meta, tasks)
    assert distance(grads(learner, fmeta.unrolled(), meta, shifted), exact) > 1e-3


def padded(examples, garbage):
    """Two more examples of weight 0."""
    tasks = examples.x.shape[0]

    def more(t):
        extra = torch.full((tasks, 2, *t.shape[2:]), garbage, dtype=t.dtype)
        return torch.cat([t[:, :1], extra[:, :1], t[:, 1:], extra[:, 1:]], 1)

    count = examples.x.shape[1]
    weight = torch.ones(tasks, count + 2, dtype=F64)
    weight[:, 1] = weight[:, -1] = 0.0
    return Examples(more(examples.x), more(examples.y), weight)


@pytest.mark.parametrize("gradient", ["unrolled", "adjoint", "first_order"])
@pytest.mark.parametrize("name", [n for n in ALL if n not in ("reptile", "maml-dropout")])  # draws depend on the count
def test_padding_of_weight_zero_changes_nothing(name, gradient):
    learner, meta, tasks = setup(name)
    f = fmeta.meta_grad(learner, GRADIENTS[gradient])
    plain, info = f(meta, tasks)
    filled = tasks._replace(support=padded(tasks.support, 1), query=padded(tasks.query, 2))
    other, other_info = f(meta, filled)
    assert distance(other, plain) < 1e-12
    assert distance(other_info.losses, info.losses) < 1e-12


OPTIMIZERS = {
    "sgd": lambda lr: fmeta.sgd(lr),
    "momentum": lambda lr: fmeta.momentum(lr, 0.7),
    "adam": lambda lr: fmeta.adam(lr, eps=1e-3),
    "adamw": lambda lr: fmeta.adamw(lr, eps=1e-3),
    "clipped": lambda lr: fmeta.chain(fmeta.clip_by_global_norm(0.3), fmeta.sgd(lr)),
    "decaying": lambda lr: fmeta.sgd(fmeta.cosine_decay(lr, 3)),
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.integers(1, 9),
    steps=st.integers(1, 5),
    shots=st.integers(1, 7),
    query=st.integers(1, 7),
    count=st.integers(1, 5),
    inputs=st.integers(1, 3),
    lr=st.floats(1e-3, 0.3),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=st.sampled_from(["maml", "anil", "reptile", "meta_sgd"]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_laws_for_any_setting(width, steps, shots, query, count, inputs, lr, optimizer, kind, seed, data):
    """Exact ways agree with each other and with a directional finite difference, whatever the sizes."""
    net = regressor(inputs, width)
    if kind == "meta_sgd":
        learner = fmeta.meta_sgd(net, fmeta.mse, lr=lr, steps=steps)
    else:
        extra = {"batch": data.draw(st.integers(1, shots), label="batch")} if kind == "reptile" else {}
        learner = getattr(fmeta, kind)(net, fmeta.mse, optimizer=OPTIMIZERS[optimizer](lr), steps=steps, **extra)
    key = fmeta.key(seed)
    meta, tasks = learner.init(key), vectors(fold(key, 1), count, shots, query, inputs)
    exact = grads(learner, fmeta.unrolled(), meta, tasks)
    assert distance(grads(learner, fmeta.adjoint(), meta, tasks), exact) < 1e-10
    assert distance(grads(learner, fmeta.truncated(steps), meta, tasks), exact) < 1e-10
    assert (
        distance(grads(learner, fmeta.truncated(0), meta, tasks), grads(learner, fmeta.first_order(), meta, tasks)) == 0
    )
    move = tree_map(lambda t: normal(fold(key, 3), t.shape, F64), meta)
    move = tree.scale(move, 1.0 / tree.global_norm(move))
    h = 1e-6
    numeric = (value(learner, tree.add(meta, tree.scale(move, h)), tasks) - value(learner, tree.add(meta, tree.scale(move, -h)), tasks)) / (2 * h)  # fmt: skip  # noqa: E501
    scale = tree.global_norm(exact).item()
    assert tree.dot(exact, move).item() == pytest.approx(numeric, rel=1e-4, abs=1e-6 * max(scale, 1e-3))


def test_relu_and_adam_stay_finite():
    """Exact zeros in the inner gradient met Adam's square root: NaN in three of four random nets, once."""
    net = fmeta.models.mlp([2, 8, 8, 1], torch.relu, F64)
    for seed in range(4):
        learner = fmeta.maml(net, fmeta.mse, optimizer=fmeta.adam(0.01), steps=3)
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


def test_labelled_helper_needs_no_key():
    """Learners without randomness work on tasks without keys."""
    learner, meta, tasks = setup("maml-classes")
    bare = labelled(fold(KEY, 1))._replace(key=())
    for gradient in (fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order()):
        assert distance(grads(learner, gradient, meta, bare), grads(learner, gradient, meta, tasks)) < 1e-14
