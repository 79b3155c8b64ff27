"""Checkpoints: every bit comes back, nothing is pickled, a crash costs nothing older, and damage is named."""

import hashlib
import json
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

import fmeta
from fmeta.core import InputError, key
from fmeta.core.tree import named_leaves, tree_leaves, tree_map, tree_structure
from fmeta.runs._load import read_chosen
from fmeta.training import load_checkpoint, load_meta, save_checkpoint
from fmeta.training._checkpoint import checkpoints, prune, read_checkpoint


class Pair(NamedTuple):
    left: object
    right: object


def state_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 5e-324, 1e308], dtype=torch.float64)
    return {
        "params": {
            "hidden1.weight": torch.randn(3, 2, generator=generator),
            "bias": torch.randn(3, generator=generator).double(),
        },
        "nested": (Pair(odd, [torch.tensor(7), torch.tensor(2**62 + 1)]), ({"deep": torch.arange(4)},), ()),
        "transposed": torch.randn(4, 3, generator=generator).T,
        "half": torch.randn(5, generator=generator).bfloat16(),
        "none": torch.zeros(0, 3),
    }


def _bits(tree):
    return [(leaf.dtype, tuple(leaf.shape), bytes(leaf.contiguous().untyped_storage())) for leaf in tree_leaves(tree)]


def _train_state(width=4, seed=0, outer=None):
    model = fmeta.models.mlp([1, width, 1])
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    return fmeta.trainer(learner, outer or fmeta.adam(1e-3)).init(key(seed))


def test_round_trip_gives_every_bit_dtype_and_the_nesting_back(tmp_path):
    state = state_of()
    path = save_checkpoint(tmp_path, state, 12)
    back = load_checkpoint(path, tree_map(torch.zeros_like, state))
    assert _bits(back) == _bits(state)
    assert tree_structure(back) == tree_structure(state)
    assert isinstance(back["nested"][0], Pair)


def test_round_trip_of_a_training_state(tmp_path):
    state, other = _train_state(seed=1), _train_state(seed=2)
    assert _bits(state) != _bits(other)
    back = load_checkpoint(save_checkpoint(tmp_path, state, 0), other)
    assert _bits(back) == _bits(state)
    assert isinstance(back, fmeta.TrainState)


def test_load_leaves_the_state_it_is_shaped_like_alone(tmp_path):
    like = _train_state(seed=2)
    before = _bits(like)
    load_checkpoint(save_checkpoint(tmp_path, _train_state(seed=1), 0), like)
    assert _bits(like) == before


@pytest.mark.parametrize("overlap", ["rows", "slice", "twice"])
def test_leaves_that_share_memory_are_saved_too(tmp_path, overlap):
    """A learner may start two parameters from one tensor; Ctrl-C before the first step saves them as they are."""
    base = torch.arange(6.0).reshape(2, 3)
    other = {"rows": base[1], "slice": base[0, :2], "twice": base[0]}[overlap]
    state = {"a": base[0], "b": other}
    back = load_checkpoint(save_checkpoint(tmp_path, state, 0), tree_map(torch.zeros_like, state))
    assert torch.equal(back["a"], state["a"])
    assert torch.equal(back["b"], state["b"])


def test_a_checkpoint_is_one_safetensors_and_one_json_file_and_nothing_is_pickled(tmp_path):
    path = save_checkpoint(tmp_path, state_of(), 3, validation=0.5)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["checkpoint.json", "state.safetensors"]
    facts = json.loads((path / "checkpoint.json").read_text())
    assert (facts["step"], facts["validation"], len(facts["sha256"])) == (3, 0.5, 64)
    content = (path / "state.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])  # the format: a length, a JSON header, raw numbers
    assert "params.hidden1.weight" in header
    assert header["nested.0.right.1"]["dtype"] == "I64"
    assert max(h["data_offsets"][1] for h in header.values()) == len(content) - 8 - length


def test_checkpoints_are_listed_oldest_first_with_their_facts(tmp_path):
    for step in (30, 4, 100):
        save_checkpoint(tmp_path, state_of(), step, validation=float(step))
    assert [(s, facts["validation"]) for s, facts in checkpoints(tmp_path)] == [(4, 4.0), (30, 30.0), (100, 100.0)]
    assert checkpoints(tmp_path / "nothing") == []


@pytest.mark.parametrize(("function", "call"), [("rename", 1), ("fsync", 1), ("fsync", 2)])
def test_a_crash_while_writing_leaves_older_checkpoints_and_no_half_one(tmp_path, monkeypatch, function, call):
    """call: the write breaks off at the publishing rename, at the tensors, or at the facts."""
    old = state_of(1)
    path = save_checkpoint(tmp_path, old, 1)
    real, calls = getattr(os, function), []

    def breaks(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError("no space left")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, breaks)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, state_of(2), 2)
    monkeypatch.undo()
    assert [step for step, _ in checkpoints(tmp_path)] == [1]
    assert _bits(load_checkpoint(path, old)) == _bits(old)
    new = state_of(2)
    again = save_checkpoint(tmp_path, new, 2)  # what the crash left is no obstacle
    assert _bits(load_checkpoint(again, old)) == _bits(new)
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 2]


def test_a_crash_while_the_same_step_is_saved_again_keeps_the_first_one(tmp_path, monkeypatch):
    """Ctrl-C right after a save writes the same step once more; if that breaks off, the run must still be there."""
    state = state_of()
    save_checkpoint(tmp_path, state, 5)

    def breaks(*args, **kwargs):
        raise OSError("killed")

    monkeypatch.setattr(os, "rename", breaks)
    with pytest.raises(OSError, match="killed"):
        save_checkpoint(tmp_path, state, 5)
    monkeypatch.undo()
    assert [step for step, _ in checkpoints(tmp_path)] == [5]
    assert _bits(load_checkpoint(tmp_path / "00000005", state)) == _bits(state)


def test_saving_the_same_step_again_replaces_it(tmp_path):
    first, second = state_of(1), state_of(2)
    save_checkpoint(tmp_path, first, 5, validation=1.0)
    path = save_checkpoint(tmp_path, second, 5, validation=2.0)
    assert _bits(load_checkpoint(path, first)) == _bits(second)
    assert [facts["validation"] for _, facts in checkpoints(tmp_path)] == [2.0]


def test_who_reads_while_a_run_saves_and_prunes_always_finds_a_whole_checkpoint(tmp_path):
    state, steps, folder = state_of(), 300, tmp_path / "checkpoints"

    def write():
        for step in range(1, steps + 1):
            save_checkpoint(folder, state, step, validation={"loss": 1.0}, monitor="min loss")
            prune(folder, keep={step})

    save_checkpoint(folder, state, 0, validation={"loss": 1.0}, monitor="min loss")
    seen = {0}
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not writer.done():
            found = checkpoints(folder)
            assert found
            assert all(facts["step"] == step for step, facts in found)
            assert _bits(read_chosen(tmp_path, "last", lambda path: load_checkpoint(path, state))) == _bits(state)
            read_chosen(tmp_path, "best", read_checkpoint)
            seen.add(found[-1][0])
        writer.result()
    assert len(seen) > 5  # both went on side by side


def test_a_chosen_checkpoint_that_a_run_replaces_is_chosen_anew_and_a_damaged_one_is_not(tmp_path):
    state, folder, asked = state_of(), tmp_path / "checkpoints", []
    save_checkpoint(folder, state, 1)

    def read(path):
        asked.append(path.name)
        if len(asked) == 1:
            save_checkpoint(folder, state, 2)
            prune(folder, keep={2})
        return load_checkpoint(path, state)

    assert _bits(read_chosen(tmp_path, "last", read)) == _bits(state)
    assert asked == ["00000001", "00000002"]
    with pytest.raises(InputError, match="not in"):
        read_chosen(tmp_path, "1", read)
    _flip(folder / "00000002" / "state.safetensors")
    with pytest.raises(InputError, match="damaged"):
        read_chosen(tmp_path, "last", read)
    assert asked[2:] == ["00000002"]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGE = {
    "truncated tensors": lambda p: (p / "state.safetensors").write_bytes((p / "state.safetensors").read_bytes()[:-7]),
    "empty tensors": lambda p: (p / "state.safetensors").write_bytes(b""),
    "a flipped bit": lambda p: _flip(p / "state.safetensors"),
    "no tensors": lambda p: (p / "state.safetensors").unlink(),
    "no json": lambda p: (p / "checkpoint.json").unlink(),
    "half a json": lambda p: (p / "checkpoint.json").write_text('{"step": 1, "sha'),
    "bytes for json": lambda p: (p / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
    "a bit of the facts": lambda p: (p / "checkpoint.json").write_bytes(
        (p / "checkpoint.json").read_bytes().replace(b'"torch": "2', b'"torch": "3')
    ),
    "a json list": lambda p: (p / "checkpoint.json").write_text("[1]"),
    "no checksum": lambda p: (p / "checkpoint.json").write_text('{"step": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_input_error_with_the_path_and_the_cure(tmp_path, damage):
    state = _train_state()
    save_checkpoint(tmp_path, state, 1)
    path = save_checkpoint(tmp_path, state, 2)
    DAMAGE[damage](path)
    with pytest.raises(fmeta.InputError) as caught:
        load_checkpoint(path, state)
    message = str(caught.value)
    assert message.startswith(f"load_checkpoint({path}): damaged")
    assert f"remove {path}" in message
    assert _bits(load_checkpoint(tmp_path / "00000001", state)) == _bits(state)


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/00000009", "run/checkpoints/00000003/x"])
@pytest.mark.parametrize("read", [load_checkpoint, load_meta])
def test_what_holds_checkpoints_is_not_called_damaged(tmp_path, given, read):
    """Nobody is told to remove a whole run: the newest whole checkpoint is named."""
    for step in (1, 3, 8):
        path = save_checkpoint(tmp_path / "run" / "checkpoints", _train_state(), step)
    DAMAGE["half a json"](path)
    with pytest.raises(fmeta.InputError) as caught:
        read(tmp_path / given, _train_state())
    message = str(caught.value)
    assert message.startswith(f"load_checkpoint({tmp_path / given}): ")
    newest = tmp_path / "run" / "checkpoints" / "00000003"
    assert f"expected one of the 2 in {newest.parent}; give {newest}, the newest" in message
    assert "damaged" not in message
    assert "remove" not in message


def test_what_holds_no_checkpoint_is_not_called_damaged(tmp_path):
    for path, message in ((tmp_path, "holds no checkpoint"), (tmp_path / "run", "no such folder")):
        with pytest.raises(fmeta.InputError, match=rf"{message}; expected .* such as RUN/checkpoints/00002500$"):
            load_checkpoint(path, _train_state())


def test_a_checkpoint_without_its_files_is_damaged(tmp_path):
    path = save_checkpoint(tmp_path, _train_state(), 2)
    for file in path.iterdir():
        file.unlink()
    with pytest.raises(fmeta.InputError, match=rf"damaged: .*remove {path}"):
        load_checkpoint(path, _train_state())


def test_a_checkpoint_of_another_version_is_not_called_damaged(tmp_path):
    path = save_checkpoint(tmp_path, _train_state(), 2)
    facts = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(facts | {"format": 1}))
    with pytest.raises(
        fmeta.InputError, match="another version of fmeta: its format is 1, and this fmeta reads 2"
    ) as caught:
        load_checkpoint(path, _train_state())
    assert "remove" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
@pytest.mark.parametrize("closed", ["", "checkpoint.json", "state.safetensors"])
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, closed):
    path = save_checkpoint(tmp_path / "run", _train_state(), 2)
    (path / closed).chmod(0)
    user = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents) if user == 0 else ():
        folder.chmod(folder.stat().st_mode | 0o5)
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(fmeta.InputError, match=r"Permission denied.*allow it") as caught:
            load_checkpoint(path, _train_state())
    finally:
        os.seteuid(user)
        (path / closed).chmod(0o700)
    assert "remove" not in str(caught.value)


def test_a_damaged_file_whose_checksum_was_fitted_is_still_an_input_error(tmp_path):
    state = _train_state()
    path = save_checkpoint(tmp_path, state, 1)
    (path / "state.safetensors").write_bytes(b"not a tensor in sight")
    facts = {"step": 1, "sha256": hashlib.sha256(b"not a tensor in sight").hexdigest()}
    (path / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(fmeta.InputError, match="damaged"):
        load_checkpoint(path, state)


@pytest.mark.parametrize("damage", ["no json", "half a json", "bytes for json", "a bit of the facts", "a json list"])
def test_a_damaged_checkpoint_is_listed_with_no_facts(tmp_path, damage):
    """`fit` and the command line look facts up in what is listed."""
    path = save_checkpoint(tmp_path, state_of(), 1)
    DAMAGE[damage](path)
    assert checkpoints(tmp_path) == [(1, {})]


def test_facts_come_back_as_json_has_them(tmp_path):
    facts = {"window": {9: {"loss": 0.1}, 10: {"loss": float("inf")}}, "pair": (1, None)}
    path = save_checkpoint(tmp_path, state_of(), 1, **facts)
    ((_, found),) = checkpoints(tmp_path)
    assert found["window"] == {"9": {"loss": 0.1}, "10": {"loss": float("inf")}}
    assert found["pair"] == [1, None]
    load_checkpoint(path, state_of())


def test_what_is_no_checkpoint_is_neither_listed_nor_removed(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state_of(), step)
    others = [tmp_path / name for name in (".tmp", "3", "notes.old", "x", "00000004.tmp")]
    for folder in others:
        folder.mkdir()
    (tmp_path / "x.tmp").write_text("of the user")
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 2, 3]
    prune(tmp_path, keep={3})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"00000003", ".tmp", "3", "notes.old", "x", "x.tmp"}  # 00000004.tmp is half a checkpoint


def test_a_link_to_a_checkpoint_is_one_and_a_link_to_nothing_is_none(tmp_path):
    state, folder = state_of(), tmp_path / "checkpoints"
    moved = save_checkpoint(tmp_path / "elsewhere", state, 2)
    save_checkpoint(folder, state, 1)
    (folder / "00000002").symlink_to(moved)
    (folder / "00000003").symlink_to(tmp_path / "nowhere")
    assert [step for step, _ in checkpoints(folder)] == [1, 2]
    assert _bits(read_chosen(tmp_path, "last", lambda path: load_checkpoint(path, state))) == _bits(state)
    prune(folder, keep={1})
    assert [step for step, _ in checkpoints(folder)] == [1]
    assert _bits(load_checkpoint(moved, state)) == _bits(state)  # the link is gone, not what it named
    save_checkpoint(folder, state, 2)


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(fmeta.InputError, match="00000009"):
        load_checkpoint(tmp_path / "00000009", _train_state())


OTHERS = {
    "width": lambda: _train_state(width=6),
    "dtype": lambda: tree_map(lambda t: t.double() if t.is_floating_point() else t, _train_state()),
    "optimizer": lambda: _train_state(outer=fmeta.sgd(0.1)),
    "structure": lambda: {"elsewhere": torch.zeros(1)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_state_is_refused_by_a_tensor_that_differs(tmp_path, other):
    saved, asked = _train_state(), OTHERS[other]()
    path = save_checkpoint(tmp_path, saved, 1)
    with pytest.raises(fmeta.InputError, match="same learner, model and optimizer") as caught:
        load_checkpoint(path, asked)
    assert str(caught.value).startswith(f"load_checkpoint({path}): ")
    name = re.search(r"the first ([\w.]+)", str(caught.value)).group(1).rstrip(".")
    one, two = (named_leaves(state).get(name) for state in (saved, asked))
    assert one is not None or two is not None
    assert one is None or two is None or (one.shape, one.dtype) != (two.shape, two.dtype)
