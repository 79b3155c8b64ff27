"""Figures of runs, ablations and studies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmeta.evaluation import Evaluation
from fmeta.runs._recipe import Metric

if TYPE_CHECKING:
    from fmeta.runs._ablation import Figures
    from fmeta.runs._study import Study


def blank(width: float, height: float) -> Figure:
    """A figure that is drawn without a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str) -> str:
    """For a label of matplotlib, where a dollar sign would begin a formula and an underscore hide it."""
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def curve_figure(result: Evaluation, metric: Metric) -> Figure:
    """A figure over adaptation steps, with 95% intervals."""
    figure = blank(5, 3.4)
    axes = figure.subplots()
    axes.errorbar(result.steps, result.mean(metric.name), yerr=result.interval(metric.name), marker="o", capsize=3)
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel(metric.label or metric.name)
    axes.set_xticks(result.steps)
    axes.grid(alpha=0.3)
    return figure


def seeds_figure(found: Mapping[str, Figures], metric: Metric) -> Figure:
    """Each run, and the mean of each combination with its 95% interval over seeds, by the names of combinations."""
    figure = blank(2 + 1.2 * len(found), 4)
    axes = figure.subplots()
    for place, figures in enumerate(found.values()):
        axes.plot([place] * len(figures.means), figures.means, ".", color="grey")
        axes.errorbar([place], [figures.mean], yerr=[figures.over_seeds], marker="o", capsize=4, color="tab:blue")
    axes.set_xticks(range(len(found)), list(map(literal, found)), fontsize="small")
    axes.set_ylabel(metric.label or metric.name)
    axes.grid(alpha=0.3, axis="y")
    return figure


def history_figure(study: Study) -> Figure:
    """Each trial's figure, and the best so far."""
    from fmeta.runs._study import state_of

    figure = blank(6, 4)
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
    axes.set_ylabel(f"validation {study.chooser.recipe.metric.name}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def importance_figure(study: Study) -> Figure:
    """What decides whether a trial is among the best, by option."""
    shares = study.importance()
    figure = blank(6, 1.2 + 0.4 * len(shares))
    axes = figure.subplots()
    axes.barh(list(shares)[::-1], list(shares.values())[::-1])
    axes.set_xlabel("importance (PED-ANOVA)")
    return figure
