"""What the command line shows: progress, tables, plots."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fmeta.core import Learner, Task, Tree, trajectory, tree
from fmeta.evaluation import Evaluation
from fmeta.gradients import GradientReport

_SHARES = ("accuracy", "precision", "recall", "f1")  # shown in percent

console = Console()


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """A progress bar with means, rate and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.shown = console, total, done
        self.last, self.began = done, time.perf_counter()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        ]
        times = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self.bar = Progress(*columns, *times, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("compiling", total=total, completed=done, rate="")

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
            left = (self.total - step) / rate
            self.console.print(f"{step}/{self.total}  {text}  {rate:.1f} it/s  {left:.0f} s left", highlight=False)


def evaluation_table(result: Evaluation, metric: str) -> Group:
    percent, digits = scale(metric)
    what = "query accuracy, %" if metric == "accuracy" else "query error"
    facts = ", ".join(f"{name} {value}" for name, value in result.protocol.items())
    table = Table()
    for column in ("adaptation steps", "mean", "95% interval", "median"):
        table.add_column(column, justify="right")
    for row in zip(result.steps, result.mean(metric), result.interval(metric), result.median(metric), strict=True):
        step, mean, half, median = row
        figures = (percent * mean, percent * half, percent * median)
        table.add_row(str(step), f"{figures[0]:.{digits}f}", f"±{figures[1]:.{digits}f}", f"{figures[2]:.{digits}f}")
    return Group(Text(f"{what}: {facts}"), table)


def class_table(result: Evaluation) -> Table:
    """Precision, recall, F1 and calibration, in percent."""
    assert result.calibration is not None
    table = Table()
    for column in ("adaptation steps", "precision", "recall", "F1", "calibration error", "95% interval"):
        table.add_column(column, justify="right")
    columns = [result.mean(name) for name in ("precision", "recall", "f1")]
    rows = zip(result.steps, *columns, result.calibration.error(), result.calibration.interval(), strict=True)
    for step, *figures, (low, high) in rows:
        table.add_row(str(step), *(f"{100 * value:.2f}" for value in figures), f"{100 * low:.2f} to {100 * high:.2f}")
    return table


def alone_table(result: Evaluation, metric: str) -> Group:
    """The figure without sight of the other query examples, and the difference that made."""
    percent, digits = scale(metric)
    table = Table()
    for column in ("adaptation steps", "together", "alone", "gap", "95% interval"):
        table.add_column(column, justify="right")
    names = (metric, f"{metric} alone", f"{metric} gap")
    for step, *means, half in zip(
        result.steps, *(result.mean(name) for name in names), result.interval(names[-1]), strict=True
    ):
        table.add_row(str(step), *(f"{percent * value:.{digits}f}" for value in means), f"±{percent * half:.{digits}f}")
    return Group(Text("query examples predicted together (transductive) and alone:"), table)


def scale(metric: str) -> tuple[float, int]:
    """The factor and the number of digits that a metric is shown with."""
    return (100.0, 2) if metric in _SHARES else (1.0, 4)


def report_table(report: GradientReport) -> Group:
    table = Table()
    table.add_column("parameter")
    table.add_column("relative error", justify="right")
    table.add_column("remark")
    for name, error in report.relative_error.items():
        remark = "detached: the loss depends on it" if name in report.detached else ""
        table.add_row(name, f"{error:.1e}", "no gradient, no influence" if name in report.without_gradient else remark)
    return Group(Text(f"order computed: {report.order}; cosine to finite differences {report.cosine:.9f}"), table)


def plot_regression(learner: Learner, meta: Tree, tasks: Task, steps: int) -> Figure:
    """A few tasks side by side."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for i, axes in enumerate(figure.subplots(1, len(tasks.query.x), sharey=True)):
        draw_regression(axes, learner, meta, tree.tree_map(lambda t, i=i: t[i], tasks), steps)
    figure.axes[0].set_ylabel("y")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def draw_regression(axes: Axes, learner: Learner, meta: Tree, task: Task, steps: int) -> None:
    """The true curve, the support points, and the prediction before and after adaptation."""
    assert learner.inner is not None
    shown = {"before adaptation": (0, ":", "grey"), "after 1 step": (1, "--", "tab:blue")}
    if steps > 1:
        shown[f"after {steps} steps"] = (steps, "-", "tab:red")
    fast = trajectory(learner.inner, steps)(meta, task.support, task.key)
    order = task.query.x[:, 0].argsort()
    x, y = task.query.x[order], task.query.y[order]
    axes.plot(x[:, 0].cpu(), y[:, 0].cpu(), color="black", label="true curve")
    for label, (step, line, color) in shown.items():
        prediction = learner.predict(fast[step], meta, x)
        axes.plot(x[:, 0].cpu(), prediction[:, 0].cpu(), line, color=color, label=label)
    axes.plot(task.support.x[:, 0].cpu(), task.support.y[:, 0].cpu(), "o", color="tab:green", label="support points")
    axes.set_xlabel("x")


def plot_curve(result: Evaluation, metric: str) -> Figure:
    """The metric over adaptation steps, with 95% intervals."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.errorbar(result.steps, result.mean(metric), yerr=result.interval(metric), marker="o", capsize=3)
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel(f"query {metric}")
    axes.set_xticks(result.steps)
    axes.grid(alpha=0.3)
    return figure
