"""`fmeta predict`: what a trained run says of one's own data."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fmeta.cli._options import options, positional, writing

if TYPE_CHECKING:
    from rich.table import Table

    from fmeta.runs import Predictions

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What a trained run says of your own data, by a few examples of each class."""

    run: tyro.conf.Positional[Path] = positional("the folder of a run")
    """folder of the run"""
    support: Path
    """the examples: for pictures a folder with a folder of a few of them for each class"""
    query: Path
    """what is asked: for pictures a file, or a folder of them"""
    out: Path | None = None
    """CSV file for all probabilities"""
    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""
    steps: int | None = None
    """inner steps to take; the last that the run tests after if left out"""
    on_error: Literal["raise", "skip"] = "raise"
    """what to do about files that cannot be read: raise, or skip them with a warning"""
    device: str | None = None
    """where to run; the run's if left out"""


def predict_command(arguments: list[str]) -> Callable[[], Any]:
    """Prints the answers, and writes all of them with --out."""
    given = options("predict", PredictOptions, arguments)
    return lambda: _predict(given)


def _predict(given: PredictOptions) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.runs._adapt import adapt
    from fmeta.training._run_files import write_whole

    printing.say(f"adapting to {given.support}")
    adapted = adapt(
        given.run,
        given.support,
        checkpoint=given.checkpoint,
        steps=given.steps,
        device=given.device,
        on_error=given.on_error,
    )
    found = adapted.predict(given.query, on_error=given.on_error)
    if given.out is not None:
        with writing("out", given.out):
            write_whole(given.out, _csv(found))
    printing.console.print(_table(found))
    if len(found.queries) > _SHOWN:
        printing.say(f"and {len(found.queries) - _SHOWN} more; --out FILE.csv writes all")
    if given.out is not None:
        printing.say(f"{len(found.queries)} answers: {given.out}")


def _table(found: Predictions) -> Table:
    from fmeta.cli._printing import table

    queries, said = found.queries[:_SHOWN], found.probabilities[:_SHOWN]
    if not found.names:
        return table(["query", "prediction"], [], zip(queries, map(str, said.tolist()), strict=True))
    shares = [f"{share:.3f}" for share in said.amax(-1).tolist()]
    return table(["query", "class"], ["probability"], zip(queries, found.labels()[:_SHOWN], shares, strict=True))


def _csv(found: Predictions) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    if not found.names:
        writer.writerow(["query", "prediction"])
        writer.writerows(zip(found.queries, found.probabilities.tolist(), strict=True))
        return text.getvalue()
    writer.writerow(["file", "class", "probability", *(f"p({name})" for name in found.names)])
    said = found.probabilities
    columns = found.queries, found.labels(), said.amax(-1).tolist(), said.tolist()  # amax, because max() loses a NaN
    for name, label, share, row in zip(*columns, strict=True):
        writer.writerow([name, label, f"{share:.6f}", *(f"{p:.6f}" for p in row)])
    return text.getvalue()
