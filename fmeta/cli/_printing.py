"""What the command line shows while it works: lines, a progress bar, tables of figures."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fmeta.evaluation import Evaluation
from fmeta.runs import Metric

SHARES = ("accuracy", "precision", "recall", "f1")  # what `evaluate` reports as shares of 1

console = Console()


def say(text: str) -> None:
    """A line, whatever characters it has."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Columns of words and of numbers. Brackets are no markup: names of files and classes may hold any."""
    found = Table()
    for column in left:
        found.add_column(Text(column), overflow="fold")
    for column in right:
        found.add_column(Text(column), justify="right")
    for row in rows:
        found.add_row(*map(Text, row))
    return found


def bar(scope: str) -> Callable[[int, int], Bar]:
    """Makes the progress bar of a run that is compiled so."""
    return lambda total, done: Bar(console, total, done, "starting" if scope == "none" else "compiling")


class Bar:
    """A progress bar with means, rate and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, total: int, done: int, beginning: str = "starting") -> None:
        self.console, self.total, self.shown = console, total, done
        self.last, self.began = done, time.perf_counter()
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        ]
        times = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self.bar = Progress(*columns, *times, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(beginning, total=total, completed=done, rate="")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        rate = (step - self.last) / max(now - self.began, 1e-9)
        self.last, self.began = step, now
        shown = (name for name in values if name != "gradient_norm" and not name.startswith(("time/", "lr/")))
        text = "  ".join(f"{name.replace('/', ' ')} {values[name]:.3f}" for name in shown)
        self.bar.update(
            self.task, completed=step, description=text, rate=f"{rate:.0f} it/s" if rate >= 10 else f"{rate:.1f} it/s"
        )
        if not self.console.is_terminal and (step == self.total or step - self.shown >= self.total / 10):
            self.shown = step
            left = (self.total - step) / max(rate, 1e-9)
            say(f"{step}/{self.total}  {text}  {rate:.1f} it/s  {left:.0f} s left")


def evaluation_table(result: Evaluation, metric: Metric) -> Group:
    """The headline figure after each number of adaptation steps."""
    facts = ", ".join(f"{name} {value}" for name, value in result.protocol.items())
    columns = result.mean(metric.name), result.interval(metric.name), result.median(metric.name)
    rows = [
        (str(step), metric.text(mean), f"±{metric.text(half)}", metric.text(median))
        for step, mean, half, median in zip(result.steps, *columns, strict=True)
    ]
    figures = table([], ["adaptation steps", "mean", "95% interval", "median"], rows)
    return Group(Text(f"{metric.label or metric.name}{', %' if metric.percent else ''}: {facts}"), figures)


def class_table(result: Evaluation) -> Table:
    """Precision, recall, F1 and calibration, in percent."""
    assert result.calibration is not None
    shares = [result.mean(name) for name in ("precision", "recall", "f1")]
    columns = zip(result.steps, *shares, result.calibration.error(), result.calibration.interval(), strict=True)
    rows = [
        [str(step), *(f"{100 * value:.2f}" for value in figures), f"{100 * low:.2f} to {100 * high:.2f}"]
        for step, *figures, (low, high) in columns
    ]
    return table([], ["adaptation steps", "precision", "recall", "F1", "calibration error", "95% interval"], rows)


def alone_table(result: Evaluation, metric: Metric) -> Group:
    """The figure without sight of the other query examples, and the difference that made."""
    names = (metric.name, f"{metric.name} alone", f"{metric.name} gap")
    columns = zip(result.steps, *(result.mean(name) for name in names), result.interval(names[-1]), strict=True)
    rows = [[str(step), *map(metric.text, means), f"±{metric.text(half)}"] for step, *means, half in columns]
    figures = table([], ["adaptation steps", "together", "alone", "gap", "95% interval"], rows)
    return Group(Text("query examples predicted together (transductive) and alone:"), figures)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def measurements() -> Iterator[None]:
    """Says what fmeta measured, chose and compiles."""
    logger, saying = logging.getLogger("fmeta"), _Saying(logging.INFO)
    logger.addHandler(saying)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(saying)
