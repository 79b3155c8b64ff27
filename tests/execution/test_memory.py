"""`peak_memory`: bytes alive at once, found without computing. The advice where memory ends is in `test_faults.py`."""

import pytest
import torch
from helpers import labelled, regressor, vectors

import fmeta
from fmeta.core import key
from fmeta.execution import _memory
from fmeta.execution._memory import MemoryAdvice, check_room, check_work, group_memory, running_out

CPU = torch.device("cpu")


def test_it_is_what_is_alive_at_once():
    def function(x):
        a = x + 1  # 1
        b = a * 2  # 2
        del a  # 1
        c = torch.cat([b, b])  # 3
        del b  # 2
        return c.view(-1)[:5] * 1.0  # and five numbers

    x = torch.zeros(1000, dtype=torch.float64)
    assert fmeta.peak_memory(function, x) == 3 * 8000


def test_views_and_updates_in_place_take_none():
    def function(x):
        a = x + 1
        a.add_(1)
        return a.view(10, 100).T[3]

    assert fmeta.peak_memory(function, torch.zeros(1000)) == 4000


def test_nothing_is_computed_however_large():
    with torch.device("meta"):
        x = torch.empty(1 << 20, 1 << 20)
    assert fmeta.peak_memory(lambda t: (t @ t).sum(), x) >= 4 << 40


@pytest.mark.parametrize("count", [3, 7])
def test_a_meta_gradient_takes_memory_by_the_task(count):
    learner = fmeta.maml(regressor(width=64), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=3)
    meta = learner.init(key(0))

    def peak(tasks):
        return fmeta.peak_memory(fmeta.meta_grad(learner), meta, vectors(key(1), tasks))

    two, four = peak(2), peak(4)
    assert peak(count) == pytest.approx(two + (count - 2) * (four - two) / 2, rel=0.02)


def test_the_adjoint_needs_less_than_unrolling():
    learner = fmeta.maml(regressor(width=64), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=10)
    meta, tasks = learner.init(key(0)), vectors(key(1), 4, shots=200)
    ways = [fmeta.meta_grad(learner, way) for way in (fmeta.unrolled(), fmeta.adjoint())]
    unrolled, adjoint = (fmeta.peak_memory(way, meta, tasks) for way in ways)
    assert unrolled > 3 * adjoint


def test_convolutions_are_counted_too():
    """Activations of Conv4, and what is proportional to them, are most of it: twice the channels, twice the bytes."""
    pictures = fmeta.tasks.class_data({name: torch.rand(4, 1, 28, 28) for name in "abc"})
    drawn = fmeta.tasks.episodes(pictures, ways=3, shots=1, query=1)(key(0), 8)

    def peak(width):
        model = fmeta.models.conv4(3, width=width)
        learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)
        return fmeta.peak_memory(fmeta.meta_grad(learner), model.init(key(1)), drawn)

    assert 1.6 < peak(16) / peak(8) < 2.6


def test_other_errors_pass():
    learner = fmeta.protonet(fmeta.models.mlp([2, 4]), ways=3)
    with (
        pytest.raises(RuntimeError, match=r"^shape$"),
        MemoryAdvice("a", learner, None, torch.device("cpu"))(None, {}, labelled(key(0))),
    ):
        raise RuntimeError("shape")


def test_what_does_not_fit_is_refused_before_it_is_begun(monkeypatch):
    begun = []

    def work(count):
        begun.append(isinstance(torch.ones(1), torch._subclasses.FakeTensor))
        return torch.ones(count, dtype=torch.float64)

    monkeypatch.setattr(_memory, "free_memory", lambda device: 1 << 30)
    check_room("f(count=134217728)", "the ones", "lower count", CPU, work, 1 << 27)
    message = r"^f\(count=134217729\): the ones would need about 1 GiB, and about 1 GiB are free; lower count$"
    with pytest.raises(fmeta.OutOfMemoryError, match=message):
        check_room("f(count=134217729)", "the ones", "lower count", CPU, work, (1 << 27) + 1)
    assert begun == [True, True]


def test_what_cannot_be_estimated_passes(monkeypatch, caplog):
    """A function that looks at values; an operation that fails; a system that does not say what is free."""
    monkeypatch.setattr(_memory, "free_memory", lambda device: 0)
    check_room("f()", "it", "", CPU, lambda: torch.ones(1 << 40)[torch.zeros(()).int().item()])
    check_room("f()", "it", "", CPU, lambda: torch.ones(1 << 62, 1 << 62))
    monkeypatch.setattr(_memory, "free_memory", lambda device: None)
    check_room("f()", "it", "", CPU, lambda: torch.ones(1 << 40))
    assert not caplog.records


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(1 << 62, 1 << 62),
        lambda: torch.empty(1 << 58, dtype=torch.uint8),
        lambda: torch.zeros(3) * 10**400,
        lambda: bytearray(1 << 62),
    ],
)
def test_where_memory_ends_for_all_that_it_is_said(work):
    with (
        pytest.raises(fmeta.OutOfMemoryError, match=r"^f\(n=9\): out of memory for it; lower n$"),
        running_out("f(n=9)", "it", "lower n"),
    ):
        work()
    with pytest.raises(RuntimeError, match=r"^shape$"), running_out("f(n=9)", "it", "lower n"):
        raise RuntimeError("shape")


@pytest.mark.parametrize(("side", "estimates"), [(4, 0), (2000, 1)])
def test_only_work_that_may_be_large_is_estimated(monkeypatch, side, estimates):
    calls = counted(monkeypatch)
    monkeypatch.setattr(_memory, "free_memory", lambda device: 16 << 30)
    check_work("f()", "it", "", lambda meta, tasks: meta @ meta, torch.ones(side, side), vectors(key(1), 25))
    assert len(calls) == estimates


def counted(monkeypatch):
    """What is estimated from here on."""
    calls, peak = [], _memory.peak_memory
    monkeypatch.setattr(_memory, "peak_memory", lambda f, *args: calls.append(f) or peak(f, *args))
    return calls


@pytest.mark.parametrize(("compiled", "share", "fits"), [(False, 0.9, False), (True, 0.9, True), (True, 0.2, False)])
def test_a_meta_step_is_estimated_before_the_first_of_each_meta_gradient(monkeypatch, compiled, share, fits):
    """What is compiled needs less than its estimate, so it is given up later."""
    trainer = fmeta.trainer(
        fmeta.maml(regressor(width=64), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3), fmeta.sgd(0.1)
    )
    state, tasks, ways = trainer.init(key(0)), vectors(key(1), 4, shots=200), (fmeta.adjoint(), fmeta.first_order())
    needed = fmeta.peak_memory(trainer.build(ways[0], fmeta.core.eager), state, tasks)
    calls = counted(monkeypatch)
    monkeypatch.setattr(_memory, "free_memory", lambda device: int(share * needed))
    advice = MemoryAdvice("maml", trainer.learner, trainer.build, CPU, compiled=compiled)
    if fits:
        for way in (*ways, *ways):
            with advice(way, state, tasks):
                pass
        assert len(calls) == 2
        return
    message = r"^fit\(maml\): no room on cpu for 4 tasks in a meta-step; about .* free.* this one needs .*chunked\("
    with pytest.raises(fmeta.OutOfMemoryError, match=message), advice(ways[0], state, tasks):
        raise AssertionError("it was begun")


def test_a_group_of_processes_has_its_cache_of_files_to_spare(tmp_path):
    """Files as in /sys/fs/cgroup of Linux."""
    assert group_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert group_memory(tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 500\nfile 400\ninactive_file 300\nactive_file 50\nshmem 50\n")
    assert group_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert group_memory(tmp_path) is None
