"""What came of a study: the table of its best trials, its history, and which field decides."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from fmeta.cli import _show as show
from fmeta.cli._study import Study, state_of
from fmeta.core import InputError

_SHOWN = 5  # trials of the table
_FEWEST = 4  # trials that the importance of a field can be read from


def conclude(study: Study, trials: int, sampler: str, grid_points: int, command: str) -> None:
    """Plots and prints the study as it stands. Raises InputError where every trial failed."""
    study.keep()
    found, best = study.trials(), study.ranked()
    count = Counter(state_of(trial) for trial in found)
    if count["failed"] and count["failed"] + count["broken off"] == len(found):
        reason = [trial.user_attrs["error"] for trial in found if state_of(trial) == "failed"][-1]
        raise InputError(f"tune(trials={trials}): every trial failed, the last so: {reason}")
    show.say(f"{', '.join(f'{number} {state}' for state, number in count.items())}; kept in {study.folder}")
    if best:
        _plot_history(study)
        if len(best) < _FEWEST or len(study.space) < 2:
            show.say(f"no importance.png: it takes {_FEWEST} finished trials and two fields")
        else:
            _plot_importance(study)
        show.say(f"the best by {study.recipe.metric()} on the validation tasks:")
        show.console.print(_table(study, best[:_SHOWN]))
        show.say(f"train the best: fmeta train --recipe {shlex.quote(str(study.folder / 'best.json'))}")
    if count["failed"] >= trials:
        show.say(f"{count['failed']} trials failed, so no more are begun")
    elif sampler == "grid" and count["finished"] + count["pruned"] + count["running"] < trials:
        show.say(f"the grid is exhausted: it has {len(study.grid(grid_points))} combinations")
    else:
        show.say(f"more trials: {command} {2 * trials}")


def _table(study: Study, trials: list[Any]) -> Table:
    metric = study.recipe.metric()
    percent, digits = show.scale(metric)
    table = Table("trial")
    for field in study.space:
        table.add_column(field, overflow="fold")
    for column in (metric, "seconds"):
        table.add_column(column, justify="right")
    for trial in trials:
        fields = [short(study.fields_of(trial)[field]) for field in study.space]
        seconds = f"{trial.duration.total_seconds():.1f}"
        table.add_row(str(trial.number), *fields, f"{percent * trial.value:.{digits}f}", seconds)
    return table


def _plot_history(study: Study) -> None:
    """Each trial's figure, and the best so far."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for state, marker, color in (("pruned", "x", "grey"), ("finished", "o", "tab:blue")):
        shown = [(t.number, t.value) for t in study.trials() if state_of(t) == state]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker, color=color, label=state)
    finished = sorted(study.ranked(), key=lambda trial: trial.number)
    best = itertools.accumulate((t.value for t in finished), min if study.minimises else max)
    axes.step([t.number for t in finished], list(best), where="post", color="tab:red", label="best so far")
    if study.minimises:
        axes.set_yscale("log")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {study.recipe.metric()}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(study.folder / "history.png", dpi=110)


def _plot_importance(study: Study) -> None:
    """What decides whether a trial is among the best, by field."""
    shares = study.importance()
    figure = Figure(figsize=(6, 1.2 + 0.4 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(list(shares)[::-1], list(shares.values())[::-1])
    axes.set_xlabel("importance (PED-ANOVA)")
    figure.savefig(study.folder / "importance.png", dpi=110)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
