"""The folder of a run: metrics.jsonl, the checkpoints, and where its recipe stands, by one process at a time."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import BaseFileLock, FileLock, Timeout

from fmeta._version import __version__
from fmeta.core import InputError
from fmeta.core._checks import check_counts
from fmeta.operators._choices import choices, prefer
from fmeta.training._checkpoint import best_checkpoint, checkpoints, load_checkpoint, mend, prune, save_checkpoint
from fmeta.training._trainer import State

_FORMAT = 2  # of recipe.json
# what a start puts into the folder, the lock last
_MADE = ("tensorboard", "checkpoints", "metrics.jsonl", "choices.json", "recipe.json", ".lock")
_OURS = {"format", "step", "sha256", "torch", "key", "meta_batch", "validation", "monitor", "best", "since", "window"}


class SaveError(RuntimeError):
    """A run could not be written down, because the disk is full for example. What was whole before still is."""


class Saving(NamedTuple):
    """How often `fit` takes a checkpoint, what its `checkpoint.json` says beside `fit`'s own facts, and where the
    recipe of the run stands, for who opens it later (kept in `recipe.json`, unless that is there).

    fmeta.fit(..., run_dir="runs/a", saving=fmeta.Saving(every=500, facts={"data": "2026-11"}))
    """

    every: int = 1000  # meta-steps
    facts: Mapping[str, Any] = {}  # what JSON can hold
    recipe: str | None = None  # "module:object" or "path/file.py:object"

    def check(self) -> None:
        """Raises InputError for an interval below 1, and for names that are `fit`'s own."""
        check_counts("Saving", every=self.every)
        taken = sorted(_OURS & self.facts.keys())
        if taken:
            raise InputError(f"Saving(facts=…): {', '.join(taken)}: fit's own; expected other names")


@contextlib.contextmanager
def claimed(run_dir: str | Path, resume: bool) -> Iterator[None]:
    """Holds the folder of a run, a new one or, with `resume`, one that is there; its lock ends with the process.

    A start that fails before anything was kept takes away what it put there.

    Raises InputError where the folder holds a run already (or, with `resume`, is not there), where it is the folder
    of a run's checkpoints, where another process holds it, or where it cannot be written.
    """
    folder = Path(run_dir)
    if checkpoints(folder):
        raise InputError(
            f"fit(run_dir={str(run_dir)!r}): it holds the checkpoints of a run; expected the folder of a run; give "
            f"{folder.parent} to go on with it (resume=True, --resume), or another folder"
        )
    if resume and not folder.is_dir():
        raise InputError(f"fit(run_dir={str(run_dir)!r}, resume=True): no such folder; expected the folder of a run")
    _check_new(folder, resume)
    absent = [name for name in (*_MADE, ".") if not (folder / name).exists()]
    lock = lock_of(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"fit(run_dir={str(run_dir)!r}): another process is training in this folder; expected one process to a "
            "run; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"fit(run_dir={str(run_dir)!r}): {error}; expected a folder that can be written") from error
    try:
        mend(folder / "checkpoints")
        _check_new(folder, resume)  # again: another may have been faster
        try:
            yield
        except Exception as error:
            if not isinstance(error, SaveError) and not _holds_run(folder):
                _take_away(folder, absent)
            raise
    finally:
        lock.release()


def _take_away(folder: Path, names: Iterable[str]) -> None:
    """These of what a start makes, and the folder itself, where nothing else is in it."""
    for name in names:
        path = folder / name
        with contextlib.suppress(OSError):
            if name == "tensorboard":
                shutil.rmtree(path)
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def lock_of(folder: Path) -> BaseFileLock:
    """The lock of a folder, one for every way to spell it, which the process that holds it may take again."""
    return FileLock(folder.resolve() / ".lock", is_singleton=True)


def _holds_run(folder: Path) -> bool:
    return bool(checkpoints(folder / "checkpoints") or read_metrics(folder / "metrics.jsonl"))


def _check_new(folder: Path, resume: bool) -> None:
    if not resume and _holds_run(folder):
        raise InputError(
            f"fit(run_dir={str(folder)!r}): the folder already holds a run; expected a new one; "
            "pass resume=True (--resume) to go on with it, or another folder"
        )


class RunFiles:
    """Writes the files of one run.

    Args:
        run_dir: a folder that this process has claimed.
        resume: whether a run is there to go on with.
        iterations: where it ends.
        identity: what it may not go on without.
        facts: more that its checkpoints say.
    """

    def __init__(
        self, run_dir: str | Path, resume: bool, iterations: int, identity: dict[str, int], facts: Mapping[str, Any]
    ) -> None:
        self.folder, self.iterations, self.identity = Path(run_dir) / "checkpoints", iterations, identity
        self.metrics, self.choices = Path(run_dir) / "metrics.jsonl", Path(run_dir) / "choices.json"
        self.resume, self.facts = resume, facts
        with self._writing("checkpoints"):
            self.folder.mkdir(exist_ok=True)

    def point_to_recipe(self, where: str) -> None:
        """Writes where the run's recipe stands, unless something is written already."""
        path = self.folder.parent / "recipe.json"
        if path.exists():
            return
        stored = {"format": _FORMAT, "fmeta": __version__, "torch": str(torch.__version__)}
        with self._writing("recipe.json"):
            write_whole(path, json.dumps({**stored, "recipe": {"object": where}}, indent=1) + "\n")

    def restore(self, state: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The last checkpoint, and the facts of all, oldest first. The metrics are cut back to it."""
        found = checkpoints(self.folder) if self.resume else []
        if found:
            step, facts = found[-1]
            state = load_checkpoint(self.folder / f"{step:08d}", state)
            differ = {n: facts.get(n) for n, v in self.identity.items() if facts.get(n) != v}
            if differ:
                raise InputError(
                    f"fit(resume=True): the run in {self.folder} has {differ}, this call {self.identity}; expected the "
                    "same, because the rest of the run would see other tasks"
                )
            if step > self.iterations:
                raise InputError(
                    f"fit(iterations={self.iterations}): the run stands at step {step}; expected at least that"
                )
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # lost: measured again
                prefer(json.loads(self.choices.read_text(encoding="utf-8")))
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= int(state.step)]
        with self._writing("metrics.jsonl"):
            write_whole(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        return state, [facts for _, facts in found]

    def log(self, line: dict[str, Any]) -> None:
        with self._writing("metrics.jsonl"), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, state: State, *, again: bool = True, **facts: Any) -> None:
        """A checkpoint with these facts. Not `again`: one of the same step stays as it is."""
        step = int(state.step)
        if not again and step in dict(checkpoints(self.folder)):
            return
        with self._writing(f"checkpoint {step}"):
            write_whole(self.choices, json.dumps(choices(), indent=1) + "\n")
            save_checkpoint(self.folder, state, step, **self.facts, **facts, **self.identity)
            best = best_checkpoint(checkpoints(self.folder))
            prune(self.folder, keep={step} if best is None else {step, best})

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            found = checkpoints(self.folder)
            kept = (
                f"the last whole checkpoint is that of step {found[-1][0]}" if found else "there is no checkpoint yet"
            )
            raise SaveError(
                f"fit: {what} could not be written in {self.folder.parent}: {error}; {kept}; make room there, then go "
                "on with resume=True (--resume)"
            ) from error


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, in UTF-8. Raises OSError."""
    fresh = path.parent / f"{path.name}.tmp"
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without what a crash left half written; none where there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in map(_parsed, text.splitlines()) if line]


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return found if isinstance(found.get("step"), int | float) else {}
    except (ValueError, AttributeError):
        return {}
