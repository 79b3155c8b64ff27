"""`fmeta compare`: several runs on the same test tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from fmeta.cli._options import OfRun, options, positional, writing

if TYPE_CHECKING:
    from rich.table import Table

    from fmeta.evaluation import Comparison, Evaluation
    from fmeta.runs import Metric


@dataclass(frozen=True, kw_only=True)
class CompareOptions(OfRun):
    """Evaluates runs on the same test tasks, those of the first run, and compares each with the first, task by task."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = positional("the folders of two or more runs", many=True)
    """folders of two or more runs"""
    tasks: int | None = None
    """test tasks; the first run's number if left out"""
    metric: str | None = None
    """what to compare, after the last of each run's steps; the recipe's headline figure if left out"""
    out: Path = Path("comparison")
    """folder for compare.json and the plots; an earlier comparison there is replaced"""


def compare_command(arguments: list[str]) -> Callable[[], Any]:
    """Writes compare.json, adaptation.png and differences.png, and prints the tables."""
    given = options("compare", CompareOptions, arguments)
    return lambda: _compare(given)


def _compare(given: CompareOptions) -> None:
    import json

    from fmeta.cli import _printing as printing
    from fmeta.runs._compare import compare
    from fmeta.runs._folder import open_run
    from fmeta.runs._recipe import Metric
    from fmeta.training._run_files import write_whole

    found = compare(
        given.runs,
        tasks=given.tasks,
        metric=given.metric,
        checkpoint=given.checkpoint,
        device=given.device,
        data_dir=given.data_dir,
        tell=printing.say,
    )
    headline = open_run(given.runs[0]).experiment.recipe.metric
    better = next(iter(found.differences.values())).better
    metric = (
        headline if found.metric == headline.name else Metric(found.metric, better, found.metric in printing.SHARES)
    )
    with writing("out", given.out):
        given.out.mkdir(parents=True, exist_ok=True)
    stored = [
        {"run": folder, "evaluation": result.summary(), "difference to the first": found.differences[folder].summary()}
        for folder, result in found.results.items()
    ]
    text = json.dumps({"metric": found.metric, "runs": stored}, indent=1, ensure_ascii=False)
    write_whole(given.out / "compare.json", text + "\n")
    unique = len({Path(folder).name for folder in found.results}) == len(found.results)
    names = {folder: Path(folder).name if unique else folder for folder in found.results}
    results = {names[folder]: result for folder, result in found.results.items()}
    differences = {names[folder]: difference for folder, difference in found.differences.items()}
    _plot_adaptation(given.out / "adaptation.png", results, metric)
    _plot_differences(given.out / "differences.png", differences)
    tasks = next(iter(results.values())).protocol["tasks"]
    printing.say(f"{tasks} test tasks of {given.runs[0]}, {found.metric} after the last of each run's steps:")
    printing.console.print(_figures_table(results, metric))
    printing.console.print(_differences_table(differences, metric))
    printing.say(f"kept in: {given.out}")


def _figures_table(results: dict[str, Evaluation], metric: Metric) -> Table:
    from fmeta.cli._printing import table

    rows = []
    judged = any(result.calibration for result in results.values())
    headings = ["precision", "recall", "F1", "ECE"] if judged else []
    for folder, result in results.items():
        mean, half = (metric.text(values[-1]) for values in (result.mean(metric.name), result.interval(metric.name)))
        row = [str(result.steps[-1]), mean, f"±{half}"]
        if result.calibration:
            shares = [result.mean(name)[-1] for name in ("precision", "recall", "f1")]
            row += [f"{100 * share:.2f}" for share in (*shares, result.calibration.error()[-1])]
        rows.append([folder, *row])
    return table(["run"], ["steps", metric.name, "95% interval", *headings], rows)


def _differences_table(differences: dict[str, Comparison], metric: Metric) -> Table:
    from fmeta.cli._printing import table

    rows = []
    for folder, d in list(differences.items())[1:]:
        mean, low, high = (f"{'+' if value >= 0 else ''}{metric.text(value)}" for value in (d.mean, *d.interval))
        shares = [f"{100 * share:.0f}%" for share in (d.won, d.lost, d.tied)]
        rows.append([folder, mean, f"{low} to {high}", *shares])
    return table(["run"], ["difference to the first", "95% interval", "won", "lost", "tied"], rows)


def _plot_adaptation(path: Path, results: dict[str, Evaluation], metric: Metric) -> None:
    """The metric over adaptation steps, with 95% intervals."""
    from fmeta.runs._plots import blank, literal

    figure = blank(6, 4)
    axes = figure.subplots()
    for folder, result in results.items():
        means, halves = result.mean(metric.name), result.interval(metric.name)
        axes.errorbar(result.steps, means, yerr=halves, marker="o", capsize=3, label=literal(folder))
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel(metric.label or f"query {metric.name}")
    axes.set_xticks(sorted({step for result in results.values() for step in result.steps}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _plot_differences(path: Path, differences: dict[str, Comparison]) -> None:
    """Each task's difference to the first run, and their mean with its 95% interval."""
    from fmeta.runs._plots import blank, literal

    others = list(differences.items())[1:]
    figure = blank(2 + 2 * len(others), 4)
    axes = figure.subplots()
    places = list(range(len(others)))
    axes.boxplot([d.differences.numpy() for _, d in others], positions=places, widths=0.6, sym=".")
    for place, (_, d) in zip(places, others, strict=True):
        reach = [[d.mean - d.interval[0]], [d.interval[1] - d.mean]]
        axes.errorbar([place], [d.mean], yerr=reach, marker="o", capsize=4, color="tab:red", zorder=3)
    axes.axhline(0.0, color="grey", linestyle=":")
    axes.set_xticks(places, [literal(folder) for folder, _ in others], fontsize="small")
    axes.set_ylabel(f"query {others[0][1].metric}, difference to the first run")
    figure.savefig(path, dpi=110)
