"""Comparisons are paired, and their intervals hold what they promise."""

import json
import math
import statistics

import pytest
import torch
from helpers import F64, LEARNERS, vectors

import fmeta
from fmeta import Evaluation
from fmeta.core import fold, key, normal
from fmeta.evaluation._intervals import bootstrap_means, percentiles95, t_interval

MAML = LEARNERS["maml"].learner
TASKS = vectors(key(1), tasks=9)


def measured(values, name="accuracy", steps=(1,), fingerprint="0" * 12):
    """An evaluation with these values `[task, step]`."""
    table = torch.as_tensor(values, dtype=F64).reshape(-1, len(steps))
    return Evaluation(steps, {name: table}, {"task list": fingerprint})


def evaluated(seed, tasks=TASKS, steps=(0, 3)):
    return fmeta.evaluate(MAML, MAML.init(key(seed)), tasks, steps=steps)


def test_the_difference_is_taken_task_by_task():
    a, b = evaluated(0), evaluated(1)
    found = fmeta.compare(a, b, "loss")
    expected = a.values["loss"][:, 1] - b.values["loss"][:, 1]
    assert torch.equal(found.differences, expected)
    assert found.mean == pytest.approx(expected.mean().item(), abs=1e-15)
    assert found.interval[0] < found.mean < found.interval[1]
    assert found.won == (expected < 0).double().mean().item()  # the lower loss
    assert found.lost == (expected > 0).double().mean().item()
    assert found.steps == (3, 3)
    assert torch.equal(fmeta.compare(a, b, "loss", 0).differences, a.values["loss"][:, 0] - b.values["loss"][:, 0])


def test_shares_by_hand():
    """One of four tasks won, two tied; with lower as better it is lost."""
    a, b = measured([1.0, 0.5, 0.5, 0.2]), measured([0.9, 0.5, 0.5, 0.3])
    found = fmeta.compare(a, b, "accuracy")
    assert (found.won, found.lost, found.tied, found.better) == (0.25, 0.25, 0.5, "higher")
    a = measured([1.0, 0.5, 0.5, 0.5])
    found = fmeta.compare(a, b, "accuracy", better="lower")
    assert (found.won, found.lost, found.tied) == (0.0, 0.5, 0.5)
    found = fmeta.compare(measured([math.nan, 1.0, 0.5, 0.3]), b, "accuracy")  # NaN is neither
    assert (found.won, found.lost, found.tied) == (0.25, 0.0, 0.5)
    assert math.isnan(found.mean)
    assert all(math.isnan(end) for end in found.interval)


def test_a_comparison_turned_round_is_the_same_with_the_sign_turned():
    a, b = evaluated(0), evaluated(1)
    there, back = fmeta.compare(a, b, "loss"), fmeta.compare(b, a, "loss")
    assert there.mean == -back.mean
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-12)
    assert (there.won, there.lost, there.tied) == (back.lost, back.won, back.tied)


def test_the_same_run_twice_differs_by_nothing():
    found = fmeta.compare(evaluated(0), evaluated(0), "loss")
    assert (found.mean, found.interval, found.tied) == (0.0, (0.0, 0.0), 1.0)


def test_what_makes_tasks_hard_for_both_cancels():
    """The tasks differ by 100, the learners by 1 ± 0.1: paired that is sure, unpaired it is not."""
    hardness = 100 * normal(key(0), (50,), F64)
    a, b = measured(hardness + 1 + 0.1 * normal(key(1), (50,), F64)), measured(hardness)
    assert a.interval("accuracy")[0] > 10
    low, high = fmeta.compare(a, b, "accuracy").interval
    assert 0.9 < low < 1 < high < 1.1


def test_the_interval_covers_the_truth_95_times_in_100():
    """200 draws of 40 normal differences with mean 0.3; three binomial standard deviations are 9 of 200."""
    zero, covered = measured(torch.zeros(40)), 0
    for draw in range(200):
        a = measured(0.3 + normal(fold(key(2), draw), (40,), F64))
        low, high = fmeta.compare(a, zero, "accuracy", key=fold(key(3), draw)).interval
        covered += low <= 0.3 <= high
    assert 178 <= covered <= 199


def test_bootstrap_means_are_those_of_draws_with_replacement():
    """Mean and spread over resamples are the sample's own mean and sd/√n, columns are resampled alike."""
    values = normal(key(4), (30, 2, 3), F64)
    means = bootstrap_means(values, key(5))
    assert means.shape == (10_000, 2, 3)
    spread = values.std(0, correction=0) / math.sqrt(30)
    assert ((means.mean(0) - values.mean(0)).abs() < 4 * spread / 100).all()
    assert ((means.std(0) / spread - 1).abs() < 0.04).all()
    assert torch.allclose(means[:, 1, 2], bootstrap_means(values[:, 1, 2], key(5)), rtol=0, atol=1e-12)
    assert not torch.equal(means, bootstrap_means(values, key(6)))


def test_many_tasks_are_resampled_in_blocks():
    """Blocks of draws differ, and no resample is missing."""
    values = torch.arange(2.0**11, dtype=F64)
    means = bootstrap_means(values, key(7), resamples=2000)
    assert means.shape == (2000,)
    assert means.unique().numel() > 1900
    low, high = percentiles95(means).tolist()
    expected = 1.96 * values.std().item() / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)


def test_t_intervals_are_the_textbooks():
    """97.5% points of Student's t by degrees of freedom, from its tables."""
    points = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 30: 2.042, 120: 1.980}
    for freedom, point in points.items():
        values = [float(v) for v in range(freedom + 1)]
        half = t_interval(values)
        assert half * math.sqrt(freedom + 1) / statistics.stdev(values) == pytest.approx(point, abs=5e-4)
    assert math.isnan(t_interval([1.0]))
    assert math.isnan(t_interval([1.0, math.inf]))


def test_the_fingerprint_is_that_of_the_tasks():
    """The same for another learner, chunk or number of steps; another for one changed number, weight or key."""
    first = evaluated(0).protocol["task list"]
    assert evaluated(1, steps=(0,)).protocol["task list"] == first
    changed = TASKS.query.x.clone()
    changed[3, 2, 0] += 1e-9
    others = [
        TASKS._replace(query=TASKS.query._replace(x=changed)),
        TASKS._replace(query=TASKS.query._replace(weight=torch.ones(TASKS.query.x.shape[:2], dtype=F64))),
        TASKS._replace(key=TASKS.key + 1),
        vectors(key(1), tasks=8),
    ]
    assert len({first, *(evaluated(0, tasks).protocol["task list"] for tasks in others)}) == 5


def test_a_summary_is_plain_json():
    found = fmeta.compare(evaluated(0), evaluated(1), "loss")
    summary = json.loads(json.dumps(found.summary()))
    assert summary["interval95"] == list(found.interval)
    assert summary["steps"] == [3, 3]
    assert summary["won"] + summary["lost"] + summary["tied"] == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused_by_name():
    a, b = evaluated(0), evaluated(0, vectors(key(2), tasks=9))
    lists = [e.protocol["task list"] for e in (a, b)]
    with pytest.raises(fmeta.InputError, match=f"task list {lists[0]}, the second on {lists[1]}; expected the same"):
        fmeta.compare(a, b, "loss")
    with pytest.raises(fmeta.InputError, match=r"compare: .*expected the same tasks"):
        fmeta.compare(a._replace(protocol={}), a._replace(protocol={}), "loss")
    with pytest.raises(fmeta.InputError, match=r"compare\(metric='los'\): not in the first.*did you mean 'loss'"):
        fmeta.compare(a, a, "los")
    with pytest.raises(fmeta.InputError, match=r"compare\(step=2\): the first evaluation has 2 measured steps"):
        fmeta.compare(a, a, "loss", 2)
