"""The processes that `torchrun` started."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from fmeta._errors import InputError
from fmeta.training._ranks import Ranks


@contextlib.contextmanager
def process_group(run_dir: Path | None) -> Iterator[Ranks]:
    """Joins the group that the environment names, gloo or NCCL by device, and leaves it again.

    Raises InputError where several processes were started without a folder for the run, which a restart must find.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield Ranks()
        return
    if run_dir is None:
        raise InputError(
            "train(torchrun): no run folder given; expected --run-dir RUN, that all processes see, so that they can "
            "go on from its checkpoints after one was lost"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # names of its own for each start: torchrun's store remembers where the processes of the one before listened
    store, rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start-{_starts()}", store)
    patience = datetime.timedelta(hours=6)  # of those who wait while rank 0 validates
    dist.init_process_group(store=store, rank=rank, world_size=count, timeout=patience)
    try:
        yield Ranks.present()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which a scheduler sends before it takes the machine away, ends the work in order: status 143. A second
    one, at any time until the process has ended, is ignored.

    Not with NCCL, whose processes wait for lost ones in code that hears nothing: there it ends the process at once.
    """
    main = threading.current_thread() is threading.main_thread()  # no other may handle signals
    if not main or ("RANK" in os.environ and torch.cuda.is_available()):
        yield
        return

    asked = SystemExit(128 + signal.SIGTERM)

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        heard.append(number)
        raise asked

    heard = list[int]()
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        if heard:  # it struck in code that makes another error of it
            raise asked from error
        raise
    finally:
        if not heard:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def launch() -> str | None:
    """What tells this launch of torchrun from others; a start anew after a lost process is the same launch."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{name} {os.environ.get('MASTER_PORT')}" if name == "none" else name


def goes_on(run_dir: Path | None) -> bool:
    """Whether torchrun started these processes anew, and the folder holds the run of that launch."""
    if run_dir is None or not _starts():
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((run_dir / "recipe.json").read_text(encoding="utf-8")).get("launch") == launch()
    return False


def _starts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
