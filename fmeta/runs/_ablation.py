"""Every combination of some options, over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmeta._errors import InputError
from fmeta.core._checks import check_counts
from fmeta.evaluation import t_interval
from fmeta.runs._experiment import Experiment
from fmeta.runs._folder import check_resume, open_run
from fmeta.runs._grid import Point
from fmeta.runs._load import stored_evaluation
from fmeta.runs._options import spelled_out
from fmeta.runs._plots import seeds_figure
from fmeta.runs._train import Progress, Tell, train
from fmeta.training import NonFiniteError
from fmeta.training._run_files import write_whole


class Combination(NamedTuple):
    """One point of the grid."""

    fields: dict[str, Any]
    runs: dict[Path, Experiment]  # by folder, one for each seed


class Figures(NamedTuple):
    """The headline figure of one combination, after the last adaptation step."""

    means: list[float]  # of each run over its test tasks, without those that diverged
    over_seeds: float  # half of Student's 95% interval of their mean; NaN for a single run
    over_tasks: float  # half of the normal 95% interval of their mean, were there these seeds only

    @property
    def mean(self) -> float:
        return statistics.fmean(self.means) if self.means else math.nan


def ablate(
    points: Sequence[Point],
    folder: str | Path,
    *,
    seeds: int = 3,
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> list[tuple[Combination, Figures]]:
    """Trains every point over seeds, as far as it is not trained below the folder; writes ablation.json and
    ablation.png there.

        of = fmeta.runs.experiment("sinusoid", iterations=100, compile="none", eval_tasks=100)
        points = fmeta.runs.grid(of, {"inner_lr": [0.01, 0.1]})
        for combination, figures in fmeta.runs.ablate(points, "runs/inner", seeds=2):
            print(combination.fields, figures.mean, figures.over_seeds)

    Args:
        points: from `grid`.
        folder: of the ablation; one that was begun goes on.
        seeds: runs of each point, with seeds counted up from that of its experiment.
        tell: takes a line for people before each run.
        progress: makes what shows the steps of a run.

    Raises:
        InputError: before anything trains, for what does not fit, and where the folder holds other runs.
    """
    check_counts("ablate", seeds=seeds)
    if not points:
        raise InputError("ablate(points=[]): expected at least one; fmeta.runs.grid makes them")
    folder, tell = Path(folder), tell or (lambda text: None)
    combinations = _combinations(folder, points, seeds)
    for combination in combinations:
        states = [_state(place, each) for place, each in combination.runs.items()]
        if set(states) != {"finished"}:
            next(iter(combination.runs.values())).ready()
    runs = {place: each for c in combinations for place, each in c.runs.items()}
    diverged = _train_all(folder, runs, tell, progress)
    metric = points[0].experiment.recipe.metric.name
    found = [_figures([place for place in c.runs if place not in diverged], metric) for c in combinations]
    stored = [
        {"fields": c.fields, "runs": [str(place.relative_to(folder)) for place in c.runs], "mean": figures.mean}
        | figures._asdict()
        for c, figures in zip(combinations, found, strict=True)
    ]
    facts = {"recipe": points[0].experiment.recipe.name, "metric": metric, "seeds": seeds}
    write_whole(folder / "ablation.json", json.dumps({**facts, "combinations": stored}, indent=1) + "\n")
    shown = {
        "\n".join(f"{n} {spelled_out(v)}" for n, v in c.fields.items()): f
        for c, f in zip(combinations, found, strict=True)
    }
    seeds_figure(shown, points[0].experiment.recipe.metric).savefig(folder / "ablation.png", dpi=110)
    return list(zip(combinations, found, strict=True))


def _train_all(folder: Path, runs: dict[Path, Experiment], tell: Tell, progress: Progress | None) -> set[Path]:
    """Trains what is not finished, and returns the folders of runs that diverged."""
    diverged = set()
    for number, (place, each) in enumerate(runs.items(), 1):
        state = _state(place, each)
        tell(f"run {number} of {len(runs)}: {place}{' is finished' if state == 'finished' else ''}")
        if state == "finished":
            continue
        try:
            train(each, place, resume=state == "begun", tell=tell, progress=progress)
        except NonFiniteError as error:
            tell(f"it diverged: {error}")
            diverged.add(place)
        except (KeyboardInterrupt, SystemExit):
            tell(f"or go on with the whole ablation: the same command with --run-dir {folder}")
            raise
    return diverged


def _combinations(folder: Path, points: Sequence[Point], seeds: int) -> list[Combination]:
    """With a folder for every run, the same for the same grid."""
    named: dict[str, Combination] = {}
    for fields, of in points:
        name = (
            re.sub(r"[^\w.,=+-]", "_", ",".join(f"{f}={spelled_out(value)}" for f, value in fields.items())) or "recipe"
        )
        if name in named:
            raise InputError(f"ablate: two combinations would share the folder {name!r}; leave out one of the values")
        each = [dataclasses.replace(of, run=dataclasses.replace(of.run, seed=of.run.seed + n)) for n in range(seeds)]
        named[name] = Combination(fields, {folder / name / f"seed-{e.run.seed}": e for e in each})
    return list(named.values())


def _state(place: Path, of: Experiment) -> str:
    """ "new", "begun" or "finished". Raises InputError where the folder holds another run."""
    if not (place / "recipe.json").exists():
        return "new"
    run = open_run(place)
    check_resume(run, of)
    return "finished" if run.experiment == of and stored_evaluation(place) else "begun"


def _figures(places: Sequence[Path], metric: str) -> Figures:
    found = [(stored_evaluation(place) or {})[metric] for place in places]
    means = [of_run["mean"][-1] for of_run in found]
    halves = [of_run["interval95"][-1] for of_run in found]  # independent: each seed has test tasks of its own
    over_tasks = math.hypot(*halves) / len(halves) if halves else math.nan
    return Figures(means, t_interval(means), over_tasks)
