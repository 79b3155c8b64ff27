"""Checkpoints: one folder of safetensors and JSON, published by one rename, read without pickle.

run/checkpoints/00002500/state.safetensors    every tensor of the state, by name
                         checkpoint.json      format, step, validation figures, the SHA-256 of the tensors and of these
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fmeta.core import InputError, Tree
from fmeta.core.tree import named_leaves, replace_leaves
from fmeta.training._validation import score_of

_TENSORS, _FACTS, _SEAL = "state.safetensors", "checkpoint.json", "sha256 of these facts"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading damaged facts can raise
_FORMAT = 2  # grows when an older fmeta could no longer read what is written


class _OtherFormatError(ValueError):
    """A checkpoint of another version of fmeta."""


def save_checkpoint(folder: str | Path, state: Tree, step: int, **facts: Any) -> Path:
    """Writes `folder/<step>`, all or nothing: a crash leaves the older checkpoints as they were."""
    folder = Path(folder)
    final = folder / f"{step:08d}"
    fresh = folder / f"{step:08d}.tmp"
    _remove(fresh)
    fresh.mkdir(parents=True)
    # clones, because safetensors refuses leaves that share memory
    content = save({name: leaf.detach().cpu().contiguous().clone() for name, leaf in named_leaves(state).items()})
    checksum = hashlib.sha256(content).hexdigest()
    facts = {"format": _FORMAT, "step": step, "sha256": checksum, "torch": str(torch.__version__), **facts}
    try:
        _write(fresh / _TENSORS, content)
        _write(fresh / _FACTS, sealed(facts))
    except OSError:  # such as a full disk: what is half written would only keep it full
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    replaced = folder / f"{step:08d}.old"
    if final.exists():  # the same step again: set the old one aside until the new one stands
        os.rename(final, replaced)
    os.rename(fresh, final)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def load_checkpoint(path: str | Path, like: Tree) -> Tree:
    """The state in a checkpoint, on the devices and in the structure of `like`.

    `path` is the folder of one checkpoint: `RUN/checkpoints/00002500`.

    Raises InputError if it is none, if a file is missing or damaged, or holds another state than `like`.
    """
    return _like(Path(path), read_checkpoint(Path(path)), like, "learner, model and optimizer")


def load_meta(path: str | Path, like: Tree) -> Tree:
    """The meta-parameters alone, of a checkpoint of whatever trainer, on the devices and in the structure of `like`.

    Raises InputError as `load_checkpoint` does.
    """
    tensors = read_checkpoint(Path(path))
    meta = {meta_name(name): t for name, t in tensors.items() if is_meta(name)}
    return _like(Path(path), meta, like, "learner and model")


def is_meta(name: str) -> bool:
    """Whether a tensor of a checkpoint is one of the meta-parameters."""
    return name == "meta" or name.startswith("meta.")


def meta_name(name: str) -> str:
    """Its name among these; "" where meta is one bare tensor."""
    return name.removeprefix("meta").removeprefix(".")


def _like(path: Path, tensors: Mapping[str, Tensor], like: Tree, same: str) -> Tree:
    wanted = named_leaves(like)
    differ = sorted(
        set(wanted.keys() ^ tensors.keys())
        | {n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape}
        | {n for n in wanted.keys() & tensors.keys() if wanted[n].dtype != tensors[n].dtype}
    )
    if differ:
        raise InputError(
            f"load_checkpoint({path}): {len(differ)} tensors differ from the state asked for, the first {differ[0]}; "
            f"expected a checkpoint of the same {same}"
        )
    return replace_leaves(like, {n: tensors[n].to(wanted[n].device) for n in wanted})


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Every tensor of the state in a checkpoint, by name, on the CPU.

    Raises InputError for what is no checkpoint (naming one below it, if there is one), or if a file is missing,
    damaged, of another version, or closed to the reader.
    """
    cure = f"remove {path} to fall back on an older checkpoint"
    try:
        if not (_is_step(path.name) and path.is_dir()) and not any((path / n).exists() for n in (_FACTS, _TENSORS)):
            raise InputError(f"load_checkpoint({path}): {_no_checkpoint(path)}")
        facts = _facts(path)
        content = (path / _TENSORS).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError(f"the checksum of {_TENSORS} differs from the recorded one")
        return load(content)
    except InputError:
        raise
    except _OtherFormatError as error:
        raise InputError(
            f"load_checkpoint({path}): of another version of fmeta: {error}; expected one of this; load it by that"
        ) from error
    except PermissionError as error:
        raise InputError(f"load_checkpoint({path}): {error}; expected files that may be read; allow it") from error
    except (*_DAMAGE, SafetensorError) as error:
        raise InputError(f"load_checkpoint({path}): damaged: {error}; expected a whole checkpoint; {cure}") from error


def _no_checkpoint(path: Path) -> str:
    """What a path is that is none, and which one may have been meant."""
    for folder, what in (
        (path, "it holds checkpoints and is none"),
        (path / "checkpoints", "the folder of a run, not of a checkpoint"),
        (path.parent, "no such checkpoint"),
        (path.parent.parent, "a file, or what else is no checkpoint"),
    ):
        whole = [step for step, facts in checkpoints(folder) if facts]
        if whole:
            newest = folder / f"{whole[-1]:08d}"
            return f"{what}; expected one of the {len(whole)} in {folder}; give {newest}, the newest"
    what = "holds no checkpoint" if path.is_dir() else "no such folder"
    return f"{what}; expected the folder of a checkpoint, such as RUN/checkpoints/00002500"


def checkpoints(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """The published checkpoints in a folder, oldest first: step and facts (empty where the file is damaged)."""
    before, paths = None, _published(folder)
    while before != paths:  # a run that trains there may replace one between a look and the next
        found = [(int(path.name), _facts_if_whole(path)) for path in paths]
        before, paths = paths, _published(folder)
    return found


def best_checkpoint(saved: Sequence[tuple[int, dict[str, Any]]]) -> int | None:
    """Of what `checkpoints` found, the step of the best validation by the figure that the last one was judged by.

    None where none is finite.
    """
    found = [(step, facts) for step, facts in saved if {"validation", "monitor"} <= facts.keys()]
    scored = [(score_of(found[-1][1]["monitor"], facts["validation"]), step) for step, facts in found]
    return min(((score, step) for score, step in scored if score < math.inf), default=(0.0, None))[1]


def mend(folder: Path) -> None:
    """Brings a checkpoint back that was being replaced when its writer was killed. For the one process that writes."""
    for path in _published(folder, ".old"):
        if not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))


def prune(folder: Path, keep: set[int]) -> None:
    """Removes every other checkpoint, and what a crash left half written."""
    kept = {f"{step:08d}" for step in keep}
    for path in _published(folder, ".tmp", ".old"):
        _remove(path)
    for path in _published(folder):
        if path.name not in kept:
            with contextlib.suppress(PermissionError):  # where what is being read must stay: the next time then
                _remove(path.rename(path.with_suffix(".tmp")))  # renamed: who reads it finds it whole or gone


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _published(folder: Path, *suffixes: str) -> list[Path]:
    """The folders that `save_checkpoint` makes, and no others, in the order of their steps; all seen in one look."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _may_be_folder(entry)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    found = [p for p in found if p.suffix in (suffixes or ("",))]
    return sorted((path for path in found if _is_step(path.stem)), key=lambda path: int(path.stem))


def _is_step(name: str) -> bool:
    """Whether a folder is called as `save_checkpoint` calls it."""
    return name.isdecimal() and name == f"{int(name):08d}"


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """False for a file or a link to nothing; true for what has gone since it was listed."""
    return entry.is_dir() if entry.is_symlink() else not entry.is_file()


def sealed(facts: Mapping[str, Any]) -> bytes:
    """checkpoint.json with a checksum over its own facts."""
    plain = json.loads(json.dumps(facts))  # as it will be read: numbers as keys become texts, for one
    return json.dumps({**plain, _SEAL: _checksum(plain)}, indent=1).encode()


def _facts_if_whole(path: Path) -> dict[str, Any]:
    try:
        return _facts(path)
    except _DAMAGE:
        return {}


def _facts(path: Path) -> dict[str, Any]:
    """Raises one of `_DAMAGE`."""
    facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
    if facts["format"] != _FORMAT:
        raise _OtherFormatError(f"its format is {facts['format']!r}, and this fmeta reads {_FORMAT}")
    if facts.pop(_SEAL) != _checksum(facts):
        raise ValueError(f"the checksum of {_FACTS} differs from the recorded one")
    return facts


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
