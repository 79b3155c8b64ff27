"""`fmeta check`: is the meta-gradient of a recipe right?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmeta.cli._choose import choose, named
from fmeta.runs._experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How it is checked."""

    recipe: str | None = None
    """what stands in for the defaults: file.py:name or module:name of a recipe, best.json of a study, or recipe.json"""


def check_command(arguments: list[str]) -> Callable[[], Any]:
    """Compares the meta-gradient with finite differences."""
    of, _ = choose("check", named("check", arguments), CheckOptions())
    return lambda: _check(of)


def _check(of: Experiment) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.core import fold
    from fmeta.gradients import check_meta_grad

    learner = of.build_learner()
    tasks = of.sampler("train")(fold(of.key(), 1), min(of.run.meta_batch, 4))
    printing.say("comparing with finite differences, parameter by parameter")
    report = check_meta_grad(learner, learner.init(of.key()), tasks, of.phases(learner)[max(of.phases(learner))])
    remarks = dict.fromkeys(report.detached, "detached: the loss depends on it")
    remarks |= dict.fromkeys(report.without_gradient, "no gradient, no influence")
    rows = [(name, remarks.get(name, ""), f"{error:.1e}") for name, error in report.relative_error.items()]
    printing.say(f"order computed: {report.order}; cosine to finite differences {report.cosine:.9f}")
    printing.console.print(printing.table(["parameter", "remark"], ["relative error"], rows))
