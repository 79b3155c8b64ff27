"""The classes behind shuffled labels: counts are those of a plain loop over tasks and examples."""

import collections
import json
import math

import pytest
import torch
from helpers import F64

import fmeta
from fmeta import Examples, Learner
from fmeta.core import fold, key, normal, uniform
from fmeta.tasks import class_data, episodes

NAMES = tuple(f"class {letter}" for letter in "abcdefg")
DATA = class_data(
    {
        name: 3.0 * normal(fold(key(9), c), (2,), F64) + normal(fold(key(8), c), (6, 2), F64)
        for c, name in enumerate(NAMES)
    }
)
SAMPLE = episodes(DATA, ways=4, shots=2, query=3)
NET = fmeta.models.mlp([2, 8, 5], torch.tanh, F64)
LEARNERS = {
    "protonet": fmeta.protonet(NET, ways=4),
    "protomaml": fmeta.protomaml(NET, ways=4, optimizer=fmeta.sgd(0.1), steps=2),
}


def drawn(count=25):
    k = key(3)
    return SAMPLE(k, count), (SAMPLE.classes(k, count), SAMPLE.names)


def plain_loop(learner, meta, tasks, classes):
    """(class, predicted class) -> how often, by name, one example after another, after the learner's own steps."""
    counts = collections.Counter()
    for i in range(len(tasks.key)):
        weight = tasks.query.weight[i] if isinstance(tasks.query.weight, torch.Tensor) else torch.ones(12)
        support, query = (Examples(e.x[i], e.y[i]) for e in (tasks.support, tasks.query))
        fast = learner.adapt(meta, support, tasks.key[i])
        for logits, label, w in zip(learner.predict(fast, meta, query.x), query.y, weight, strict=True):
            if w != 0:
                counts[tuple(NAMES[classes[0][i, at]] for at in (int(label), int(logits.argmax())))] += 1
    return counts


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_counts_are_those_of_a_plain_loop(name, weighted):
    learner = LEARNERS[name]
    meta, (tasks, classes) = learner.init(key(0)), drawn()
    if weighted:
        weight = (uniform(key(7), tasks.query.y.shape) < 0.6).double() + 0.0
        weight[:, 0] = 2.0
        tasks = tasks._replace(query=tasks.query._replace(weight=weight))
    expected = plain_loop(learner, meta, tasks, classes)
    found = fmeta.evaluate(learner, meta, tasks, classes=classes, chunk=10).classes
    confusion = found.confusion()
    assert {
        (NAMES[a], NAMES[b]): int(confusion[a, b]) for a in range(7) for b in range(7) if confusion[a, b]
    } == expected
    for c, label in enumerate(NAMES):
        total = sum(count for (true, _), count in expected.items() if true == label)
        claimed = sum(count for (_, predicted), count in expected.items() if predicted == label)
        assert found.examples()[c] == total
        assert found.recall()[c].item() == pytest.approx(expected[label, label] / total)
        assert found.precision()[c].item() == pytest.approx(expected[label, label] / claimed)
    wrong = sorted((count for (a, b), count in expected.items() if a != b), reverse=True)
    assert [count for _, _, count in found.confused(5)] == wrong[:5]
    assert all(expected[a, b] == count for a, b, count in found.confused(5))


def test_the_last_of_the_steps_is_counted():
    learner = LEARNERS["protomaml"]
    meta, (tasks, classes) = learner.init(key(0)), drawn()
    own = fmeta.evaluate(learner, meta, tasks, classes=classes).classes
    confusions = [
        fmeta.evaluate(learner, meta, tasks, steps=s, classes=classes).classes.confusion() for s in ([0, 2], [2, 0])
    ]
    assert torch.equal(confusions[0], own.confusion())
    assert not torch.equal(confusions[1], own.confusion())


def test_figures_are_those_of_the_labels():
    """Classes stand for ways; their recall over all examples is the accuracy."""
    learner = LEARNERS["protonet"]
    meta, (tasks, classes) = learner.init(key(0)), drawn()
    found = fmeta.evaluate(learner, meta, tasks, classes=classes)
    plain = fmeta.evaluate(learner, meta, tasks, ways=4)
    assert torch.equal(found.values["recall"], plain.values["recall"])
    right = (found.classes.recall() * found.classes.examples()).sum() / found.classes.examples().sum()
    assert right.item() == pytest.approx(plain.mean("recall")[0], abs=1e-6)  # every class has 3 query examples
    assert plain.classes is None


LARGE = 1e6  # of which the learner makes NaN


def speaking():
    return Learner(
        init=lambda k: {"nothing": torch.zeros(1)},
        adapt=lambda meta, support, k: meta,
        predict=lambda fast, meta, x: torch.where(x > LARGE, torch.nan, x),
        loss=lambda fast, meta, query: (torch.where(query.x > LARGE, torch.nan, query.x).mean(), {}),
        inner=None,
        gradient=fmeta.unrolled(),
    )


def test_nan_predictions_and_classes_without_examples():
    """A NaN is an example that was not recognised; a class never drawn has NaN, and is not in the summary."""
    logits = torch.tensor([[[2.0, 1.0], [2 * LARGE, 0.0], [0.0, 1.0]]]).expand(2, -1, -1)
    support, y = torch.zeros(2, 1, 2), torch.zeros(2, 3, dtype=torch.int64)
    tasks = fmeta.Task(Examples(support, y[:, :1]), Examples(logits, y))
    meta, names = {"nothing": torch.zeros(1)}, ("a", "b", "c")
    result = fmeta.evaluate(speaking(), meta, tasks, classes=(torch.tensor([[2, 0], [2, 0]]), names))
    found = result.classes
    assert found.examples().tolist() == [0, 0, 6]
    assert found.recall().tolist()[2] == pytest.approx(1 / 3)
    assert math.isnan(found.recall()[0])
    assert found.precision().tolist()[::2] == [0.0, 1.0]
    assert math.isnan(found.precision()[1])
    assert found.confusion().tolist() == [[0, 0, 0], [0, 0, 0], [2, 0, 2]]
    assert found.confused() == [("c", "a", 2)]
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert set(summary["classes"]) == {"c"}
    assert set(result.summary()) >= {"classes", "confused"}


def test_classes_that_do_not_fit_are_refused():
    learner = LEARNERS["protonet"]
    meta, (tasks, (index, names)) = learner.init(key(0)), drawn(5)
    bad = {
        r"got torch.int64 \[4, 4\] for 5 tasks": {"classes": (index[:4], names)},
        r"got torch.float64 \[5, 4\]": {"classes": (index.double(), names)},
        r"got list": {"classes": (index.tolist(), names)},
        r"classes run from \d to 6 with 3 names": {"classes": (index, names[:3])},
        r"evaluate\(ways=3\): classes has 4 ways": {"classes": (index, names), "ways": 3},
    }
    for message, arguments in bad.items():
        with pytest.raises(fmeta.InputError, match=message):
            fmeta.evaluate(learner, meta, tasks, **arguments)
