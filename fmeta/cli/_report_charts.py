"""The charts of a report: drawn by matplotlib, as SVG that takes its colours and font from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

from fmeta.evaluation import Evaluation
from fmeta.runs import Metric
from fmeta.runs._plots import curve_figure, literal

_POINTS = 400  # of a line, at most: more would only make the page heavy
_SHARES = ("step", "sampling", "validation", "checkpoint")
_NAMESPACE = re.compile(r"\{.*\}")
# matplotlib's first colours by what the page calls them, which is lighter on a dark screen
_COLOURS = {"#000000": "currentColor"} | {
    colour: f"var(--colour-{number})"
    for number, colour in enumerate(("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"))
}

Line = Mapping[str, Any]  # of metrics.jsonl
Series = list[tuple[float, float]]  # meta-step, value


class Chart(NamedTuple):
    title: str
    picture: Markup  # an `<svg>` element
    note: str  # what there is to see, in words and numbers


def training_charts(lines: Sequence[Line], best: int | None) -> list[Chart]:
    """Everything that the metrics tell over the meta-steps; `best` is the step of the best checkpoint."""
    names = dict.fromkeys(name for line in lines for name in line if name != "step" and "/" not in name)
    groups: dict[str, list[str]] = {}
    for name in names:  # mann's "instance 1", "instance 2" … are one chart
        points = _series(lines, name)
        if points and (name != "skipped" or any(value for _, value in points)):
            groups.setdefault(re.sub(r" \d+$", "", name).replace("_", " "), []).append(name)
    charts = [_curves(title, group, lines, best) for title, group in groups.items()]
    if any("lr/mean" in line for line in lines):
        charts.append(_rates(lines))
    for name, title in {"time/tasks_per_second": "tasks per second", "time/flop_per_second": "FLOP per second"}.items():
        if points := _series(lines, name):
            charts.append(_speed(title, points))
    return [*charts, _shares(lines)] if any(f"time/{_SHARES[0]}" in line for line in lines) else charts


def adaptation_chart(result: Evaluation, metric: Metric) -> Chart:
    """The metric over adaptation steps."""
    figures = zip(result.steps, result.mean(metric.name), result.interval(metric.name), strict=True)
    told = ", ".join(f"{mean:.4g} ± {half:.2g} after {step}" for step, mean, half in figures)
    note = f"Mean over the test tasks, with 95% intervals: {told}."
    title = f"{metric.label or metric.name} by adaptation steps"
    return Chart(title, inline(curve_figure(result, metric), "adaptation", note), note)


def task_chart(figure: Figure, note: str, number: int) -> Chart:
    """A test task as its recipe draws it."""
    title = f"test task {number}"
    return Chart(title, inline(figure, f"task-{number}", f"{title}. {note}"), note)


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """As an `<svg>` element of the page. The name tells it from the page's other figures."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # text as text; ids of its own
        figure.savefig(text, format="svg", transparent=True)
    root = ElementTree.fromstring(text.getvalue())
    used = set(re.findall(r"#(\w+)[\")]", text.getvalue()))
    for element in list(root.iter()):
        for child in [c for c in element if _NAMESPACE.sub("", c.tag) in ("metadata", "style")]:
            element.remove(child)
        element.tag = _NAMESPACE.sub("", element.tag)  # which HTML does without
        element.attrib = {_NAMESPACE.sub("", n): v for n, v in element.attrib.items() if n != "id" or v in used}
        if "style" in element.attrib:
            style = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", element.attrib["style"])
            element.attrib["style"] = re.sub("#[0-9a-f]{6}", lambda m: _COLOURS.get(m[0], m[0]), style)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _curves(title: str, names: Sequence[str], lines: Sequence[Line], best: int | None) -> Chart:
    """Figures of training, and of validation where it has them."""
    figure, axes = _empty()
    told = []
    for name in names:
        label, checks = "training" if len(names) == 1 else name, _series(lines, f"validation/{name}")
        for what, points, mark in ((label, _series(lines, name), ""), (f"validation {name}", checks, "o")):
            if points:
                _draw(axes, points, label=literal(what), marker=mark)  # which would begin a formula
                told.append(f"{what} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
        for step, value in [point for point in checks if point[0] == best]:
            axes.plot([step], [value], "*", markersize=12, color="C3", label="best checkpoint")
            told.append(f"{value:.4g} at the best checkpoint, of meta-step {step}")
    _scale(axes)
    if len(told) > 1:
        axes.legend(frameon=False)
    note = _sentence("; ".join(told))
    if len(lines) > _POINTS:
        note += f" A point is the mean of {math.ceil(len(lines) / _POINTS)} lines of metrics.jsonl."
    return Chart(title, inline(figure, f"curve-{title}", f"{title} over meta-steps. {note}"), note)


def _speed(title: str, points: Series) -> Chart:
    figure, axes = _empty()
    _draw(axes, points)
    _scale(axes)
    values = sorted(value for _, value in points)
    low, middle, high = (EngFormatter(places=1)(values[at]) for at in (0, len(values) // 2, -1))
    note = f"Median {middle}, from {low} to {high}."
    return Chart(title, inline(figure, f"speed-{title}", f"{title} over meta-steps. {note}"), note)


def _rates(lines: Sequence[Line]) -> Chart:
    """The range of the learned rates, and their mean."""
    figure, axes = _empty()
    low, mean, high = (_thinned(_series(lines, f"lr/{which}")) for which in ("min", "mean", "max"))
    steps = [step for step, _ in mean]
    axes.fill_between(
        steps, [v for _, v in low], [v for _, v in high], color="C0", alpha=0.25, label="least to largest"
    )
    _draw(axes, mean, color="C0", label="mean")
    axes.legend(frameon=False)
    note = f"In the end {low[-1][1]:.3g} to {high[-1][1]:.3g}, mean {mean[-1][1]:.3g}."
    return Chart("learned inner rates", inline(figure, "rates", f"Learned inner rates over meta-steps. {note}"), note)


def _shares(lines: Sequence[Line]) -> Chart:
    """Where the time between two lines went, one share upon the other."""
    figure, axes = _empty()
    stacked = {name: _thinned([(line["step"], line.get(f"time/{name}", 0.0)) for line in lines]) for name in _SHARES}
    edges = [0.0, *(step for step, _ in stacked[_SHARES[0]])]
    bottom = [0.0] * (len(edges) - 1)
    for number, (name, points) in enumerate(stacked.items()):
        top = [under + value for under, (_, value) in zip(bottom, points, strict=True)]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=f"C{number}", alpha=0.8, label=name)
        bottom = top
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    means = {name: sum(value for _, value in points) / len(points) for name, points in stacked.items()}
    note = _sentence("in the mean " + ", ".join(f"{name} {100 * mean:.0f}%" for name, mean in means.items()))
    return Chart("where the time went", inline(figure, "shares", f"Shares of the time over meta-steps. {note}"), note)


def _series(lines: Sequence[Line], name: str) -> Series:
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]


def _thinned(points: Series) -> Series:
    """Means of neighbours, each at the last of their steps."""
    size = max(1, math.ceil(len(points) / _POINTS))
    parts = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _draw(axes: Axes, points: Series, **style: Any) -> None:
    """As a line; a single point as a dot."""
    steps, values = zip(*_thinned(points), strict=True)
    alone = {"marker": "."} if len(steps) == 1 else {}
    axes.plot(steps, values, **{"markersize": 4, **style, **alone})


def _empty(height: float = 2.9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("meta-steps")
    axes.grid(alpha=0.25)
    return figure, axes


def _scale(axes: Axes) -> None:
    """Logarithmic where the values differ much. Without powers of ten, whose exponents take a font of matplotlib's."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    finite = values[np.isfinite(values)]
    least, most = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if least > 0 and most > 50 * least:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")
    if most >= 1e4:
        axes.yaxis.set_major_formatter(EngFormatter())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
