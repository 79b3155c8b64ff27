"""`fmeta tune`: the best values of some options of a recipe, judged on its validation tasks."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmeta._errors import InputError
from fmeta.cli._choose import Varied, vary
from fmeta.cli._words import split

if TYPE_CHECKING:
    from rich.table import Table

    from fmeta.runs import Study

_SHOWN = 5  # trials of the table
_FEWEST = 4  # trials that the importance of an option can be read from


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Looks for the best values of the options that are given a range, LOW:HIGH or LOW:HIGH:log, or several values.

    A trial is a run that is judged by the recipe's figure on its validation tasks after the last meta-step, and is
    given up where it falls behind the others. Without such an option: the rates of both loops, ten times lower to ten
    times higher, and 1 to 5 inner steps. With `--recipe`, as of train, what stands there stands in for the defaults.
    """

    trials: int = 20
    """trials of the study, finished or given up, those of earlier commands included"""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """who proposes: the tree-structured Parzen estimator, chance, or every combination in turn"""
    grid_points: int = 5
    """points that the grid has of a range"""
    workers: int = 1
    """processes that work on the study"""
    storage: str | None = None
    """URL of the database of the trials; study.db in the study's folder if left out"""
    run_dir: Path | None = None
    """folder of the study; one that was begun goes on; a new one below runs/ if left out"""


def tune_command(arguments: list[str]) -> Callable[[], Any]:
    """Works on the study until it has its trials, and writes and prints what came of them."""
    found = vary("tune", arguments, TuneOptions(), ranges=True)
    return lambda: _tune(found, arguments)


def _tune(found: Varied, arguments: list[str]) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.execution._interrupt import interruptible
    from fmeta.runs._processes import ended_by_sigterm
    from fmeta.runs._tuning import Search, study, usual_space
    from fmeta.training import SaveError

    own, name = found.own, found.chooser.recipe.name
    space = found.axes or usual_space(found.chooser.experiment({}))
    folder = own.run_dir or Path("runs", f"tune-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    printing.say(f"{name}: {', '.join(f'{option} {values}' for option, values in space.items())}; study in {folder}")
    command = _again(arguments, folder)
    search = Search(own.trials, own.sampler, own.grid_points, own.workers, own.storage)
    try:
        with ended_by_sigterm(), interruptible(), printing.measurements():
            done = study(found.chooser, space, folder, search=search, tell=printing.say)
            _conclude(done, search, command)
    except (KeyboardInterrupt, SystemExit):
        printing.say(f"interrupted; go on with: {command} {own.trials}")
        raise
    except SaveError as error:
        raise SaveError(f"{error}; go on with: {command} {own.trials}") from error


def _again(arguments: list[str], folder: Path) -> str:
    """The command to go on with, but for the number of trials."""
    words = split("tune", arguments)
    words = words.without("run_dir", "trials")
    return shlex.join(["fmeta", "tune", *words.flat(), "--run-dir", str(folder), "--trials"])


def _conclude(study: Study, search: Any, command: str) -> None:
    """Plots and prints the study as it stands. Raises InputError where every trial failed."""
    from collections import Counter

    from fmeta.cli import _printing as printing
    from fmeta.runs._plots import history_figure, importance_figure
    from fmeta.runs._study import state_of

    found, best, metric = study.trials(), study.ranked(), study.chooser.recipe.metric
    count = Counter(state_of(trial) for trial in found)
    if count["failed"] and count["failed"] + count["broken off"] == len(found):
        reason = [trial.user_attrs["error"] for trial in found if state_of(trial) == "failed"][-1]
        raise InputError(f"tune(trials={search.trials}): every trial failed, the last so: {reason}")
    printing.say(f"{', '.join(f'{number} {state}' for state, number in count.items())}; kept in {study.folder}")
    if best:
        history_figure(study).savefig(study.folder / "history.png", dpi=110)
        if len(best) < _FEWEST or len(study.space) < 2:
            printing.say(f"no importance.png: it takes {_FEWEST} finished trials and two options")
        else:
            importance_figure(study).savefig(study.folder / "importance.png", dpi=110)
        printing.say(f"the best by {metric.name} on the validation tasks:")
        printing.console.print(_table(study, best[:_SHOWN]))
        printing.say(f"train the best: fmeta train --recipe {shlex.quote(str(study.folder / 'best.json'))}")
    if count["failed"] >= search.trials:
        printing.say(f"{count['failed']} trials failed, so no more are begun")
    elif search.sampler == "grid" and count["finished"] + count["pruned"] + count["running"] < search.trials:
        printing.say(f"the grid is exhausted: it has {len(study.grid(search.grid_points))} combinations")
    else:
        printing.say(f"more trials: {command} {2 * search.trials}")


def _table(study: Study, trials: Sequence[Any]) -> Table:
    from fmeta.cli._printing import table
    from fmeta.runs._tuning import short

    metric = study.chooser.recipe.metric
    rows = []
    for trial in trials:
        fields = study.fields_of(trial)
        values = [short(fields[option]) if option in fields else "–" for option in study.space]
        rows.append([str(trial.number), *values, metric.text(trial.value), f"{trial.duration.total_seconds():.1f}"])
    return table(["trial", *study.space], [metric.name, "seconds"], rows)
