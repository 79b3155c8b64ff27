"""Sine waves: the smallest recipe, which needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fmeta.runs._options import OptionError
from fmeta.runs._recipe import Answered, Offer, Recipe

if TYPE_CHECKING:
    import torch

    from fmeta.core import Model
    from fmeta.runs._shown import Chart
    from fmeta.tasks import Sampler, Split


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Recipe):
    """MAML on sine waves (Finn et al. 2017, section 5.1): needs no data, trains in seconds.

    The outer rate is three times the paper's and falls to 0: 15,000 meta-steps then get as far as many more at 1e-3.
    """

    shots: int = 10
    """support points of a task"""
    query: int = 10
    """query points of a task, in training; 100 in test"""
    hidden: tuple[int, ...] = (40, 40)
    """widths of the hidden layers"""

    name: ClassVar[str] = "sinusoid"
    gives: ClassVar[frozenset[str]] = frozenset({"head", "context"})
    # so small a net only waits for a second thread
    defaults: ClassVar[dict[str, Any]] = {"threads": 1, "outer_lr": 3e-3, "outer_schedule": "cosine"}

    def sampler(self, split: Split, device: torch.device) -> Sampler:
        from fmeta.tasks import sinusoid

        return sinusoid(shots=self.shots, query=self.query if split == "train" else 100)

    def offer(self) -> Offer:
        from fmeta.core import mse

        return Offer(self._network, mse)

    def _network(self, outputs: str = "head", *, context: int = 0, film: int = 0, beside: str = "support") -> Model:
        from fmeta.models import mlp

        if not self.hidden or min(self.hidden) < 1:
            raise OptionError("hidden", self.hidden, "expected one or more widths >= 1")
        return mlp([1 + context, *self.hidden, 1])

    def facts(self) -> dict[str, Any]:
        return {"shots": self.shots}

    def show(self, answered: Answered) -> Chart:
        """The true curve, the support points, and the prediction before and after adaptation."""
        from matplotlib.figure import Figure

        from fmeta.runs._shown import Chart

        task = answered.task
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        order = task.query.x[:, 0].argsort().cpu()
        x, y = task.query.x[:, 0].cpu()[order], task.query.y[:, 0].cpu()[order]
        axes.plot(x, y, color="black", label="true curve")
        errors = []
        styles = ((":", "grey"), ("--", "tab:blue"), ("-", "tab:red"))
        shown = [(step, p[:, 0].cpu()[order]) for step, p in sorted(answered.predictions.items())]
        for (step, prediction), (line, colour) in zip(shown, styles, strict=False):
            label = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            axes.plot(x, prediction, line, color=colour, label=label)
        for step, prediction in shown:
            errors.append(f"{float(((prediction - y) ** 2).mean()):.3g} after {step}")
        support = task.support
        axes.plot(support.x[:, 0].cpu(), support.y[:, 0].cpu(), "o", color="tab:green", label="support points")
        axes.set_xlabel("x")
        axes.set_ylabel("y")
        axes.legend(fontsize="small")
        return Chart(figure, "Query error " + ", ".join(errors) + " adaptation steps.")
