"""`fmeta check`: is the meta-gradient of a recipe right?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmeta.cli._choose import choose, named
from fmeta.runs._experiment import Experiment

if TYPE_CHECKING:
    from fmeta.core._types import Order
    from fmeta.gradients import GradientReport


class OrderError(RuntimeError):
    """A meta-gradient is not of the order that it claims."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How it is checked."""

    recipe: str | None = None
    """what stands in for the defaults: file.py:name or module:name of a recipe, best.json of a study, or recipe.json"""


def check_command(arguments: list[str]) -> Callable[[], Any]:
    """Compares the meta-gradient with finite differences; status 1 where it is not what it claims to be."""
    of, _ = choose("check", named("check", arguments), CheckOptions())
    return lambda: _check(of)


def _check(of: Experiment) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.core import fold
    from fmeta.core._types import keeps, order_of
    from fmeta.gradients import check_meta_grad

    learner = of.build_learner()
    tasks = of.sampler("train")(fold(of.key(), 1), min(of.run.meta_batch, 4))
    printing.say("comparing with finite differences, parameter by parameter")
    phases = of.phases(learner)
    gradient = phases[max(phases)]
    report = check_meta_grad(learner, of.initial(learner), tasks, gradient)
    remarks = dict.fromkeys(report.detached, "detached: the loss depends on it")
    remarks |= dict.fromkeys(report.kinks, "kinks: finite differences disagree")
    remarks |= dict.fromkeys(report.without_gradient, "no gradient, no influence")
    rows = [(name, remarks.get(name, ""), f"{error:.1e}") for name, error in report.relative_error.items()]
    printing.say(f"order computed: {report.order}; cosine to finite differences {report.cosine:.9f}")
    printing.console.print(printing.table(["parameter", "remark"], ["relative error"], rows))
    if not keeps(order_of(gradient), report.order):
        raise OrderError(_news(order_of(gradient), report))


def _news(claim: Order, report: GradientReport) -> str:
    if report.kinks:
        cure = (
            f"but finite differences of several lengths disagree at {', '.join(report.kinks[:3])}, where the loss has "
            "kinks (ReLU, max pooling); check it with a smooth activation, or with another --seed"
        )
    elif report.detached:
        cure = f"{', '.join(report.detached[:3])} get no gradient; look for .detach() and torch.no_grad() there"
    else:
        cure = "look at the parameters with the largest error, for .detach() and for what is not differentiable there"
    return f"check: the meta-gradient claims to be {claim} and computes {report.order}: {cure}"
