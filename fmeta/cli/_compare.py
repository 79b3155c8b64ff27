"""`fmeta compare`: several runs on the same test tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from fmeta.cli import _show as show
from fmeta.cli._recipe import Recipe
from fmeta.cli._trained import LoadOptions, load, measure
from fmeta.core import InputError
from fmeta.core._checks import nearest
from fmeta.evaluation import Comparison, Evaluation, compare

_OWN = ("seed", "query", "norm")  # what a run may have of its own and still take another's tasks


@dataclass(frozen=True, kw_only=True)
class CompareOptions(LoadOptions):
    """Evaluates runs on the same test tasks, those of the first run, and compares each with the first, task by task."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of two or more runs"""
    tasks: int | None = None
    """test tasks; the first run's number if left out"""
    metric: str | None = None
    """what to compare, after the last of each run's steps; the recipe's headline figure if left out"""
    out: Path = Path("comparison")
    """folder for compare.json and the plots; an earlier comparison there is replaced"""


def compare_command(arguments: list[str]) -> None:
    """Writes compare.json, adaptation.png and differences.png, and prints the table."""
    options = tyro.cli(CompareOptions, args=arguments, prog="fmeta compare")
    if len(set(options.runs)) < 2:
        raise InputError(f"compare(runs={[str(r) for r in options.runs]}): expected the folders of two or more runs")
    runs = {str(folder): load(folder, options) for folder in options.runs}
    first = next(iter(runs.values())).recipe
    for folder, trained in runs.items():
        _check_fits(folder, trained.recipe, first)
    tasks = options.tasks if options.tasks is not None else first.eval_tasks
    if tasks < 2:
        raise InputError(f"compare(tasks={tasks}): expected at least 2, for an interval")
    metric = options.metric or first.metric()

    results: dict[str, Evaluation] = {}
    for folder, trained in runs.items():
        results[folder] = measure(trained, tasks, source=first)
        if metric not in results[folder].values:
            raise InputError(
                f"compare(metric={metric!r}): run {folder!r} has none; {nearest(metric, results[folder].values)}"
            )
    reference = results[str(options.runs[0])]
    differences = {folder: compare(result, reference, metric) for folder, result in results.items()}

    _make_folder(options.out)
    stored = [
        {"run": folder, "evaluation": result.summary(), "difference to the first": differences[folder].summary()}
        for folder, result in results.items()
    ]
    (options.out / "compare.json").write_text(json.dumps({"metric": metric, "runs": stored}, indent=1) + "\n")
    unique = len({Path(folder).name for folder in runs}) == len(runs)
    names = {folder: Path(folder).name if unique else folder for folder in runs}
    results = {names[folder]: result for folder, result in results.items()}
    differences = {names[folder]: difference for folder, difference in differences.items()}
    _plot_adaptation(options.out / "adaptation.png", results, metric)
    _plot_differences(options.out / "differences.png", differences)
    show.say(f"{tasks} test tasks of {options.runs[0]}, {metric} after the last of each run's steps:")
    show.console.print(_figures_table(results, metric))
    show.console.print(_differences_table(differences, metric))
    show.say(f"kept in: {options.out}")


def _check_fits(folder: str, recipe: Recipe, first: Recipe) -> None:
    own, expected = ({n: v for n, v in r.facts().items() if n not in _OWN} for r in (recipe, first))
    differ = [n for n in own | expected if own.get(n) != expected.get(n)]
    if differ:
        listed = ", ".join(f"{n} {own.get(n)!r} where the first run has {expected.get(n)!r}" for n in differ)
        raise InputError(
            f"compare(run {folder!r}): {listed}; expected the tasks of the first run; compare runs of one domain, "
            "split, ways and shots"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"compare(out={str(folder)!r}): {error}; expected a folder that can be written") from error


def _figures_table(results: dict[str, Evaluation], metric: str) -> Table:
    percent, digits = show.scale(metric)
    table = Table("run")
    judged = any(result.calibration for result in results.values())
    headings = ["precision", "recall", "F1", "ECE"] if judged else []
    for column in ("steps", metric, "95% interval", *headings):
        table.add_column(column, justify="right")
    for folder, result in results.items():
        mean, half = (f"{percent * values[-1]:.{digits}f}" for values in (result.mean(metric), result.interval(metric)))
        row = [str(result.steps[-1]), mean, f"±{half}"]
        if result.calibration:
            shares = [result.mean(name)[-1] for name in ("precision", "recall", "f1")]
            row += [f"{100 * share:.2f}" for share in (*shares, result.calibration.error()[-1])]
        table.add_row(folder, *row)
    return table


def _differences_table(differences: dict[str, Comparison], metric: str) -> Table:
    percent, digits = show.scale(metric)
    table = Table("run")
    for column in ("difference to the first", "95% interval", "won", "lost", "tied"):
        table.add_column(column, justify="right")
    for folder, d in list(differences.items())[1:]:
        mean, low, high = (f"{percent * value:+.{digits}f}" for value in (d.mean, *d.interval))
        shares = [f"{100 * share:.0f}%" for share in (d.won, d.lost, d.tied)]
        table.add_row(folder, mean, f"{low} to {high}", *shares)
    return table


def _plot_adaptation(path: Path, results: dict[str, Evaluation], metric: str) -> None:
    """The metric over adaptation steps, with 95% intervals."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for folder, result in results.items():
        axes.errorbar(
            result.steps, result.mean(metric), yerr=result.interval(metric), marker="o", capsize=3, label=folder
        )
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel(f"query {metric}")
    axes.set_xticks(sorted({step for result in results.values() for step in result.steps}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _plot_differences(path: Path, differences: dict[str, Comparison]) -> None:
    """Each task's difference to the first run, and their mean with its 95% interval."""
    others = list(differences.items())[1:]
    figure = Figure(figsize=(2 + 2 * len(others), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(len(others)))
    axes.boxplot([d.differences.numpy() for _, d in others], positions=places, widths=0.6, sym=".")
    for place, (_, d) in zip(places, others, strict=True):
        reach = [[d.mean - d.interval[0]], [d.interval[1] - d.mean]]
        axes.errorbar([place], [d.mean], yerr=reach, marker="o", capsize=4, color="tab:red", zorder=3)
    axes.axhline(0.0, color="grey", linestyle=":")
    axes.set_xticks(places, [folder for folder, _ in others], fontsize="small")
    axes.set_ylabel(f"query {others[0][1].metric}, difference to the first run")
    figure.savefig(path, dpi=110)
