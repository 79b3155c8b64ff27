"""What measurement has shown to be fastest here, remembered for each machine and shape."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pooch
import torch
from filelock import FileLock, Timeout

_PATIENCE = 900.0  # seconds to wait for another process that measures

Answer = dict[str, Any]  # "choice": a name; "milliseconds": what each candidate took
_log = logging.getLogger("fmeta")


def cache_folder() -> Path:
    """Where downloads, decoded data and measured choices are kept: `$FMETA_CACHE`, or the system's cache folder."""
    return Path(os.environ.get("FMETA_CACHE") or pooch.os_cache("fmeta"))


def fastest(
    question: str,
    candidates: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    repeats: int = 3,
    level: int = logging.DEBUG,
) -> str:
    """The name of the candidate that takes the least time, by the best of its runs after one to warm up: `repeats`, or
    two where it is far behind in both.

    The answer is kept for this machine: the same question gets the same answer in every other process, so that a
    resumed run computes the same bits, and of several that ask at once one measures, undisturbed by the others.
    `choices` gives all answers, `prefer` brings them back. What was chosen and why goes to the logger "fmeta", at
    `level`.
    """
    if len(candidates) == 1:
        return next(iter(candidates))
    question = f"{question} on {machine(device)}"
    known, asked = _answers(), False
    if known.get(question, {}).get("choice") not in candidates:
        with _one_at_a_time(question):
            known |= {q: answer for q, answer in _stored().items() if q == question}
            asked = known.get(question, {}).get("choice") not in candidates
            if asked:
                times = {name: round(1e3 * t, 4) for name, t in _best_times(candidates, device, repeats).items()}
                known[question] = {"choice": min(times, key=times.__getitem__), "milliseconds": times}
                _keep({question: known[question]})
    answer = known[question]
    took = ", ".join(f"{name} {ms:.3g} ms" for name, ms in answer.get("milliseconds", {}).items())
    _log.log(level, "%s: %s (%s; %s)", question, answer["choice"], took, "measured now" if asked else "remembered")
    return answer["choice"]


def choices() -> dict[str, Answer]:
    """Every answer that this process knows."""
    return dict(_answers())


def prefer(known: Mapping[str, Answer]) -> None:
    """Answers that go before what was measured here: those a run was begun with."""
    _answers().update(known)
    _changes[0] += 1


def changes() -> int:
    """Grows whenever answers that were given before may no longer hold."""
    return _changes[0]


_changes = [0]


def machine(device: torch.device) -> str:
    """What an answer depends on beside the question."""
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()} x{torch.get_num_threads()}"
    return f"{what}, torch {torch.__version__}"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _answers() -> dict[str, Answer]:
    return _stored()


def _file() -> Path:
    return cache_folder() / "choices.json"


def _stored() -> dict[str, Answer]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
        return {question: answer for question, answer in known.items() if answer["choice"]}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}  # none yet, or damaged: they are measured again


def _keep(new: dict[str, Answer]) -> None:
    fresh = _file().with_suffix(f".{os.getpid()}.tmp")
    # a cache that cannot be written costs the next process a measurement
    with _one_at_a_time("choices.json"), contextlib.suppress(OSError):
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(_stored() | new, indent=0, sort_keys=True), encoding="utf-8")
        fresh.replace(_file())


@contextlib.contextmanager
def _one_at_a_time(what: str) -> Iterator[None]:
    """Holds back the other processes of this machine that do the same."""
    lock = FileLock(cache_folder() / "locks" / hashlib.sha256(what.encode()).hexdigest()[:16])
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError, Timeout):  # then each does it for itself
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.acquire(timeout=_PATIENCE))
        yield


def _best_times(candidates: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds, after one run to warm up. Who is far behind in two is not run again."""

    def once(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for run in candidates.values():
        once(run)
    times = {name: min(once(run), once(run)) for name, run in candidates.items()}  # one may meet a busy machine
    near = 2 * min(times.values())
    return {n: min([t, *(once(candidates[n]) for _ in range(repeats - 2) if t <= near)]) for n, t in times.items()}
