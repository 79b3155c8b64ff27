"""The page of `fmeta report`: what it shows, from the folder of a run and its test tasks."""

from __future__ import annotations

import base64
import io
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import torch
from PIL import Image

from fmeta._errors import InputError
from fmeta._version import __version__
from fmeta.cli._report_charts import adaptation_chart, task_chart, training_charts
from fmeta.evaluation import ClassCounts, Evaluation
from fmeta.runs import Chart, Episode, Metric, Run, Trained
from fmeta.runs._answers import answered, shown_steps
from fmeta.runs._evaluations import read_evaluation
from fmeta.runs._experiment import Experiment, experiment
from fmeta.runs._folder import open_run
from fmeta.runs._load import load, measure, moved
from fmeta.runs._options import OptionError
from fmeta.runs._shown import Item
from fmeta.training._checkpoint import best_checkpoint, checkpoints
from fmeta.training._run_files import read_metrics

if TYPE_CHECKING:
    from fmeta.cli._report import ReportOptions

_TASKS, _CLASSES, _PAIRS = 3, 20, 15  # shown at most


class Matrix(NamedTuple):
    """How often query examples of one class were taken for another."""

    names: list[str]
    counts: list[list[int]]  # [class][predicted class]
    elsewhere: list[int]  # [class] predictions that are not among the names
    classes: int  # in all


def page_of(given: ReportOptions, tell: Callable[[str], None]) -> str:
    """The whole page. Raises InputError where there is no run, or not that checkpoint."""
    run = open_run(given.run)
    of = moved(run.experiment, given.device, given.data_dir)
    tasks = of.run.eval_tasks if given.tasks is None else given.tasks
    if tasks < 2:
        raise OptionError("tasks", tasks, "expected at least 2, for an interval")
    trained = result = None
    if given.checkpoint != "last" or checkpoints(run.folder / "checkpoints"):
        trained = load(run.folder, checkpoint=given.checkpoint, device=given.device, data_dir=given.data_dir)
        result = read_evaluation(run.folder, trained, tasks) if given.data_dir is None else None
        if result is None:
            tell(f"testing step {trained.step} on {tasks} tasks")
            result = measure(trained, tasks, tell=tell)
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("fmeta", "cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tell("drawing")
    facts = _run_facts(run, of) | _test_facts(trained, result, min(tasks, _TASKS))
    return pages.get_template("report.html").render(facts)


def _run_facts(run: Run, of: Experiment) -> dict[str, Any]:
    """What the folder tells without an evaluation."""
    saved = checkpoints(run.folder / "checkpoints")
    best = best_checkpoint(saved)
    lines = read_metrics(run.folder / "metrics.jsonl")
    written = [p for p in (run.folder / name for name in ("recipe.json", "metrics.jsonl")) if p.exists()]
    chosen, usual = run.experiment.options(), _usual(run.experiment)
    return {
        "folder": str(run.folder),
        "recipe": of.recipe.name,
        "learner": of.learner.name if of.learner is not None else "its own learner",
        "run": of.run,
        "steps": saved[-1][0] if saved else 0,
        "iterations": of.run.iterations if run.iterations is None else run.iterations,
        "best": best,
        "seconds": _duration(_seconds(lines)),
        "date": _moment(max(p.stat().st_mtime for p in written)),
        "reported": _moment(time.time()),
        "charts": training_charts(lines, best),
        "validated": any(name.startswith("validation/") for line in lines for name in line),
        "changed": {name: (v, usual.get(name)) for name, v in chosen.items() if v != usual.get(name)},
        "unchanged": {name: v for name, v in chosen.items() if v == usual.get(name)},
        "environment": _environment(run, of),
    }


def _usual(of: Experiment) -> dict[str, Any]:
    """The options of the recipe without a choice."""
    kind = type(of.recipe)
    try:
        return experiment(kind if of.learner is not None else of.recipe).options()
    except (InputError, TypeError):  # a recipe of one's own that cannot be made without arguments
        return {}


def _test_facts(trained: Trained | None, result: Evaluation | None, count: int) -> dict[str, Any]:
    """What the test tasks show; None where there is no checkpoint to test."""
    if trained is None or result is None:
        return {"tested": None, "small": False}
    metric = trained.experiment.recipe.metric
    shown = _shown(trained, result, count)
    return {
        "tested": trained.step,
        "label": metric.label or metric.name,
        "unit": "%" if metric.percent else "",
        "protocol": result.protocol,
        "figures": _figures(result, metric),
        "spoilt": int((~result.values[metric.name][:, -1].isfinite()).sum()),
        "stepping": trained.learner.inner is not None,
        "adaptation": adaptation_chart(result, metric) if len(result.steps) > 1 else None,
        "episodes": [_drawn(one) for one in shown if isinstance(one, Episode)],
        "task_charts": [
            task_chart(one.figure, one.note, i) for i, one in enumerate(shown, 1) if isinstance(one, Chart)
        ],
        "shown": bool(shown),
        "small": _small(shown),
        "class_figures": _class_figures(result),
        "matrix": _matrix(result.classes) if result.classes else None,
        "confused": result.classes.confused(_PAIRS) if result.classes else [],
    }


def _shown(trained: Trained, result: Evaluation, count: int) -> list[Episode | Chart]:
    """The first test tasks, as the recipe draws them."""
    recipe = trained.experiment.recipe
    found = [recipe.show(one) for one in answered(trained, count, shown_steps(trained, result))]
    return [one for one in found if one is not None]


def _drawn(episode: Episode) -> dict[str, Any]:
    """An episode with its examples as the page shows them."""
    return {
        "support": {name: [_item(item) for item in items] for name, items in episode.support.items()},
        "answers": [answer._asdict() | {"item": _item(answer.item)} for answer in episode.answers],
        "left_out": episode.left_out,
    }


def _small(shown: Sequence[Episode | Chart]) -> bool:
    """Whether pictures have so few pixels that each is to be seen."""
    items = [answer.item for one in shown if isinstance(one, Episode) for answer in one.answers]
    return all(max(item.shape[:2]) <= 40 for item in items if not isinstance(item, str))


def _item(item: Item) -> dict[str, str]:
    """A picture as a data URI, or a text; the other is empty."""
    if isinstance(item, str):
        return {"picture": "", "text": item}
    content = io.BytesIO()
    Image.fromarray(item.cpu().contiguous().numpy()).save(content, "PNG", optimize=True)
    return {"picture": "data:image/png;base64," + base64.b64encode(content.getvalue()).decode(), "text": ""}


def _figures(result: Evaluation, metric: Metric) -> list[dict[str, Any]]:
    """A row for each number of adaptation steps, as `fmeta evaluate` prints it."""
    name = metric.name
    columns = {"mean": result.mean(name), "half": result.interval(name), "median": result.median(name)}
    texts = {column: [metric.text(value) for value in values] for column, values in columns.items()}
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


def _environment(run: Run, of: Experiment) -> list[tuple[str, str, str]]:
    """What, which, and whether the run kept it or it is that of this report."""
    stored = json.loads((run.folder / "recipe.json").read_text(encoding="utf-8"))
    kept, now = "the run", "this report"
    return [
        ("fmeta", str(stored.get("fmeta")), kept),
        ("torch", str(stored.get("torch")), kept),
        ("compiled", run.scope, kept),
        ("fmeta", __version__, now),
        ("torch", str(torch.__version__), now),
        ("Python", platform.python_version(), now),
        ("platform", platform.platform(), now),
        ("device", str(of.device()), now),
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
