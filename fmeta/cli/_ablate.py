"""`fmeta ablate`: every combination of some fields of a recipe, over seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from fmeta.cli import _show as show
from fmeta.cli._recipe import Recipe
from fmeta.cli._recipes import recipe_class
from fmeta.cli._run import check_resume, open_run
from fmeta.cli._space import axes_of, words_of
from fmeta.cli._train import train_run
from fmeta.core import InputError
from fmeta.evaluation import t_interval
from fmeta.training import NonFiniteError


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Every combination of the fields that are given several values, separated by commas, over seeds."""

    seeds: int = 3
    """runs of each combination, with seeds counted up from --seed"""
    run_dir: Path | None = None
    """folder of the ablation; one that was begun goes on; a new one below runs/ if left out"""


class Combination(NamedTuple):
    """One point of the grid."""

    fields: dict[str, str]  # as they were given
    runs: dict[Path, Recipe]  # by folder, one for each seed


class Figures(NamedTuple):
    """The headline figure of one combination, after the last adaptation step."""

    means: list[float]  # of each run over its test tasks, without those that diverged
    over_seeds: float  # half of Student's 95% interval of their mean; NaN for a single run
    over_tasks: float  # half of the normal 95% interval of their mean, were there these seeds only

    @property
    def mean(self) -> float:
        return statistics.fmean(self.means) if self.means else math.nan


def ablate_command(name: str, arguments: list[str]) -> None:
    """Trains what is not trained yet, writes ablation.json and ablation.png, and prints the table."""
    options, grid = _parse(name, arguments)
    recipe = grid[0][1]
    root = options.run_dir or Path("runs", f"ablation-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    combinations = _combinations(root, grid, options.seeds)
    for combination in combinations:  # what does not fit is named before anything trains
        states = [_state(folder, each) for folder, each in combination.runs.items()]
        if set(states) != {"finished"}:
            next(iter(combination.runs.values())).experiment()
    diverged = _train_all(root, {folder: each for c in combinations for folder, each in c.runs.items()})

    metric = recipe.metric()
    found = [_figures([folder for folder in c.runs if folder not in diverged], metric) for c in combinations]
    stored = [
        {"fields": c.fields, "runs": [str(folder.relative_to(root)) for folder in c.runs], "mean": figures.mean}
        | figures._asdict()
        for c, figures in zip(combinations, found, strict=True)
    ]
    facts = {"recipe": recipe.name, "metric": metric, "seeds": options.seeds}
    (root / "ablation.json").write_text(json.dumps({**facts, "combinations": stored}, indent=1) + "\n")
    _plot(root / "ablation.png", combinations, found, metric)
    show.say(f"{recipe.name}, {metric} after the last adaptation step:")
    show.console.print(_table(combinations, found, metric))
    show.say(f"kept in: {root}")


def _train_all(root: Path, runs: dict[Path, Recipe]) -> set[Path]:
    """Trains what is not finished, and returns the folders of runs that diverged."""
    diverged = set()
    for number, (folder, recipe) in enumerate(runs.items(), 1):
        state = _state(folder, recipe)
        show.say(f"run {number} of {len(runs)}: {folder}{' is finished' if state == 'finished' else ''}")
        if state == "finished":
            continue
        try:
            train_run(recipe, folder, resume=state == "begun")
        except NonFiniteError as error:
            show.say(f"it diverged: {error}")
            diverged.add(folder)
        except (KeyboardInterrupt, SystemExit):
            show.say(f"or go on with the whole ablation: the same command with --run-dir {root}")
            raise
    return diverged


def _parse(name: str, words: Sequence[str]) -> tuple[AblateOptions, list[tuple[dict[str, str], Recipe]]]:
    """The grid as it was given, each point of it parsed by the types of the recipe's fields."""
    kind = recipe_class(name)
    fields = [("recipe", kind), ("options", AblateOptions)]
    both = dataclasses.make_dataclass("Ablate", fields, frozen=True, namespace={"__doc__": AblateOptions.__doc__})
    start = both(kind(), AblateOptions())
    fixed, axes = axes_of("ablate", kind, words)
    if "seed" in axes:
        raise InputError(
            f"ablate(seed={','.join(axes['seed'])!r}): expected one number, where seeds begin; --seeds says how many"
        )
    grid = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        given = [word for field, value in point.items() for word in words_of("ablate", kind, field, value)]
        bare = (tyro.conf.OmitArgPrefixes,)
        parsed = tyro.cli(both, args=[*fixed, *given], prog=f"fmeta ablate {name}", default=start, config=bare)
        grid.append((point, parsed.recipe))
    options = parsed.options
    if options.seeds < 1:
        raise InputError(f"ablate(seeds={options.seeds}): expected at least 1")
    return options, grid


def _combinations(root: Path, grid: Sequence[tuple[dict[str, str], Recipe]], seeds: int) -> list[Combination]:
    """With a folder for every run, the same for the same command."""
    named: dict[str, Combination] = {}
    for fields, recipe in grid:
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(f"{f}={value}" for f, value in fields.items())) or "recipe"
        if name in named:
            raise InputError(f"ablate: two combinations would share the folder {name!r}; leave out one of the values")
        each = [dataclasses.replace(recipe, seed=recipe.seed + n) for n in range(seeds)]
        named[name] = Combination(fields, {root / name / f"seed-{r.seed}": r for r in each})
    return list(named.values())


def _state(folder: Path, recipe: Recipe) -> str:
    """ "new", "begun" or "finished". Raises InputError where the folder holds another run."""
    if not (folder / "recipe.json").exists():
        return "new"
    run = open_run(folder)
    check_resume(run, recipe)
    return "finished" if run.recipe == recipe and _evaluated(folder) else "begun"


def _evaluated(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "evaluation.json").read_text()))
    except (OSError, ValueError):  # none, or a damaged one
        return False


def _figures(folders: Sequence[Path], metric: str) -> Figures:
    found = [json.loads((folder / "evaluation.json").read_text())[metric] for folder in folders]
    means = [of_run["mean"][-1] for of_run in found]
    halves = [of_run["interval95"][-1] for of_run in found]  # independent: each seed has test tasks of its own
    over_tasks = math.hypot(*halves) / len(halves) if halves else math.nan
    return Figures(means, t_interval(means), over_tasks)


def _table(combinations: Sequence[Combination], found: Sequence[Figures], metric: str) -> Table:
    percent, digits = show.scale(metric)
    table = Table()
    for field in combinations[0].fields:
        table.add_column(field, overflow="fold")
    for column in (metric, "95% over seeds", "95% over tasks", "runs", "diverged"):
        table.add_column(column, justify="right")
    for combination, figures in zip(combinations, found, strict=True):
        halves = [f"±{percent * half:.{digits}f}" for half in (figures.over_seeds, figures.over_tasks)]
        counts = [str(len(combination.runs)), str(len(combination.runs) - len(figures.means))]
        table.add_row(*combination.fields.values(), f"{percent * figures.mean:.{digits}f}", *halves, *counts)
    return table


def _plot(path: Path, combinations: Sequence[Combination], found: Sequence[Figures], metric: str) -> None:
    """Each run, and the mean of each combination with its 95% interval over seeds."""
    figure = Figure(figsize=(2 + 1.2 * len(found), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, figures in enumerate(found):
        axes.plot([place] * len(figures.means), figures.means, ".", color="grey")
        axes.errorbar([place], [figures.mean], yerr=[figures.over_seeds], marker="o", capsize=4, color="tab:blue")
    labels = ["\n".join(f"{field} {value}" for field, value in c.fields.items()) for c in combinations]
    axes.set_xticks(range(len(found)), labels, fontsize="small")
    axes.set_ylabel(f"query {metric}")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=110)
