"""`fmeta predict`: the classes of one's own pictures."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

import fmeta
from fmeta.cli import _show as show
from fmeta.core import InputError
from fmeta.tasks._images import OnError

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The classes of pictures, by a trained run and a few pictures of each class."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    support: Path
    """folder with a folder of a few pictures for each class"""
    query: Path
    """a picture, or a folder of them"""
    out: Path | None = None
    """CSV file for all probabilities"""
    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""
    steps: int | None = None
    """inner steps to take; the last that the recipe tests after if left out"""
    on_error: OnError = "raise"
    """what to do about pictures that do not decode: raise, or skip them with a warning"""
    device: str | None = None
    """where to run; the recipe's if left out"""


def predict_command(arguments: list[str]) -> None:
    options = tyro.cli(PredictOptions, args=arguments, prog="fmeta predict")
    adapted = fmeta.adapt(
        options.run,
        options.support,
        checkpoint=options.checkpoint,
        steps=options.steps,
        device=options.device,
        on_error=options.on_error,
    )
    found = adapted.predict(options.query, on_error=options.on_error)
    if options.out is not None:
        try:
            options.out.write_text(_csv(found, options.query))
        except OSError as error:
            raise InputError(
                f"predict(out={str(options.out)!r}): {error}; expected a file that can be written"
            ) from error
    show.console.print(_table(found, options.query))
    if len(found.files) > _SHOWN:
        show.say(f"and {len(found.files) - _SHOWN} more; --out FILE.csv writes all")
    if options.out is not None:
        show.say(f"{len(found.files)} pictures: {options.out}")


def _names(found: fmeta.Predictions, query: Path) -> list[str]:
    return [str(file.relative_to(query)) if query.is_dir() else file.name for file in found.files]


def _table(found: fmeta.Predictions, query: Path) -> Table:
    table = Table()
    table.add_column("picture")
    table.add_column("class")
    table.add_column("probability", justify="right")
    rows = zip(_names(found, query), found.labels(), found.probabilities.amax(-1).tolist(), strict=True)
    for name, label, probability in list(rows)[:_SHOWN]:
        table.add_row(name, label, f"{probability:.3f}")
    return table


def _csv(found: fmeta.Predictions, query: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class", "probability", *(f"p({name})" for name in found.names)])
    for name, label, row in zip(_names(found, query), found.labels(), found.probabilities.tolist(), strict=True):
        writer.writerow([name, label, f"{max(row):.6f}", *(f"{p:.6f}" for p in row)])
    return text.getvalue()
