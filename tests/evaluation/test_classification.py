"""Precision, recall, F1 and calibration are those of a plain count, task after task."""

import json
import math
import statistics

import pytest
import torch
from helpers import LEARNERS, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

import fmeta
from fmeta import Examples, Learner, Task
from fmeta.core import fold, key, normal, randint, uniform
from fmeta.evaluation import class_shares
from fmeta.evaluation._classification import judge

ROW = LEARNERS["maml-classes"]


LARGE = 1e6  # of which the learner makes NaN


def speaking():
    """A learner that predicts what the query inputs say: `x` is the logits."""
    return Learner(
        init=lambda k: {"nothing": torch.zeros(1)},
        adapt=lambda meta, support, k: meta,
        predict=lambda fast, meta, x: torch.where(x > LARGE, torch.nan, x),
        loss=lambda fast, meta, query: (torch.where(query.x > LARGE, torch.nan, query.x).mean(), {}),
        inner=None,
        gradient=fmeta.unrolled(),
        name="speaking",
    )


def said(logits, y, weight=()):
    """A batch of tasks whose query is given."""
    nothing = Examples(torch.zeros(len(y), 1, 1), torch.zeros(len(y), 1, dtype=torch.int64))
    return Task(nothing, Examples(logits, y, weight))


def random_query(number, tasks=5, examples=11, ways=4, spread=1.0):
    k = key(number)
    logits = spread * normal(fold(k, 0), (tasks, examples, ways), torch.float64)
    y = randint(fold(k, 1), ways, (tasks, examples))
    return logits, y, (uniform(fold(k, 2), (tasks, examples)) < 0.7).double() * 2


def figures(logits, y, weight):
    """Macro precision, recall and F1 of one task by counting, over the classes that its counted examples have."""
    counted = [i for i in range(len(y)) if weight[i] != 0]
    truth = [int(y[i]) for i in counted]
    predicted = [max(range(logits.shape[-1]), key=lambda c, i=i: float(logits[i, c])) for i in counted]
    found = []
    for c in sorted(set(truth)):
        hits = sum(t == c == p for t, p in zip(truth, predicted, strict=True))
        precision = hits / predicted.count(c) if c in predicted else 0.0
        recall = hits / truth.count(c)
        found.append((precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0))
    return [statistics.fmean(column) for column in zip(*found, strict=True)]


def calibration_error(logits, y, weight):
    """Over all tasks, bin by bin."""
    examples = []
    for task in range(len(y)):
        for i in range(y.shape[1]):
            if weight[task, i] != 0:
                exps = [math.exp(float(v)) for v in logits[task, i]]
                best = max(range(len(exps)), key=exps.__getitem__)
                examples.append((exps[best] / sum(exps), best == int(y[task, i])))
    total = 0.0
    for b in range(15):
        inside = [(c, right) for c, right in examples if b / 15 < c <= (b + 1) / 15]
        if inside:
            gap = statistics.fmean(c for c, _ in inside) - statistics.fmean(right for _, right in inside)
            total += abs(gap) * len(inside) / len(examples)
    return total


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_a_plain_count(number, tasks, ways, weighted):
    logits, y, weight = random_query(number, tasks, ways=ways)
    weight[:, 0] = 1.0
    weight = weight if weighted else torch.ones_like(weight)
    found = fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y, weight), ways=ways, chunk=2)
    expected = torch.tensor([figures(*task) for task in zip(logits, y, weight, strict=True)], dtype=torch.float64)
    for column, name in enumerate(("precision", "recall", "f1")):
        assert found.values[name].shape == (tasks, 1)
        assert (found.values[name][:, 0] - expected[:, column]).abs().max() < 1e-6
    assert found.calibration.error()[0] == pytest.approx(calibration_error(logits, y, weight), abs=1e-12)


def test_a_task_by_hand():
    """Labels 0 0 0 1 1 2, predicted 0 0 1 1 0 0: the precision is (2/4 + 1/2 + 0)/3, the recall (2/3 + 1/2 + 0)/3."""
    y, predicted = torch.tensor([[0, 0, 0, 1, 1, 2]]), torch.tensor([0, 0, 1, 1, 0, 0])
    logits = torch.nn.functional.one_hot(predicted, 3).double()[None]
    found = fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y), ways=3)
    assert found.mean("precision")[0] == pytest.approx(1 / 3, abs=1e-7)
    assert found.mean("recall")[0] == pytest.approx(7 / 18, abs=1e-7)
    assert found.mean("f1")[0] == pytest.approx((4 / 7 + 1 / 2) / 3, abs=1e-7)


def test_classes_that_a_task_does_not_hold_do_not_count():
    """Two of four classes occur: a perfect prediction scores 1, and to predict an absent one costs recall only."""
    y = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    predicted = torch.tensor([[0, 0, 1, 1], [0, 3, 1, 1]])
    logits = torch.nn.functional.one_hot(predicted, 4).double()
    found = fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y), ways=4)
    assert found.values["precision"][:, 0].tolist() == [1.0, 1.0]
    assert found.values["recall"][:, 0].tolist() == [1.0, 0.75]


def test_padding_changes_nothing():
    logits, y, weight = random_query(3)
    weight[:, -4:] = 0.0
    other = logits.clone()
    other[:, -4:] = 9 * other[:, -4:].flip(-1)
    meta = {"nothing": torch.zeros(1)}
    a, b = (fmeta.evaluate(speaking(), meta, said(v, y, weight), ways=4) for v in (logits, other))
    for name in ("precision", "recall", "f1"):
        assert torch.equal(a.values[name], b.values[name])
    assert a.calibration.error() == b.calibration.error()


def test_log_probabilities_and_logits_are_the_same():
    logits, y, weight = random_query(4)
    meta = {"nothing": torch.zeros(1)}
    a, b = (
        fmeta.evaluate(speaking(), meta, said(v, y, weight), ways=4) for v in (logits + 7.0, logits.log_softmax(-1))
    )
    assert torch.equal(a.values["f1"], b.values["f1"])
    assert a.calibration.error() == pytest.approx(b.calibration.error(), abs=1e-12)


@pytest.mark.parametrize("spoilt", ["all of them", "one class", "the right one"])
def test_a_row_with_a_nan_is_wrong_in_every_metric(spoilt):
    """torch's argmax takes the first NaN for the largest: label 0, which is right wherever the label is 0."""
    meta = {"w": torch.ones((), dtype=torch.float64)}

    def predict(fast, meta, x):
        logits = 9.0 * torch.nn.functional.one_hot(x[:, 0].long(), 3).double()
        place = {"all of them": slice(None), "one class": slice(2, 3), "the right one": slice(0, 1)}[spoilt]
        logits[:2, place] = math.nan
        return logits

    def loss(fast, meta, query):
        logits = predict(fast, meta, query.x)
        return fmeta.cross_entropy(logits, query.y).mean(), {"accuracy": fmeta.accuracy(logits, query.y).mean()}

    learner = Learner(None, lambda m, s, k: (), predict, loss, None, fmeta.unrolled(), "spoilt", "logits")
    y = torch.tensor([[0, 0, 1, 2]])
    examples = Examples(y[..., None].double(), y)
    found = fmeta.evaluate(learner, meta, Task(examples, examples), ways=3)
    assert {name: found.mean(name) for name in ("accuracy", "recall")} == {"accuracy": [0.5], "recall": [2 / 3]}
    assert fmeta.accuracy(predict((), meta, y.T.double()), y[0]).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_accuracy_refuses_what_would_be_compared_with_other_examples():
    with pytest.raises(fmeta.InputError, match=r"accuracy: labels of shape \[4, 1\] for 4 predictions"):
        fmeta.accuracy(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64))


def test_a_prediction_that_is_nan_is_wrong_and_spoils_the_calibration():
    """Also where argmax would point at the right class."""
    y = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    logits = torch.nn.functional.one_hot(y, 2).double()
    logits[0, 1, 0] = 2 * LARGE
    found = fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y), ways=2)
    assert found.values["recall"].tolist() == [[pytest.approx(0.75)], [1.0]]
    assert found.values["precision"].tolist() == [[pytest.approx(1.0)], [1.0]]
    assert math.isnan(found.calibration.error()[0])
    assert all(math.isnan(end) for end in found.calibration.interval()[0])


def test_the_calibration_of_a_single_task_has_no_interval():
    """Its resamples are all alike: an interval of no width would say that it is known."""
    logits, y, _ = random_query(6, tasks=1)
    found = fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y), ways=logits.shape[-1])
    with pytest.raises(fmeta.InputError, match="of 1 task; expected at least 2"):
        found.calibration.interval()
    error = found.calibration.error()
    assert found.summary()["calibration error"] == {"pooled": error, "interval95": None}


def test_calibration_is_torchmetrics_where_no_confidence_is_on_an_edge():
    logits, y, _ = random_query(5, tasks=40, spread=2.0)
    found = judge(logits[:, None], Examples((), y), 4).calibration.error()[0]
    probabilities = logits.softmax(-1).flatten(0, 1)
    reference = multiclass_calibration_error(probabilities, y.flatten(), num_classes=4, n_bins=15)
    assert found == pytest.approx(reference.item(), abs=1e-6)


def test_a_certain_prediction_is_in_the_last_bin():
    """Confidence 1, right half the time: the error is 1/2, of confidence 0.95 beside it 1/2 too and in the same bin."""
    y = torch.tensor([[0, 1]])
    certain = torch.tensor([[[100.0, -100.0], [100.0, -100.0]]], dtype=torch.float64)
    assert judge(certain[:, None], Examples((), y), 2).calibration.error() == [0.5]


def test_the_calibration_interval_is_that_of_resampled_tasks():
    """Against resampling by torch's own generator, task by task."""
    logits, y, weight = random_query(6, tasks=60, spread=2.0)
    calibration = judge(logits[:, None], Examples((), y, weight), 4).calibration
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        drawn = torch.randint(60, (60,), generator=generator)
        errors.append((calibration.gap[drawn].sum(0).abs().sum() / calibration.examples[drawn].sum()).item())
    cuts = statistics.quantiles(errors, n=40)
    low, high = calibration.interval()[0]
    width = cuts[-1] - cuts[0]
    assert abs(low - cuts[0]) < 0.1 * width
    assert abs(high - cuts[-1]) < 0.1 * width


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_learner_with_steps_is_judged_after_each(chunk):
    meta, tasks = ROW.learner.init(key(0)), labelled(key(3), tasks=5)
    found = fmeta.evaluate(ROW.learner, meta, tasks, steps=[0, 2], ways=3, chunk=chunk)
    assert set(found.values) == {"loss", "accuracy", "precision", "recall", "f1"}
    for column, k in enumerate((0, 2)):
        for i in range(5):
            support, query = (Examples(e.x[i], e.y[i]) for e in (tasks.support, tasks.query))
            fast = fmeta.trajectory(ROW.learner.inner, k)(meta, support, tasks.key[i])[-1]
            expected = figures(ROW.learner.predict(fast, meta, query.x), query.y, torch.ones(len(query.y)))
            row = [found.values[name][i, column].item() for name in ("precision", "recall", "f1")]
            assert row == pytest.approx(expected, abs=1e-6)
    assert not torch.equal(found.values["f1"][:, 0], found.values["f1"][:, 1])
    plain = fmeta.evaluate(ROW.learner, meta, tasks, steps=[0, 2])
    assert torch.allclose(plain.values["loss"], found.values["loss"], rtol=0, atol=1e-12)
    assert plain.calibration is None
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["calibration error"]["pooled"] == found.calibration.error()
    assert [len(ends) for ends in summary["calibration error"]["interval95"]] == [2, 2]


def test_what_is_no_classification_is_refused_by_name():
    meta, tasks = ROW.learner.init(key(0)), labelled(key(3), tasks=2)
    with pytest.raises(
        fmeta.InputError, match=r"evaluate\(ways=5\): maml predicts \[\d+, 3\]; expected .*\[example, 5\]"
    ):
        fmeta.evaluate(ROW.learner, meta, tasks, ways=5)
    with pytest.raises(fmeta.InputError, match=r"evaluate\(ways=0\)"):
        fmeta.evaluate(ROW.learner, meta, tasks, ways=0)
    logits, y, _ = random_query(0)
    with pytest.raises(fmeta.InputError, match=r"evaluate\(ways=4\): labels run from .* to 7"):
        fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, torch.full_like(y, 7)), ways=4)
    with pytest.raises(fmeta.InputError, match=r"evaluate\(ways=4\): labels are torch.float64"):
        fmeta.evaluate(speaking(), {"nothing": torch.zeros(1)}, said(logits, y.double()), ways=4)
    named = ROW.learner._replace(loss=lambda f, m, q: (ROW.learner.loss(f, m, q)[0], {"f1": torch.zeros(())}))
    with pytest.raises(fmeta.InputError, match=r"evaluate\(ways=3\): maml has a metric 'f1' of its own; rename it"):
        fmeta.evaluate(named, meta, tasks, ways=3)


def test_a_prediction_means_what_the_learner_says_and_not_what_its_name_says():
    learner, sample, _ = LEARNERS["relation"]
    meta, tasks = learner.init(key(1)), sample(key(2))
    renamed = learner._replace(name="x")
    first, second = (fmeta.evaluate(it, meta, tasks, ways=3) for it in (learner, renamed))
    assert first.calibration.error() == second.calibration.error()
    assert all(torch.equal(first.values[n], second.values[n]) for n in first.values)
    scores = torch.tensor([[0.2, 0.6, 0.0]])
    assert torch.equal(class_shares(renamed, scores), class_shares(learner, scores))
    torch.testing.assert_close(class_shares(learner, scores), torch.tensor([[0.25, 0.75, 0.0]]))
    assert torch.equal(class_shares(ROW.learner._replace(name="relation"), scores), scores.softmax(-1))


def test_the_confidence_of_scores_in_0_to_1_is_their_share():
    learner = speaking()._replace(output="probabilities")
    query = torch.tensor([[[0.2, 0.6]]], dtype=torch.float64)
    found = fmeta.evaluate(learner, learner.init(key(0)), said(query, torch.tensor([[1]])), ways=2)
    assert found.calibration.error() == pytest.approx([0.25])


def test_what_a_learner_predicts_follows_its_loss():
    outputs = {name: row.learner.output for name, row in LEARNERS.items()}
    assert outputs.pop("relation") == "probabilities"
    classes = {name for name, row in LEARNERS.items() if not row.tasks(key(0)).query.y.is_floating_point()}
    assert outputs == {name: "logits" if name in classes else "values" for name in outputs}
    told = fmeta.encoder_based("own", None, None, None, fmeta.mse, None, output="probabilities")
    assert told.output == "probabilities"
