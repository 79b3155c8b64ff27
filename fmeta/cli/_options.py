"""The options that commands on runs share. Needs no torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from fmeta.cli._words import flags_of, no_such, read, split
from fmeta.runs._options import OptionError

Options = TypeVar("Options")


def positional(what: str, *, many: bool = False, **default: Any) -> Any:
    """A field that is given without a name in front."""
    return dataclasses.field(metadata={"positional": what, "many": many}, **default)


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Which state of a run, and where."""

    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""
    device: str | None = None
    """where to run; the run's if left out"""
    data_dir: str | None = None
    """where the data of its recipe is now; the run's if left out"""


@dataclass(frozen=True, kw_only=True)
class OneRun(OfRun):
    """One run at one of its checkpoints."""

    run: tyro.conf.Positional[Path] = positional("the folder of a run")
    """folder of the run"""
    tasks: int | None = None
    """test tasks; the run's number if left out"""


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Around what writes to a place that an option names. Raises OptionError where that fails."""
    try:
        yield
    except OSError as error:
        raise OptionError(option, path, f"{error}; expected a place that can be written") from error


def options(command: str, kind: type[Options], arguments: list[str]) -> Options:
    """The options of a command whose options are always the same."""
    words = split(command, arguments, flags_of([kind]))
    known = [field.name for field in dataclasses.fields(kind) if not field.metadata.get("positional")]  # type: ignore[arg-type]
    return kind(**read(command, (kind.__doc__ or "").strip(), {"options": kind}, words, no_such(known)))
