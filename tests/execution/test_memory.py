"""`peak_memory`: bytes alive at once, found without computing. The advice where memory ends is in `test_faults.py`."""

import pytest
import torch
from helpers import labelled, regressor, vectors

import fmeta
from fmeta.core import key
from fmeta.execution._memory import MemoryAdvice, group_memory


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
