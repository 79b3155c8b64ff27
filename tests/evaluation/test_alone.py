"""Query examples predicted alone: the same figures without batch statistics, honest ones with them."""

import math

import pytest
import torch
from helpers import F64, LEARNERS, labelled, vectors

import fmeta
from fmeta import Examples, Task
from fmeta.core import fold, key, normal
from fmeta.core.tree import tree_map

STREAMS = {"mann", "supervised", "transfer"}  # tasks without a support set
INDEPENDENT = sorted(set(LEARNERS) - {"maml_plus_plus", "anil-conv4"} - STREAMS)  # no batch norm


def images(number, tasks=3, ways=3, shots=2, query=4):
    k = key(number)
    y = torch.arange(ways)[None].expand(tasks, -1)
    support, queries = (y.repeat_interleave(n, 1) for n in (shots, query))
    centre = normal(fold(k, 0), (tasks, ways, 1, 16, 16), F64)

    def examples(labels, child):
        noise = normal(fold(k, child), (*labels.shape, 1, 16, 16), F64)
        return Examples(torch.stack([c[at] for c, at in zip(centre, labels, strict=True)]) + noise, labels)

    return Task(examples(support, 1), examples(queries, 2), fmeta.split(k, tasks))


def conv4(norm):
    model = fmeta.models.conv4(3, channels=1, size=16, form="stride", width=4, norm=norm)
    learner = fmeta.maml(
        model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.4), steps=2, metrics={"accuracy": fmeta.accuracy}
    )
    return learner, tree_map(torch.Tensor.double, learner.init(key(0)))


def by_hand(learner, meta, tasks, steps, pick):
    """Each query example predicted in the last row behind the support inputs, one task after another."""
    table = []
    for i in range(len(tasks.key)):
        support, query = (Examples(e.x[i], e.y[i]) for e in (tasks.support, tasks.query))
        row = []
        for k in steps:
            fast = fmeta.trajectory(learner.inner, k)(meta, support, tasks.key[i])[-1]
            found = []
            for x, y in zip(query.x, query.y, strict=True):
                prediction = learner.predict(fast, meta, torch.cat([support.x, x[None]]))[-1:]
                found.append(pick(prediction, y[None]).item())
            row.append(sum(found) / len(found))
        table.append(row)
    return torch.tensor(table, dtype=F64)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_tasks_without_a_support_set_are_refused(name):
    row = LEARNERS[name]
    with pytest.raises(fmeta.InputError, match="the tasks have no support set; leave inductive out"):
        fmeta.evaluate(row.learner, row.learner.init(key(0)), row.tasks(key(5)), inductive=True)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_without_batch_statistics_the_gap_is_0(name):
    row = LEARNERS[name]
    found = fmeta.evaluate(row.learner, row.learner.init(key(0)), row.tasks(key(5)), inductive=True)
    gaps = [value for name, value in found.values.items() if name.endswith(" gap")]
    assert gaps
    assert max(gap.abs().max().item() for gap in gaps) < 1e-12


def test_with_group_norm_the_gap_is_0_and_with_batch_norm_it_is_not():
    found = {}
    for norm in ("group", "batch"):
        learner, meta = conv4(norm)
        found[norm] = fmeta.evaluate(learner, meta, images(1), steps=[0, 2], inductive=True).values
    assert found["group"]["loss gap"].abs().max() < 1e-10
    assert found["group"]["accuracy gap"].abs().max() == 0
    assert found["batch"]["loss gap"].abs().min() > 1e-4


@pytest.mark.parametrize("chunk", [2, 3])
def test_alone_is_the_last_row_behind_the_support_inputs(chunk):
    learner, meta = conv4("batch")
    tasks, steps = images(2), (0, 2)
    found = fmeta.evaluate(learner, meta, tasks, steps=steps, inductive=True, chunk=chunk).values
    for name, pick in {"loss": fmeta.cross_entropy, "accuracy": fmeta.accuracy}.items():
        expected = by_hand(learner, meta, tasks, steps, pick)
        assert (found[f"{name} alone"] - expected).abs().max() < 1e-9
        assert torch.equal(found[f"{name} gap"], found[name] - found[f"{name} alone"])


def test_the_interval_of_the_gap_is_paired():
    learner, meta = conv4("batch")
    found = fmeta.evaluate(learner, meta, images(3, tasks=6), inductive=True)
    difference = found.values["loss"] - found.values["loss alone"]
    assert found.interval("loss gap")[0] == pytest.approx((1.96 * difference.std(0) / math.sqrt(6)).item(), rel=1e-12)
    assert found.summary()["loss gap"]["mean"] == found.mean("loss gap")


def test_an_example_of_the_query_changes_no_other_alone():
    """With batch norm it changes them together."""
    learner, meta = conv4("batch")
    tasks = images(4, tasks=1)
    weight = torch.ones(1, 12, dtype=F64)
    weight[0, 0] = 0.0  # what is changed does not count itself
    x = tasks.query.x.clone()
    x[0, 0] *= 5.0
    a, b = (
        fmeta.evaluate(learner, meta, tasks._replace(query=Examples(v, tasks.query.y, weight)), inductive=True).values
        for v in (tasks.query.x, x)
    )
    assert (a["loss alone"] - b["loss alone"]).abs().max() < 1e-12
    assert (a["loss"] - b["loss"]).abs().max() > 1e-4


def test_inputs_and_targets_may_be_trees():
    """Here x is a pair and y a dict."""
    tasks = vectors(key(6))
    nested = Task(
        *(Examples((e.x[..., :1], e.x[..., 1:]), {"y": e.y}) for e in (tasks.support, tasks.query)), tasks.key
    )
    flat = LEARNERS["maml"].learner
    model = fmeta.Model(
        flat.init, lambda params, x: fmeta.models.mlp([2, 8, 8, 1], torch.tanh, F64).apply(params, torch.cat(x, -1))
    )
    learner = fmeta.maml(model, lambda p, y: fmeta.mse(p, y["y"]), optimizer=fmeta.sgd(0.1), steps=3)
    meta = flat.init(key(0))
    a, b = (fmeta.evaluate(le, meta, ta, inductive=True) for le, ta in ((learner, nested), (flat, tasks)))
    assert (a.values["loss alone"] - b.values["loss alone"]).abs().max() < 1e-12


def test_it_goes_together_with_ways():
    row = LEARNERS["maml-classes"]
    found = fmeta.evaluate(row.learner, row.learner.init(key(0)), labelled(key(1)), ways=3, inductive=True)
    assert set(found.values) == {
        "loss", "accuracy", "loss alone", "accuracy alone", "loss gap", "accuracy gap", "precision", "recall", "f1",
    }  # fmt: skip


def test_examples_that_do_not_fit_together_are_refused():
    tasks = vectors(key(1))
    odd = tasks._replace(query=Examples(tasks.query.x, tasks.query.y[..., 0]))
    learner = LEARNERS["maml"].learner
    with pytest.raises(fmeta.InputError, match=r"evaluate\(inductive=True\): examples of support and query differ"):
        fmeta.evaluate(learner, learner.init(key(0)), odd, inductive=True)
