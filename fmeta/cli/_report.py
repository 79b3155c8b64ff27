"""`fmeta report`: one page on a run, complete in one file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
import tyro

import fmeta
from fmeta.cli import _show as show
from fmeta.cli._recipe import Recipe
from fmeta.cli._recipes import Images
from fmeta.cli._report_charts import adaptation_chart, regression_charts, training_charts
from fmeta.cli._report_episodes import sample_episodes
from fmeta.cli._run import Run, open_run
from fmeta.cli._trained import LoadOptions, Trained, load, measure, moved
from fmeta.core import InputError
from fmeta.evaluation import Evaluation
from fmeta.evaluation._class_counts import ClassCounts
from fmeta.training._checkpoint import best_checkpoint, checkpoints
from fmeta.training._run_files import read_metrics

_EPISODES, _CLASSES, _PAIRS = 3, 20, 15  # shown at most


@dataclass(frozen=True, kw_only=True)
class ReportOptions(LoadOptions):
    """A page on a run: its figures, curves, sample episodes, confusions and recipe, in one HTML file."""

    run: tyro.conf.Positional[Path]
    """folder of the run, finished or not"""
    out: Path | None = None
    """the file; report.html in the folder of the run if left out"""
    tasks: int | None = None
    """test tasks; the recipe's number if left out"""


class Matrix(NamedTuple):
    """How often query examples of one class were taken for another."""

    names: list[str]
    counts: list[list[int]]  # [class][predicted class]
    elsewhere: list[int]  # [class] predictions that are not among the names
    classes: int  # in all


def report_command(arguments: list[str]) -> None:
    """Writes the page."""
    options = tyro.cli(ReportOptions, args=arguments, prog="fmeta report")
    run = open_run(options.run)
    tasks = options.tasks if options.tasks is not None else run.recipe.eval_tasks
    if tasks < 2:
        raise InputError(f"report(tasks={tasks}): expected at least 2, for an interval")
    out = options.out or options.run / "report.html"
    if not out.parent.is_dir():
        raise InputError(
            f"report(out={str(out)!r}): no folder {str(out.parent)!r}; expected a file in one that is there"
        )
    trained = result = None
    if options.checkpoint != "last" or checkpoints(run.folder / "checkpoints"):
        trained = load(run.folder, options)
        result = measure(trained, tasks)
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("fmeta", "cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = _run_facts(run, moved(run.recipe, options)) | _test_facts(trained, result, min(tasks, _EPISODES))
    page = pages.get_template("report.html").render(facts)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"report(out={str(out)!r}): {error}; expected a file that can be written") from error
    show.say(f"report: {out}")


def _run_facts(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What the folder tells without an evaluation."""
    saved = checkpoints(run.folder / "checkpoints")
    best = best_checkpoint(saved)
    lines = read_metrics(run.folder / "metrics.jsonl")
    written = [p for p in (run.folder / name for name in ("recipe.json", "metrics.jsonl")) if p.exists()]
    default = type(run.recipe)()
    fields = {f.name: (getattr(run.recipe, f.name), getattr(default, f.name)) for f in dataclasses.fields(run.recipe)}
    return {
        "folder": str(run.folder),
        "recipe": run.recipe,
        "steps": saved[-1][0] if saved else 0,
        "best": best,
        "seconds": _duration(_seconds(lines)),
        "date": _moment(max(p.stat().st_mtime for p in written)),
        "reported": _moment(time.time()),
        "charts": training_charts(lines, best),
        "validated": any(name.startswith("validation/") for line in lines for name in line),
        "changed": {name: pair for name, pair in fields.items() if pair[0] != pair[1]},
        "unchanged": {name: value for name, (value, standard) in fields.items() if value == standard},
        "environment": _environment(run, recipe),
    }


def _test_facts(trained: Trained | None, result: Evaluation | None, episodes: int) -> dict[str, Any]:
    """What the test tasks show; None where there is no checkpoint to test."""
    if trained is None or result is None:
        return {"tested": None}
    metric, pictured = trained.recipe.metric(), isinstance(trained.recipe, Images)
    return {
        "tested": trained.step,
        "metric": metric,
        "unit": "%" if show.scale(metric)[0] == 100 else "",
        "protocol": result.protocol,
        "figures": _figures(result, metric),
        "spoilt": int((~result.values[metric][:, -1].isfinite()).sum()),
        "stepping": trained.learner.inner is not None,
        "adaptation": adaptation_chart(result, metric) if len(result.steps) > 1 else None,
        "episodes": sample_episodes(trained, episodes) if pictured else [],
        "regressions": [] if pictured else regression_charts(trained, result, episodes),
        "class_figures": _class_figures(result),
        "matrix": _matrix(result.classes) if result.classes else None,
        "confused": result.classes.confused(_PAIRS) if result.classes else [],
    }


def _figures(result: Evaluation, metric: str) -> list[dict[str, Any]]:
    """A row for each number of adaptation steps, as `fmeta evaluate` prints it."""
    percent, digits = show.scale(metric)
    columns = {"mean": result.mean(metric), "half": result.interval(metric), "median": result.median(metric)}
    texts = {name: [f"{percent * value:.{digits}f}" for value in values] for name, values in columns.items()}
    return [{"step": step, **{name: texts[name][i] for name in texts}} for i, step in enumerate(result.steps)]


def _class_figures(result: Evaluation) -> list[tuple[int, list[str]]]:
    """Adaptation steps, and precision, recall, F1 and calibration error with their intervals, in percent."""
    if result.calibration is None:
        return []
    columns = [
        [f"{100 * mean:.2f} ± {100 * half:.2f}" for mean, half in zip(result.mean(n), result.interval(n), strict=True)]
        for n in ("precision", "recall", "f1")
    ]
    calibration = zip(result.calibration.error(), result.calibration.interval(), strict=True)
    columns.append([f"{100 * error:.2f} ({100 * low:.2f} to {100 * high:.2f})" for error, (low, high) in calibration])
    return [(step, [column[i] for column in columns]) for i, step in enumerate(result.steps)]


def _matrix(classes: ClassCounts) -> Matrix:
    """Of the classes most often confused, either way, where there are many; in the order of their names."""
    confusion, examples = classes.confusion(), classes.examples()
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    occurring = examples.nonzero()[:, 0]
    order = wrong[occurring].argsort(descending=True, stable=True)[:_CLASSES]
    chosen = occurring[order].sort().values
    counts = confusion[chosen][:, chosen]
    elsewhere = examples[chosen] - counts.sum(1)
    return Matrix([classes.names[i] for i in chosen.tolist()], counts.tolist(), elsewhere.tolist(), len(occurring))


def _environment(run: Run, recipe: Recipe) -> list[tuple[str, str, str]]:
    """What, which, and whether the run kept it or it is that of this report."""
    stored = json.loads((run.folder / "recipe.json").read_text())
    kept, now = "the run", "this report"
    return [
        ("fmeta", str(stored.get("fmeta")), kept),
        ("torch", str(stored.get("torch")), kept),
        ("compiled", run.scope, kept),
        ("fmeta", fmeta.__version__, now),
        ("torch", str(torch.__version__), now),
        ("Python", platform.python_version(), now),
        ("platform", platform.platform(), now),
        ("device", str(recipe.where()), now),
        ("processor threads", str(torch.get_num_threads()), now),
    ]


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Training time: a resumed run counts anew, so what each process reached is summed."""
    reached = [line["time/seconds"] for line in lines if isinstance(line.get("time/seconds"), int | float)]
    return sum(before for before, after in itertools.pairwise([*reached, 0.0]) if after < before)


def _duration(seconds: float) -> str:
    for unit, size in {"hours": 3600, "minutes": 60}.items():
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _moment(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))
