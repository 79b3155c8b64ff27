"""What takes long and would otherwise be silent is said."""

from __future__ import annotations

import logging
import sys

_log = logging.getLogger("fmeta")
_SECONDS_PER_OPERATION = 0.02  # of inductor and the C++ compiler, on one core of a desktop of 2024
_LONG = 3.0  # seconds that need no word


def announce(text: str) -> None:
    """To the logger "fmeta", as INFO; where nobody has set up logging, to the terminal, if there is one."""
    _log.info(text)
    if not _log.hasHandlers() and sys.stderr is not None and sys.stderr.isatty():
        print(f"fmeta: {text}", file=sys.stderr, flush=True)


def announce_compilation(name: str, operations: int) -> None:
    """How long the compiler of a graph will be, where that is long."""
    seconds = _SECONDS_PER_OPERATION * operations
    if seconds > _LONG:
        about = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        announce(f"compiling {name}: {operations} operations, about {about}, and a few seconds the next time")
