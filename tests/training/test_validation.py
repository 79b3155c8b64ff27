"""Validation at intervals, the best checkpoint by any figure, early stopping, and what a run tells."""

import json
import math

import pytest
import torch
from helpers import grouped, lines_of

import fmeta
from fmeta.core import key
from fmeta.core.tree import tree_leaves
from fmeta.training._checkpoint import best_checkpoint, checkpoints

LEARNER = fmeta.maml(fmeta.models.mlp([1, 8, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
SINUSOID = fmeta.tasks.sinusoid(shots=4, query=4)


def train(run_dir=None, iterations=40, learner=LEARNER, **changes):
    given = {"key": key(3), "iterations": iterations, "meta_batch": 3, "log_every": 10, "save_every": 20}
    return fmeta.fit(learner, fmeta.adam(0.01), SINUSOID, run_dir=run_dir, **grouped(**given | changes))


def figures(*values, name="accuracy"):
    told = iter(values)
    return lambda meta: {name: next(told), "loss": 1.0}


def kept(run):
    return [step for step, _ in checkpoints(run / "checkpoints")]


def same(a, b):
    return all(torch.equal(u, v) for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))


def test_validation_has_an_interval_of_its_own(tmp_path):
    train(tmp_path, validate=figures(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), validate_every=7, monitor="accuracy", mode="max")
    found = {line["step"]: line["validation/accuracy"] for line in lines_of(tmp_path) if "validation/accuracy" in line}
    assert found == {7: 0.1, 14: 0.2, 21: 0.3, 28: 0.4, 35: 0.5, 40: 0.6}
    assert [line["step"] for line in lines_of(tmp_path)] == [7, 10, 14, 20, 21, 28, 30, 35, 40]


@pytest.mark.parametrize(("mode", "best"), [("max", 21), ("min", 14)])
def test_the_best_checkpoint_is_kept_though_no_save_was_due(tmp_path, mode, best):
    values = (0.5, 0.2, 0.9, 0.7, 0.4, 0.3)
    train(tmp_path, validate=figures(*values), validate_every=7, monitor="accuracy", mode=mode)
    assert kept(tmp_path) == [best, 40]
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) == best
    facts = dict(checkpoints(tmp_path / "checkpoints"))[best]
    assert facts["validation"]["accuracy"] == values[best // 7 - 1]


def test_training_stops_when_nothing_gets_better(tmp_path):
    with pytest.warns(UserWarning, match=r"fit\(monitor='error'\): this validation gives nan"):
        state = train(
            tmp_path, validate=figures(3.0, 1.0, 2.0, math.nan, 1.0, name="error"), validate_every=5, mode="min",
            monitor="error", patience=3,
        )  # fmt: skip
    assert int(state.step) == 25
    assert kept(tmp_path) == [10, 25]  # and nothing after it was lost
    again = train(tmp_path, resume=True, validate=figures(), validate_every=5, monitor="error", mode="min", patience=3)
    assert same(again, state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_said_and_never_the_best(tmp_path, value):
    with pytest.warns(UserWarning, match=rf"monitor='accuracy'\): this validation gives {value}.*another figure"):
        train(tmp_path, validate=figures(value, value), monitor="accuracy")
    assert kept(tmp_path) == [40]
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) is None


def test_patience_survives_an_interruption(tmp_path):
    values = (3.0, 1.0, 2.0, 2.0, 2.0)
    options = {"validate_every": 5, "monitor": "accuracy", "mode": "min", "patience": 3, "save_every": 5}
    whole = train(tmp_path / "whole", validate=figures(*values), **options)
    train(tmp_path / "cut", iterations=20, validate=figures(*values[:4]), **options)
    resumed = train(tmp_path / "cut", resume=True, validate=figures(*values[4:]), **options)
    assert same(resumed, whole)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_without_patience_training_never_stops():
    assert int(train(validate=figures(1.0, 2.0, 3.0, 4.0), validate_every=10, monitor="accuracy").step) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "acuracy", "validate": figures(1.0)}, "no such figure.*accuracy"),
        ({"mode": "best", "validate": figures(1.0)}, "expected 'min', 'max'"),
        ({"patience": -1, "validate": figures(1.0)}, r"Validation\(patience=-1\): expected a whole number, at least 0"),
        ({"patience": 2.5, "validate": figures(1.0)}, r"Validation\(patience=2.5\): expected a whole number"),
        ({"validate": 3}, r"Validation\(figures=3\): expected a function of the meta-parameters"),
        ({"validate_every": 0, "validate": figures(1.0)}, r"Validation\(every=0\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(fmeta.InputError, match=message):
        train(iterations=20, **options)


def test_a_line_says_where_the_time_went(tmp_path):
    train(tmp_path, validate=lambda meta: 1.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = ("time/sampling", "time/step", "time/validation", "time/checkpoint")
    for line in lines:
        assert 0.97 < sum(line.get(name, 0.0) for name in shares) < 1.001
        assert line["time/tasks_per_second"] > 0
    assert "time/validation" in lines[1]  # at 20
    assert "time/checkpoint" in lines[2]  # what it took at 20
    assert lines[-1]["time/seconds"] > lines[0]["time/seconds"]


def test_floating_point_operations_are_counted():
    """A first-order step on a net of one 3x5 layer, 4 support and 6 query rows: products of the forward pass and the
    weight's gradient, on either set; the inputs need none."""
    model = fmeta.models.mlp([3, 5])
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)

    def sample(k, count):
        x = fmeta.core.normal(k, (count, 10, 3))
        y = fmeta.core.normal(fmeta.fold(k, 1), (count, 10, 5))
        part = lambda a, b: fmeta.Examples(x[:, a:b], y[:, a:b])  # noqa: E731
        return fmeta.Task(part(0, 4), part(4, 10), fmeta.split(k, count))

    seen = []
    fmeta.fit(
        learner, fmeta.sgd(0.1), sample, key=key(0), iterations=2, meta_batch=7, gradient=fmeta.first_order(),
        logging=fmeta.Logging(loggers=[lambda _, values: seen.append(values)]),
    )  # fmt: skip
    operations = seen[0]["time/flop_per_second"] / seen[0]["time/tasks_per_second"]
    assert operations == pytest.approx(2 * 2 * 3 * 5 * (4 + 6), rel=1e-6)


def test_the_gradient_norm_is_that_of_the_meta_gradient():
    seen = []
    train(iterations=1, loggers=[lambda _, values: seen.append(values)])
    trainer = fmeta.trainer(LEARNER, fmeta.sgd(1.0))
    state = trainer.init(fmeta.fold(key(3), "initialisation"))
    tasks = SINUSOID(fmeta.fold(fmeta.fold(key(3), "tasks"), 0), 3)
    grads, _ = fmeta.meta_grad(LEARNER)(state.meta, tasks)
    norm = torch.cat([leaf.reshape(-1) for leaf in tree_leaves(grads)]).norm()
    assert seen[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_learned_rates_are_told():
    learner = fmeta.meta_sgd(fmeta.models.mlp([1, 8, 1]), fmeta.mse, lr=0.02, steps=1)
    seen = []
    state = train(learner=learner, loggers=[lambda _, values: seen.append(values)])
    rates = torch.cat([leaf.reshape(-1) for leaf in tree_leaves(state.meta.lr)])
    assert seen[-1]["lr/min"] == float(rates.min()) < seen[-1]["lr/mean"] < seen[-1]["lr/max"] == float(rates.max())
    plain = []
    train(iterations=1, loggers=[lambda _, values: plain.append(values)])
    assert not any(name.startswith("lr/") for name in plain[0])


def test_ctrl_c_in_a_validation_costs_no_validation(tmp_path):
    """Uninterrupted it stops at 40; so does a run whose second validation was broken off."""
    options = {"iterations": 100, "validate_every": 10, "patience": 3, "save_every": 50}
    whole = train(tmp_path / "whole", validate=lambda meta: 1.0, **options)
    calls = []

    def interrupted(meta):
        calls.append(meta)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", validate=interrupted, **options)
    resumed = train(tmp_path / "cut", resume=True, validate=interrupted, **options)
    assert int(whole.step) == int(resumed.step) == 40
    assert same(whole, resumed)
    told = [
        [line["step"] for line in lines_of(tmp_path / run) if "validation/loss" in line] for run in ("whole", "cut")
    ]
    assert told[0] == told[1] == [10, 20, 30, 40]


@pytest.mark.parametrize("where", ["validation", "logger"])
def test_an_error_of_the_callers_own_loses_no_steps(tmp_path, where):
    def broken(*_):
        raise ZeroDivisionError

    options = {"validation": {"validate": broken}, "logger": {"loggers": [broken]}}[where]
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, log_every=20, **options)
    assert kept(tmp_path) == [19 if where == "validation" else 20]
    assert same(train(tmp_path, resume=True, log_every=20), train(log_every=20))


def test_a_start_that_failed_at_once_leaves_the_folder_free(tmp_path):
    with pytest.raises(fmeta.InputError, match="no such figure"):
        train(tmp_path, iterations=1, validate=lambda meta: {"accuracy": 1.0})
    assert int(train(tmp_path, iterations=1, validate=lambda meta: 1.0).step) == 1


def test_resumed_by_another_figure_the_best_by_that_one_is_kept(tmp_path):
    """Every checkpoint keeps all figures of its validation, so it can be judged by any."""
    told = iter([{"accuracy": 0.2, "loss": 3.0}, {"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.8, "loss": 2.0}])
    train(tmp_path, 30, save_every=10, validate=lambda meta: next(told), monitor="accuracy", mode="max")
    assert kept(tmp_path) == [20, 30]
    losses = iter([1.5, 1.2, 1.1, 1.3])
    options = {"save_every": 10, "validate": lambda meta: next(losses), "patience": 4}
    train(tmp_path, 60, resume=True, **options)
    assert kept(tmp_path) == [20, 60]
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) == 20
    assert int(train(tmp_path, 100, resume=True, **options).step) == 70  # four in a row, none better than at 20


def test_resumed_without_validation_the_best_is_kept(tmp_path):
    train(tmp_path, 30, save_every=10, validate=figures(0.5, 0.9, 0.7), monitor="accuracy", mode="max")
    train(tmp_path, 40, save_every=10, resume=True)
    assert kept(tmp_path) == [20, 40]
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) == 20


def test_scores_of_another_figure_are_not_compared(tmp_path):
    train(tmp_path, iterations=30, save_every=10, validate=figures(0.5, 0.9, 0.7), monitor="accuracy", mode="max")
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) == 20
    losses = iter([0.3, 0.1, 0.2])
    train(tmp_path, iterations=60, save_every=10, resume=True, validate=lambda meta: next(losses))
    assert best_checkpoint(checkpoints(tmp_path / "checkpoints")) == 50
