"""Several processes with one meta-batch compute what one process computes, and hold the same bits."""

import os
import subprocess
import sys

import on_ranks
import pytest
import torch
from helpers import F64, lines_of
from on_ranks import train

import fmeta
from fmeta.core import PartialSampler, key
from fmeta.core.tree import tree_leaves
from fmeta.training import _ranks
from fmeta.training._batches import Batches
from fmeta.training._ranks import Ranks


def group_of(count, folder):
    """What each of `count` processes in one group found."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, on_ranks.__file__, str(folder)],
            env=shared | {"RANK": str(rank), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    for process in processes:
        output = process.communicate(timeout=400)[0]
        assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def assert_close(one, two):
    for a, b in zip(one, two, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: its folder and final state."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, tree_leaves(train(run_dir=folder))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two ranks: their folder and what they found."""
    folder = tmp_path_factory.mktemp("two")
    train(run_dir=folder / "half", iterations=3)
    return folder, group_of(2, folder)


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_end_where_one_process_ends(alone, two, tmp_path, count):
    """Five tasks over two or three ranks, float64; parameters, Adam's state, counts."""
    folder, found = two if count == 2 else (tmp_path, group_of(3, tmp_path))
    assert_close(found[0]["kept"], alone[1])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0]["kept"], other["kept"], strict=True))
    for ours, theirs in zip(lines_of(folder / "ranks"), lines_of(alone[0]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)


def test_a_run_goes_on_with_another_number_of_ranks(alone, two):
    folder, found = two
    assert_close(found[1]["resumed"], alone[1])
    assert [line["step"] for line in lines_of(folder / "half")] == [2, 3, 4, 6]


def test_compiled_ranks_equal_eager_ones(alone, two):
    assert_close(two[1][1]["whole"], alone[1])


@pytest.mark.parametrize("bad_tasks", [(0,), (0, 1), (1, 4)], ids=["one", "all of rank 0", "one of each"])
def test_skipped_tasks_are_left_out_of_the_mean_over_ranks(two, bad_tasks):
    (found, told), (other, silent) = (result["skipped", bad_tasks] for result in two[1])
    assert_close(found, tree_leaves(train(bad_tasks=bad_tasks, gradient=fmeta.skipping())))
    assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    assert [skipped for skipped, _ in told] == [len(bad_tasks) * steps for steps in (2, 1, 1, 2)]
    assert silent == []


@pytest.mark.parametrize("name", on_ranks.OWN)
def test_trainers_with_a_memory_or_tasks_of_their_own_end_where_one_process_ends(two, name):
    """The memory sees all tasks on every rank, and is the same on all."""
    found = [result[name] for result in two[1]]
    assert_close(found[0], tree_leaves(on_ranks.own(on_ranks.OWN[name]())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_early_stopping_is_decided_for_all(two):
    assert [result["stopped"] for result in two[1]] == [8, 8]


def test_a_call_that_differs_is_refused_before_anyone_waits(two):
    for result in two[1]:
        assert "rank 1 was called with other" in result["other call"]


def test_what_rank_0_refuses_ends_all_with_its_reason(two):
    names, reasons = zip(*(result["refused"] for result in two[1]), strict=True)
    assert names == ("InputError", "OtherRankError")
    assert "already holds a run" in reasons[0]
    assert reasons[1] == f"rank 0: {reasons[0]}"


def test_where_another_rank_fails_rank_0_does_too(two):
    assert [result["failed"] for result in two[1]] == [
        ("OtherRankError", "rank 1: no data on this node"),
        ("AssertionError", "no data on this node"),
    ]


def test_ranks_that_differ_stop(two):
    for result in two[1]:
        assert "at step 2 the state of rank 1 differs from that of rank 0" in result["differ"]


def test_one_process_is_a_group_of_its_own():
    alone = Ranks.present()
    assert (alone.rank, alone.count, alone.part(3)) == (0, 1, range(3))
    alone.check_same({"w": torch.ones(2)}, 0)
    assert alone.agree(True, torch.zeros((), dtype=torch.int64)) is True


@pytest.mark.parametrize(("tasks", "count"), [(5, 2), (7, 3), (4, 4), (64, 5)])
def test_every_task_is_of_exactly_one_rank(tasks, count):
    parts = [Ranks(rank, count).part(tasks) for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(tasks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_fewer_tasks_than_ranks_are_refused():
    with pytest.raises(fmeta.InputError, match="3 processes; expected at least one task for each"):
        Ranks(0, 3).part(2)


@pytest.mark.parametrize("has_part", [True, False])
def test_a_rank_draws_its_part_of_the_batch(has_part):
    waves = fmeta.tasks.sinusoid(shots=2, query=3)
    sample = waves if has_part else lambda k, count: waves(k, count)
    assert isinstance(sample, PartialSampler) == has_part
    whole, part = Batches({0: waves}, key(1), 6, 0, range(6)), Batches({0: sample}, key(1), 6, 0, range(2, 5))
    for _ in range(3):
        for a, b in zip(tree_leaves(whole.draw()), tree_leaves(part.draw()), strict=True):
            assert torch.equal(a[2:5], b)


def test_a_fingerprint_sees_every_bit_and_its_place():
    state = {"a": torch.arange(5, dtype=torch.float32), "b": torch.tensor(True), "c": torch.zeros(2, 3, dtype=F64)}
    base = _ranks.fingerprint(state)
    assert torch.equal(base, _ranks.fingerprint({n: t.clone() for n, t in state.items()}))
    flipped = [("a", state["a"].roll(1)), ("b", torch.tensor(False)), ("c", -state["c"])]
    for name, value in flipped:
        assert not torch.equal(base, _ranks.fingerprint(state | {name: value}))
    assert not torch.equal(_ranks.fingerprint([state["a"], state["c"]]), _ranks.fingerprint([state["c"], state["a"]]))
