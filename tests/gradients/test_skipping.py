"""`skipping`: the meta-gradient of the good tasks alone, and the bad ones counted."""

import pytest
import torch
from helpers import F64, distance, regressor, vectors

import fmeta
from fmeta import Examples
from fmeta.core import fold, key
from fmeta.core.tree import tree_leaves, tree_map

WAYS = [fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order(), fmeta.chunked(fmeta.adjoint(), 2)]


@pytest.fixture(scope="module")
def learner():
    error = {"absolute": lambda prediction, y: (prediction - y).abs().mean(-1)}
    return fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.05), steps=2, metrics=error)


def spoiled(tasks, numbers, where):
    part = getattr(tasks, where)
    shift = torch.zeros_like(part.y)
    shift[list(numbers)] = torch.nan
    return tasks._replace(**{where: Examples(part.x, part.y + shift)})


@pytest.mark.parametrize("way", WAYS, ids=["unrolled", "adjoint", "first_order", "chunked"])
@pytest.mark.parametrize("where", ["support", "query"])
def test_it_equals_the_gradient_of_the_good_tasks(learner, way, where):
    meta, tasks = learner.init(key(0)), vectors(key(1), 5)
    good = tree_map(lambda leaf: leaf[[0, 2, 4]], tasks)
    expected, told = fmeta.meta_grad(learner, way)(meta, good)
    found, info = fmeta.meta_grad(learner, fmeta.skipping(way))(meta, spoiled(tasks, (1, 3), where))
    assert distance(found, expected) < 1e-14
    assert info.skipped.tolist() == [False, True, False, True, False]
    assert torch.allclose(info.loss, told.loss, rtol=1e-14)
    assert torch.allclose(info.losses[[0, 2, 4]], told.losses)
    assert torch.allclose(info.metrics["absolute"].mean(), told.metrics["absolute"].mean())


def test_without_a_bad_task_it_is_the_gradient_itself(learner):
    meta, tasks = learner.init(key(0)), vectors(key(1), 3)
    plain, info = fmeta.meta_grad(learner)(meta, tasks)
    found, told = fmeta.meta_grad(learner, fmeta.skipping(fmeta.unrolled()))(meta, tasks)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(found), tree_leaves(plain), strict=True))
    assert torch.equal(told.losses, info.losses)
    assert not told.skipped.any()


def test_a_task_with_a_finite_loss_and_no_gradient_is_bad():
    """√|w·x| at x = 0."""
    model = fmeta.Model(lambda k: {"w": torch.ones(1, dtype=F64)}, lambda p, x: (p["w"] * x).abs().sqrt())
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    tasks = vectors(key(1), 3, inputs=1)
    x = tasks.query.x.clone()
    x[1, 2] = 0.0
    tasks, meta = tasks._replace(query=Examples(x, tasks.query.y)), model.init(key(0))
    grads, info = fmeta.meta_grad(learner)(meta, tasks)
    assert info.losses.isfinite().all()
    assert not grads["w"].isfinite().all()
    found, told = fmeta.meta_grad(learner, fmeta.skipping(fmeta.unrolled()))(meta, tasks)
    assert told.skipped.tolist() == [False, True, False]
    expected, _ = fmeta.meta_grad(learner)(meta, tree_map(lambda leaf: leaf[[0, 2]], tasks))
    assert distance(found, expected) < 1e-14


def test_without_a_good_task_training_stops(learner):
    tasks = spoiled(vectors(key(1), 3), (0, 1, 2), "query")
    trainer = fmeta.trainer(learner, fmeta.sgd(0.1), fmeta.skipping(fmeta.unrolled()))
    state = trainer.init(key(0))
    after, info = trainer.step(state, tasks)
    assert int(after.bad) == 0
    assert info.skipped.all()
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(after.meta), tree_leaves(state.meta), strict=True))


def test_its_stages_are_compiled_for_the_batch_and_for_one_task(learner):
    meta, tasks = learner.init(key(0)), vectors(key(1), 3)
    stage = lambda function: fmeta.compile(function, backend="aot_eager")  # noqa: E731
    compiled = fmeta.meta_grad(learner, fmeta.skipping(fmeta.adjoint()), stage)
    for given in (tasks, spoiled(tasks, (1,), "support"), tasks):
        expected = fmeta.meta_grad(learner, fmeta.skipping(fmeta.adjoint()))(meta, given)[0]
        assert distance(compiled(meta, given)[0], expected) < 1e-13


def test_fit_counts_what_it_leaves_out(learner, tmp_path):
    seen = []

    def sample(k, count):
        tasks = vectors(k, count)
        return spoiled(tasks, (1,), "support")

    begin = fold(fold(key(0), "tasks"), 0)

    def later(k, count):  # the first batch is looked at
        odd, even = sample(k, count), vectors(k, count)
        return tree_map(lambda a, b: torch.where(k == begin, b, a), odd, even)

    given = {"key": key(0), "iterations": 4, "meta_batch": 3}
    state = fmeta.fit(
        learner,
        fmeta.adam(0.01),
        sample,
        gradient=fmeta.skipping(),
        **given,
        logging=fmeta.Logging(2, [lambda _, v: seen.append(v)]),
    )
    assert [line["skipped"] for line in seen] == [2, 2]
    assert all(line["loss"] == line["loss"] for line in seen)
    assert int(state.step) == 4
    with pytest.raises(fmeta.NonFiniteError, match=r"gradient=fmeta\.skipping\(\)"):
        fmeta.fit(learner, fmeta.adam(0.01), later, run_dir=tmp_path, **given)
    with pytest.raises(fmeta.InputError, match=r"tasks\.support\.y holds .* in task 1.*gradient=fmeta\.skipping\(\)"):
        fmeta.fit(learner, fmeta.adam(0.01), sample, **given)


def test_inside_slices_it_is_refused_and_around_them_it_works():
    with pytest.raises(fmeta.InputError, match="expected skipping"):
        fmeta.chunked(fmeta.skipping(fmeta.unrolled()), 2)


def test_it_can_be_estimated_without_data(learner):
    tasks = vectors(key(1), 3)
    peak = fmeta.peak_memory(fmeta.meta_grad(learner, fmeta.skipping(fmeta.unrolled())), learner.init(key(0)), tasks)
    assert peak >= fmeta.peak_memory(fmeta.meta_grad(learner), learner.init(key(0)), tasks)
