"""Figures that more than one command shows."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmeta.evaluation import Evaluation
from fmeta.runs._recipe import Metric


def blank(width: float, height: float) -> Figure:
    """A figure that is drawn without a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
