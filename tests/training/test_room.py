"""`fit` and `evaluate` refuse what does not fit before it is begun; small runs are not looked at more than twice."""

import pytest
import torch

import fmeta
from fmeta.core import key
from fmeta.execution import _memory
from fmeta.training import _fit

LEARNER = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
HUGE = fmeta.maml(fmeta.models.mlp([1, 100_000, 100_000, 1]), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
WAVES, LONG = fmeta.tasks.sinusoid(), fmeta.tasks.sinusoid(shots=10**9)
FREE = 8 << 30


@pytest.fixture
def calls(monkeypatch):
    """What is estimated, on a machine with 8 GiB to spare."""
    found, peak = [], _memory.peak_memory
    monkeypatch.setattr(_memory, "peak_memory", lambda f, *args: found.append(f) or peak(f, *args))
    monkeypatch.setattr(_memory, "free_memory", lambda device: FREE)
    return found


def train(learner=LEARNER, sample=WAVES, **given):
    given = {"key": key(0), "iterations": 2, "meta_batch": 3, **given}
    return fmeta.fit(learner, fmeta.adam(1e-3), sample, **given)


def too_long(key, count):
    """No estimate is made of it."""
    return fmeta.tasks.sinusoid(shots=10**17)(key, count)


TASKS = r"fit\(meta_batch=3\): the tasks of a meta-step would need about .* or the examples of a task"
REFUSED = {
    "network": ({"learner": HUGE}, r"fit\(maml\): the network and its optimizer would need about .*a smaller network"),
    "shots": ({"sample": LONG}, TASKS),
    "query": ({"sample": fmeta.tasks.sinusoid(query=10**9)}, TASKS),
    "later source": ({"sample": {0: WAVES, 1: LONG}}, TASKS),
    "meta_batch": ({"meta_batch": 10**8}, r"fit\(meta_batch=100000000\): .* 8 GiB are free; lower meta_batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_no_folder(calls, tmp_path, name):
    given, message = REFUSED[name]
    with pytest.raises(fmeta.OutOfMemoryError, match=message):
        train(**given, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_could_not_be_estimated_is_said_where_memory_ends(calls):
    with pytest.raises(
        fmeta.OutOfMemoryError, match=r"fit\(meta_batch=3\): out of memory for the tasks of a meta-step"
    ):
        train(sample=too_long)


def test_a_step_that_does_not_fit_is_refused(calls, monkeypatch):
    monkeypatch.setattr(_memory, "free_memory", lambda device: 200 << 20)
    learner = fmeta.maml(fmeta.models.mlp([1, 256, 1]), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
    with pytest.raises(fmeta.OutOfMemoryError, match=r"fit\(maml\): no room on cpu for 8 tasks .* adjoint\(\) .*GiB"):
        train(learner, fmeta.tasks.sinusoid(shots=10_000, query=10_000), meta_batch=8)


@pytest.mark.parametrize("scope", ["none", "whole"])
def test_a_compiled_step_is_given_up_later(calls, monkeypatch, scope):
    """At what eager code needs and more, but not at much more."""
    told = []

    class Advice(_memory.MemoryAdvice):
        def _look_ahead(self, gradient, state, tasks):
            told.append(self.compiled)
            raise KeyboardInterrupt  # before it is compiled

    monkeypatch.setattr(_fit, "MemoryAdvice", Advice)
    with pytest.raises(KeyboardInterrupt):
        train(scope=scope)
    assert told == [scope != "none"]


def test_a_small_run_is_looked_at_twice_however_long_it_is(calls):
    for iterations in (2, 30):
        calls.clear()
        train(iterations=iterations)
        assert len(calls) == 2  # the initial state, and the tasks of a step


def test_a_source_that_may_draw_from_elsewhere_is_not_asked_for_an_estimate(calls):
    asked = []

    def sample(key, count):
        asked.append(isinstance(key, torch._subclasses.FakeTensor))
        return fmeta.tasks.sinusoid()(key, count)

    train(sample=sample)
    assert not any(asked)
    assert len(calls) == 1


def test_evaluate_estimates_a_chunk_that_may_be_large(calls, monkeypatch):
    tasks = WAVES(key(1), 20)
    fmeta.evaluate(LEARNER, LEARNER.init(key(0)), tasks)
    assert not calls
    wide = fmeta.maml(fmeta.models.mlp([1, 512, 512, 1]), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
    monkeypatch.setattr(_memory, "free_memory", lambda device: 30 << 20)
    with pytest.raises(fmeta.OutOfMemoryError, match=r"evaluate\(chunk=100\): adapting .*; lower chunk"):
        fmeta.evaluate(wide, wide.init(key(0)), tasks)
    fmeta.evaluate(wide, wide.init(key(0)), tasks, chunk=2)
    assert len(calls) == 2
