"""`fit` around trainers of others: a memory in the state, several updates on a batch, tasks that are collected, and a
bare pair of init and step."""

import json
import logging

import pytest
import torch
from helpers import grouped, lines_of
from own_trainers import CAPACITY, LEARNER, OUTER, RECALLED, WAVES, collecting, remembering

import fmeta
from fmeta.core import fold, key
from fmeta.core.tree import named_leaves, tree_leaves
from fmeta.execution._memory import MemoryAdvice
from fmeta.training import _fit, load_meta
from fmeta.training._checkpoint import checkpoints
from fmeta.training._ranks import Ranks

TRAINERS = {"memory": remembering, "host": collecting}


def train(trainer, run_dir=None, iterations=12, sample=WAVES, **changes):
    given = {"key": key(3), "iterations": iterations, "meta_batch": 3, "log_every": 2, "save_every": 5}
    return fmeta.fit(trainer, sample, run_dir=run_dir, **grouped(**given | changes))


def same(a, b):
    return all(torch.equal(u, v) for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))


def close(a, b):
    for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True):
        torch.testing.assert_close(u, v, rtol=1e-9, atol=1e-11)


@pytest.fixture
def quick_compiler(monkeypatch):
    monkeypatch.setitem(fmeta.execution.compile.__kwdefaults__, "backend", "aot_eager")


def by_hand(trainer, steps):
    state = trainer.init(fold(key(3), "initialisation"))
    for k in range(steps):
        tasks = WAVES(fold(fold(key(3), "tasks"), k), 3)
        tasks = tasks if trainer.host is None else trainer.host(state, tasks)
        state, _ = trainer.build(trainer.phases[trainer.phase(k)], fmeta.core.eager)(state, tasks)
    return state


@pytest.mark.parametrize("kind", TRAINERS)
def test_it_equals_the_loop_by_hand(kind):
    state = train(TRAINERS[kind]())
    close(state, by_hand(TRAINERS[kind](), 12))
    assert int(state.step) == 12


def test_the_memory_is_used_and_filled():
    state = train(remembering())
    assert int(state.seen) == 36
    assert named_leaves(state)["memory.query.y"].abs().amin((1, 2)).shape == (CAPACITY,)
    assert not same(state.meta, train(fmeta.trainer(LEARNER, OUTER)).meta)


def test_the_tasks_are_those_of_the_host():
    assert not same(train(collecting()).meta, train(fmeta.trainer(LEARNER, OUTER)).meta)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("cut", [3, 7])
def test_cut_off_and_resumed_it_ends_with_the_same_bits_and_lines(tmp_path, kind, cut):
    def strikes(step, values):
        if step == cut + cut % 2:
            raise KeyboardInterrupt

    whole = train(TRAINERS[kind](), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(TRAINERS[kind](), tmp_path / "cut", loggers=[strikes])
    resumed = train(TRAINERS[kind](), tmp_path / "cut", resume=True)
    assert same(whole, resumed)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("scope", ["whole", "step", pytest.param("auto", marks=pytest.mark.thorough)])
def test_compiled_equals_eager(quick_compiler, kind, scope):
    close(train(TRAINERS[kind](), iterations=3, scope=scope), train(TRAINERS[kind](), iterations=3))


@pytest.mark.parametrize("kind", TRAINERS)
def test_phases(kind):
    phases = {0: fmeta.first_order(), 4: None}
    state = train(TRAINERS[kind](phases))
    close(state, by_hand(TRAINERS[kind](phases), 12))
    assert not same(state.meta, train(TRAINERS[kind]()).meta)


def spoiled(only=None, at=None):
    """Tasks of which one is not finite: in every batch, or in that of one step."""

    def sample(k, count):
        tasks = WAVES(k, count)
        bad = torch.arange(count) == only
        if at is not None:
            bad = bad & (k == fold(fold(key(3), "tasks"), at))
        y = tasks.support.y + torch.where(bad, torch.nan, 0.0)[:, None, None]
        return tasks._replace(support=tasks.support._replace(y=y))

    return sample


@pytest.mark.parametrize("kind", TRAINERS)
def test_tasks_that_are_not_finite_are_left_out(kind):
    seen = []
    trainer = TRAINERS[kind](fmeta.skipping())
    state = train(trainer, sample=spoiled(only=1), iterations=2, log_every=1, loggers=[lambda _, v: seen.append(v)])
    assert int(state.step) == 2
    assert all(line["skipped"] >= 1 for line in seen)
    assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(state.meta))


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_that_is_not_finite_is_withheld_and_the_state_before_it_kept(tmp_path, kind):
    with pytest.raises(fmeta.NonFiniteError, match=r"fit\((remembering|collecting)\).*not finite at step 5"):
        train(TRAINERS[kind](), tmp_path, sample=spoiled(only=0, at=5), log_every=10, save_every=10)
    ((step, _),) = checkpoints(tmp_path / "checkpoints")
    assert step == 5
    assert same(train(TRAINERS[kind](), tmp_path, resume=True), train(TRAINERS[kind]()))


def test_a_memory_of_another_size_is_refused(tmp_path):
    train(remembering(), tmp_path, iterations=2)
    with pytest.raises(fmeta.InputError, match=r"load_checkpoint.*the first memory\."):
        train(remembering(capacity=CAPACITY + 1), tmp_path, resume=True)


def test_meta_parameters_are_read_back_whatever_the_trainer(tmp_path):
    state = train(remembering(), tmp_path, iterations=2)
    path = tmp_path / "checkpoints" / "00000002"
    assert same(load_meta(path, LEARNER.init(key(9))), state.meta)
    wider = fmeta.models.mlp([1, 7, 1], torch.tanh, torch.float64)
    with pytest.raises(fmeta.InputError, match=r"load_checkpoint.*differ.*same learner and model"):
        load_meta(path, wider.init(key(0)))


def test_floating_point_operations_of_recalled_tasks_are_counted():
    def per_step(trainer):
        seen = []
        train(trainer, iterations=1, loggers=[lambda _, values: seen.append(values)])
        return 3 * seen[0]["time/flop_per_second"] / seen[0]["time/tasks_per_second"]

    plain = per_step(fmeta.trainer(LEARNER, OUTER))
    assert per_step(remembering()) == pytest.approx(2 * plain * (3 + RECALLED) / 3, rel=1e-6)
    assert per_step(collecting()) == pytest.approx(plain, rel=1e-6)


def test_where_memory_ends_the_whole_step_is_estimated():
    trainer = remembering()
    state, tasks = trainer.init(key(0)), WAVES(key(1), 4)
    advice = MemoryAdvice(trainer.name, trainer.learner, trainer.build, torch.device("cpu"))
    with (
        pytest.raises(fmeta.OutOfMemoryError, match=r"fit\(remembering\).*4 tasks.*needs.*first_order\(\)"),
        advice(trainer.phases[0], state, tasks),
    ):
        raise MemoryError


# ---- tasks from several sources ----------------------------------------------------------------


def others(k, count):
    return WAVES(fold(k, 99), count)


@pytest.mark.parametrize("cut", [None, 3, 8])
def test_sources_of_tasks_may_change_on_the_way(tmp_path, cut):
    trainer = fmeta.trainer(LEARNER, OUTER)
    sample = {5: others, 0: WAVES}
    if cut:
        train(trainer, tmp_path, iterations=cut, sample=sample)
    found = train(trainer, tmp_path, sample=sample, resume=True)
    state = trainer.init(fold(key(3), "initialisation"))
    for k in range(12):
        state, _ = trainer.step(state, (others if k >= 5 else WAVES)(fold(fold(key(3), "tasks"), k), 3))
    close(found, state)


@pytest.mark.parametrize("keys", [[], [5], [0, -1], [0, 2.5]], ids=str)
def test_sources_that_do_not_begin_at_0_are_refused(keys):
    with pytest.raises(fmeta.InputError, match=r"fit\(sample=a mapping\).*first meta-step of each source"):
        train(fmeta.trainer(LEARNER, OUTER), sample=dict.fromkeys(keys, WAVES))


def test_a_later_source_that_does_not_fit_is_told_before_the_first_step():
    seen = []

    def wrong(k, count):
        return WAVES(k, count)._replace(key=torch.zeros(count))

    with pytest.raises(fmeta.InputError, match=r"fit\(sample=…\): tasks\.key"):
        train(
            fmeta.trainer(LEARNER, OUTER), sample={0: WAVES, 8: wrong}, log_every=1, loggers=[lambda *v: seen.append(v)]
        )
    assert not seen


# ---- bare trainers -----------------------------------------------------------------------------


PLAIN = fmeta.trainer(LEARNER, OUTER)


def bare(step=None):
    return fmeta.Trainer(PLAIN.init, step or (lambda state, tasks: PLAIN.step(state, tasks)))


def test_a_pair_of_init_and_step_trains_and_is_told_what_it_does_without(tmp_path):
    with pytest.warns(UserWarning, match=r"fit\(trainer\): a trainer of init and step alone") as told:
        state = train(bare(), tmp_path, iterations=6)
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="alone"):
        resumed = train(bare(), tmp_path, resume=True)
    assert not same(state, resumed)
    assert same(resumed, train(PLAIN))
    assert "flop" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_bare_trainer_is_compiled_as_one_graph(quick_compiler):
    with pytest.warns(UserWarning, match="alone"):
        close(train(bare(), iterations=3, scope="whole"), train(PLAIN, iterations=3))
    with pytest.warns(UserWarning, match="alone"), pytest.raises(fmeta.InputError, match="scope='step'"):
        train(bare(), iterations=3, scope="step")
    with pytest.warns(UserWarning, match="alone"):
        close(train(bare(PLAIN.step), iterations=3, scope="step"), train(PLAIN, iterations=3))


def test_a_bare_trainer_is_refused_on_several_processes(monkeypatch):
    monkeypatch.setattr(_fit.Ranks, "present", staticmethod(lambda: Ranks(0, 2)))
    with pytest.raises(fmeta.InputError, match=r"2 processes.*no `build`"):
        train(bare())


def test_a_step_that_does_not_count_is_refused():
    def step(state, tasks):
        new, info = PLAIN.step(state, tasks)
        return new._replace(step=state.step), info

    with pytest.warns(UserWarning, match="alone"), pytest.raises(fmeta.InputError, match="whose step adds one"):
        train(bare(step), iterations=3)


@pytest.mark.parametrize("odd", [{"meta": 1}, ("a",), None])
def test_a_state_that_cannot_be_trained_is_refused(tmp_path, odd):
    trainer = bare()._replace(init=lambda key: odd)
    with pytest.warns(UserWarning, match="alone"), pytest.raises(fmeta.InputError, match="init gives a"):
        train(trainer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["phases", "build"])
def test_phases_without_build_and_the_other_way_round_are_refused(missing):
    with pytest.raises(fmeta.InputError, match=f"has no {missing}"):
        train(PLAIN._replace(**{missing: {} if missing == "phases" else None}))


# ---- the two forms of the call -----------------------------------------------------------------


def test_the_short_form_makes_the_trainer():
    given = {"key": key(3), "iterations": 5, "meta_batch": 3}
    short = fmeta.fit(LEARNER, OUTER, WAVES, gradient=fmeta.first_order(), **given)
    assert same(short, fmeta.fit(fmeta.trainer(LEARNER, OUTER, fmeta.first_order()), WAVES, **given))


@pytest.mark.parametrize(
    ("what", "more", "message"),
    [
        ((PLAIN, WAVES), {"gradient": fmeta.first_order()}, r"fit\(maml, gradient=…\): a Trainer has its own"),
        ((LEARNER, WAVES), {}, r"fit\(Learner, .*\): expected fit\(trainer, sample, …\)"),
        ((), {}, r"fit\(\): expected"),
        ((PLAIN, 3), {}, "sample is a int"),
        ((LEARNER, 0.1, WAVES), {}, "optimizer is a float"),
    ],
)
def test_a_call_of_neither_form_is_refused(what, more, message):
    with pytest.raises(fmeta.InputError, match=message):
        fmeta.fit(*what, key=key(0), iterations=1, meta_batch=1, **more)


def test_an_eager_run_never_says_that_it_compiles(caplog):
    with caplog.at_level(logging.INFO, "fmeta"):
        train(remembering(), iterations=2)
    assert not any("compil" in message for message in caplog.messages)


def test_facts_go_into_every_checkpoint_and_may_not_be_fits_own(tmp_path):
    train(PLAIN, tmp_path, iterations=2, facts={"recipe": "ab12"})
    ((_, facts),) = checkpoints(tmp_path / "checkpoints")
    assert (facts["recipe"], facts["meta_batch"], facts["key"]) == ("ab12", 3, int(key(3)))
    with pytest.raises(fmeta.InputError, match=r"Saving\(facts=…\): key: fit's own"):
        train(PLAIN, facts={"key": 1})
    assert json.loads((tmp_path / "checkpoints" / "00000002" / "checkpoint.json").read_text())["recipe"] == "ab12"
