"""`fmeta ablate`: every combination of some options, over seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmeta.cli._choose import vary
from fmeta.runs._grid import Point, grid
from fmeta.runs._options import OptionError, spelled_out

if TYPE_CHECKING:
    from rich.table import Table

    from fmeta.runs import Metric
    from fmeta.runs._ablation import Combination, Figures


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Every combination of the options that are given several values, separated by commas, over seeds.

    With `--recipe`, as of train, what stands there stands in for the defaults.
    """

    seeds: int = 3
    """runs of each combination, with seeds counted up from --seed"""
    run_dir: Path | None = None
    """folder of the ablation; one that was begun goes on; a new one below runs/ if left out"""


def ablate_command(arguments: list[str]) -> Callable[[], Any]:
    """Trains what is not trained yet, writes ablation.json and ablation.png, and prints the table."""
    found = vary("ablate", arguments, AblateOptions(), ranges=False)
    if "seed" in found.axes:
        values = ",".join(map(str, found.axes["seed"]))
        raise OptionError("seed", values, "expected one number, where seeds begin; --seeds says how many")
    if found.own.seeds < 1:
        raise OptionError("seeds", found.own.seeds, "expected at least 1")
    points = grid(found.chooser, found.axes)
    return lambda: _ablate(points, found.own)


def _ablate(points: Sequence[Point], own: AblateOptions) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.runs._ablation import ablate

    recipe = points[0].experiment.recipe
    folder = own.run_dir or Path("runs", f"ablation-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    with printing.measurements():
        found = ablate(points, folder, seeds=own.seeds, tell=printing.say, progress=printing.bar("none"))
    printing.say(f"{recipe.name}, {recipe.metric.name} after the last adaptation step:")
    printing.console.print(_table(found, recipe.metric))
    printing.say(f"kept in: {folder}")


def _table(found: Sequence[tuple[Combination, Figures]], metric: Metric) -> Table:
    from fmeta.cli._printing import table

    fields, rows = list(dict.fromkeys(field for combination, _ in found for field in combination.fields)), []
    for combination, figures in found:
        over_seeds = f"±{metric.text(figures.over_seeds)}" if len(figures.means) > 1 else "one run"
        halves = [over_seeds if figures.means else "–", f"±{metric.text(figures.over_tasks)}" if figures.means else "–"]
        counts = [str(len(combination.runs)), str(len(combination.runs) - len(figures.means))]
        values = [spelled_out(combination.fields[f]) if f in combination.fields else "–" for f in fields]
        rows.append([*values, metric.text(figures.mean), *halves, *counts])
    return table(fields, [metric.name, "95% over seeds", "95% over tasks", "runs", "diverged"], rows)
