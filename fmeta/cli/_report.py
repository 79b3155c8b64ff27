"""`fmeta report`: one page on a run, complete in one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmeta.cli._options import OneRun, options, writing
from fmeta.runs._options import OptionError


@dataclass(frozen=True, kw_only=True)
class ReportOptions(OneRun):
    """A page on a run: its figures, curves, sample tasks, confusions and recipe, in one HTML file."""

    out: Path | None = None
    """the file; report.html in the folder of the run if left out"""


def report_command(arguments: list[str]) -> Callable[[], Any]:
    """Writes the page."""
    given = options("report", ReportOptions, arguments)
    return lambda: _report(given)


def _report(given: ReportOptions) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.cli._report_page import page_of
    from fmeta.training._run_files import write_whole

    out = given.out or given.run / "report.html"
    if given.out is not None and not out.parent.is_dir():
        raise OptionError("out", out, f"no folder {str(out.parent)!r}; expected a file in one that is there")
    page = page_of(given, printing.say)
    with writing("out", out):
        write_whole(out, page)
    printing.say(f"report: {out}")
