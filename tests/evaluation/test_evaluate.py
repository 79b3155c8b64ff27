"""`evaluate`: the figures are those of a plain loop, and depend on nothing but learner, meta and tasks."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from helpers import LEARNERS, labelled, regressor, vectors

import fmeta
from fmeta import Learner, Task
from fmeta.core import key
from fmeta.core.tree import tree_map

MAML = LEARNERS["maml"].learner  # sgd(0.1), 3 steps, tanh, float64
TASKS = vectors(key(1), tasks=7)


def mean_predictor():
    """A closed-form learner without an inner loop: what it predicts is the mean of the support targets plus a bias."""

    def loss(fast, meta, query):
        error = (fast + meta["bias"] - query.y) ** 2
        return error.mean(), {"worst": error.max()}

    return Learner(
        init=lambda k: {"bias": torch.zeros((), dtype=torch.float64)},
        adapt=lambda meta, support, k: support.y.mean(0),
        predict=lambda fast, meta, x: (fast + meta["bias"]).expand(x.shape[0], -1),
        loss=loss,
        inner=None,
        gradient=fmeta.unrolled(),
        name="mean",
    )


def loop(model, meta, tasks, *, lr, steps):
    """Gradient descent by torch.autograd, one task and one step after another -> [task][step] mean squared error."""
    table = []
    for i in range(tasks.support.x.shape[0]):
        (x, y, _), (xq, yq, _) = (e._replace(x=e.x[i], y=e.y[i]) for e in (tasks.support, tasks.query))
        weights = {n: p.clone().requires_grad_() for n, p in meta.items()}
        row = []
        for k in range(max(steps) + 1):
            if k in steps:
                row.append(((model.apply(weights, xq) - yq) ** 2).mean().item())
            grads = torch.autograd.grad(((model.apply(weights, x) - y) ** 2).mean(), list(weights.values()))
            pairs = zip(weights.items(), grads, strict=True)
            weights = {n: (p - lr * g).detach().requires_grad_() for (n, p), g in pairs}
        table.append(row)
    return torch.tensor(table, dtype=torch.float64)


def test_values_are_those_of_a_plain_loop_over_tasks_and_steps_beyond_training_too():
    steps = (0, 1, 2, 3, 7)  # trained with 3
    meta = MAML.init(key(0))
    found = fmeta.evaluate(MAML, meta, TASKS, steps=steps)
    expected = loop(regressor(), meta, TASKS, lr=0.1, steps=steps)
    assert found.steps == steps
    assert found.values["loss"].shape == (7, 5)
    assert (found.values["loss"] - expected).abs().max() < 1e-12
    assert (expected[:, 0] - expected[:, 4]).abs().min() > 1e-3  # the steps do something


def test_the_default_is_the_learners_own_number_of_steps():
    meta = MAML.init(key(0))
    found = fmeta.evaluate(MAML, meta, TASKS)
    assert found.steps == (3,)
    assert torch.equal(found.values["loss"], fmeta.evaluate(MAML, meta, TASKS, steps=[3]).values["loss"])


def test_steps_are_measured_in_the_order_asked_for():
    meta = MAML.init(key(0))
    up, down = (fmeta.evaluate(MAML, meta, TASKS, steps=s).values["loss"] for s in ([0, 2, 5], [5, 2, 0]))
    assert torch.equal(up, down.flip(1))


@pytest.mark.parametrize("name", ["maml", "maml-dropout", "reptile"])
@pytest.mark.parametrize("chunk", [1, 3, 6, 7])
def test_chunk_size_does_not_matter(name, chunk):
    learner = LEARNERS[name].learner
    meta = learner.init(key(0))
    whole = fmeta.evaluate(learner, meta, TASKS, steps=[0, 2]).values["loss"]
    assert (fmeta.evaluate(learner, meta, TASKS, steps=[0, 2], chunk=chunk).values["loss"] - whole).abs().max() < 1e-12


def test_the_same_tasks_give_the_same_numbers_and_others_do_not():
    learner = LEARNERS["maml-dropout"].learner  # noise in the inner loop comes from the task's key
    meta = learner.init(key(0))
    first, second = (fmeta.evaluate(learner, meta, TASKS, steps=[0, 3]).values["loss"] for _ in range(2))
    assert torch.equal(first, second)
    other_keys = TASKS._replace(key=TASKS.key + 1)
    changed = fmeta.evaluate(learner, meta, other_keys, steps=[0, 3]).values["loss"]
    assert torch.equal(changed[:, 0], first[:, 0])
    assert not torch.equal(changed[:, 1], first[:, 1])


def test_evaluate_changes_neither_meta_nor_tasks():
    meta = MAML.init(key(0))
    before = tree_map(torch.clone, (meta, TASKS))
    fmeta.evaluate(MAML, meta, TASKS, steps=[0, 4])
    after = (meta, TASKS)
    equal = tree_map(torch.equal, before, after)
    assert all(fmeta.tree.tree_leaves(equal))


@pytest.mark.parametrize("count", [4, 7])
def test_mean_interval_and_median_are_the_textbooks(count):
    """An even and an odd number of tasks: the median of an even number is the middle of the two inner values."""
    found = fmeta.evaluate(MAML, MAML.init(key(0)), vectors(key(2), tasks=count), steps=[0, 1])
    columns = found.values["loss"].T.tolist()
    assert found.mean("loss") == pytest.approx([statistics.fmean(c) for c in columns], rel=1e-12)
    half = [1.96 * statistics.stdev(c) / math.sqrt(count) for c in columns]
    assert found.interval("loss") == pytest.approx(half, rel=1e-12)
    assert found.median("loss") == pytest.approx([statistics.median(c) for c in columns], rel=1e-12)


def test_metrics_are_measured_beside_the_loss():
    row = LEARNERS["maml-classes"]
    meta, tasks = row.learner.init(key(0)), labelled(key(3), tasks=5)
    found = fmeta.evaluate(row.learner, meta, tasks, steps=[0, 2])
    assert set(found.values) == {"loss", "accuracy"}
    for column, k in enumerate((0, 2)):
        for i in range(5):
            task = tree_map(lambda t, i=i: t[i], tasks)
            fast = fmeta.trajectory(row.learner.inner, k)(meta, task.support, task.key)[-1]
            right = row.learner.predict(fast, meta, task.query.x).argmax(-1) == task.query.y
            assert found.values["accuracy"][i, column].item() == pytest.approx(right.double().mean().item())


def test_summary_is_plain_json_with_the_protocol():
    found = fmeta.evaluate(MAML, MAML.init(key(0)), TASKS, steps=[0, 1], protocol={"ways": 5, "split": "test"})
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["protocol"] == {"tasks": 7, "ways": 5, "split": "test", "task list": found.protocol["task list"]}
    assert summary["steps"] == [0, 1]
    assert summary["loss"] == {
        "mean": found.mean("loss"), "interval95": found.interval("loss"), "median": found.median("loss"),
    }  # fmt: skip


def test_tasks_without_keys_can_be_evaluated():
    meta = MAML.init(key(0))
    bare = Task(TASKS.support, TASKS.query)
    values = [fmeta.evaluate(MAML, meta, tasks, chunk=3).values["loss"] for tasks in (bare, TASKS)]
    assert torch.equal(*values)


def test_a_learner_without_an_inner_loop_is_measured_once():
    learner = mean_predictor()
    meta = {"bias": torch.tensor(0.25, dtype=torch.float64)}
    found = fmeta.evaluate(learner, meta, TASKS, chunk=2)
    error = (TASKS.support.y.mean(1, keepdim=True) + 0.25 - TASKS.query.y) ** 2
    assert found.steps == (0,)
    assert (found.values["loss"][:, 0] - error.mean((1, 2))).abs().max() < 1e-12
    assert (found.values["worst"][:, 0] - error.amax((1, 2))).abs().max() < 1e-12


def test_a_learner_without_an_inner_loop_refuses_steps():
    learner = mean_predictor()
    with pytest.raises(fmeta.InputError, match=r"evaluate\(steps=\[0, 1\]\): mean takes no inner steps; leave steps"):
        fmeta.evaluate(learner, learner.init(key(0)), TASKS, steps=[0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [-1]}, r"steps=-1\): expected a whole number, at least 0"),
        ({"steps": [0, -2, 3]}, r"steps=-2\): expected a whole number"),
        ({"steps": (0, 1.5)}, r"steps=1.5\): expected a whole number"),
        ({"steps": (True,)}, r"steps=True\): expected a whole number"),
        ({"steps": "3"}, r"steps='3'\): expected a whole number"),
        ({"steps": []}, r"steps=\[\]\): expected one number of steps or more"),
        ({"steps": 3}, r"steps=3\): expected the numbers of steps after which to measure; say \(3,\)"),
        ({"steps": np.int64(3)}, r"steps=3\): .*say \(3,\)"),
        ({"steps": 3.0}, r"steps=3.0\): expected one number of steps or more"),
        ({"chunk": 0}, r"chunk=0\): expected a whole number, at least 1"),
        ({"chunk": 2.5}, r"chunk=2.5\): expected a whole number, at least 1"),
        ({"ways": 1}, r"ways=1\): expected a whole number, at least 2"),
        ({"classes": (torch.zeros(7, 1, dtype=torch.int64), ("a",))}, r"ways=1\): expected a whole number, at least 2"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(fmeta.InputError, match=rf"evaluate\(.*{message}"):
        fmeta.evaluate(MAML, MAML.init(key(0)), TASKS, **arguments)


def test_steps_may_be_numbers_of_numpy():
    found = fmeta.evaluate(MAML, MAML.init(key(0)), TASKS, steps=np.array([0, 2]))
    assert json.loads(json.dumps(found.summary()))["steps"] == [0, 2]


def test_a_single_task_has_no_interval():
    """Its mean is its value; how far others are from it nobody knows."""
    found = fmeta.evaluate(MAML, MAML.init(key(0)), tree_map(lambda t: t[:1], TASKS))
    assert found.mean("loss") == found.values["loss"][0].tolist()
    with pytest.raises(fmeta.InputError, match=r"interval\('loss'\): of 1 task; expected at least 2"):
        found.interval("loss")
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["loss"] == {"mean": found.mean("loss"), "interval95": None, "median": found.median("loss")}
    with pytest.raises(fmeta.InputError, match="compare: both were evaluated on 1 task; expected at least 2"):
        fmeta.compare(found, found, "loss")


def test_a_single_task_without_its_axis_is_refused_with_the_cure():
    single = tree_map(lambda t: t[0], vectors(key(1), inputs=2))
    one_feature = Task(*(e._replace(x=e.x[:, 0], y=e.y[:, 0]) for e in (single.support, single.query)))
    with pytest.raises(fmeta.InputError, match=r"evaluate: tasks\.support\.x .*task axis.*t\[None\]"):
        fmeta.evaluate(MAML, MAML.init(key(0)), one_feature)
    with pytest.raises(fmeta.InputError, match=r"evaluate: tasks\.support"):
        fmeta.evaluate(MAML, MAML.init(key(0)), single._replace(key=()))


def test_meta_that_requires_grad_is_refused():
    meta = tree_map(lambda p: p.requires_grad_(), MAML.init(key(0)))
    with pytest.raises(fmeta.InputError, match=r"evaluate: meta.*requires grad.*detach"):
        fmeta.evaluate(MAML, meta, TASKS)
