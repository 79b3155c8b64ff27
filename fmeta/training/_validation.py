"""Which validation was the best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fmeta.core import InputError
from fmeta.core._checks import nearest

Validate = Callable[[Any], float | Mapping[str, float]]  # meta -> the loss, or figures by name


class Monitor:
    """Follows one figure of the validations."""

    def __init__(self, name: str, mode: Literal["min", "max"], patience: int) -> None:
        if mode not in ("min", "max"):
            raise InputError(f"fit(mode={mode!r}): expected 'min' or 'max'")
        if patience < 0:
            raise InputError(f"fit(patience={patience}): expected 0, which never stops, or more")
        self.name, self.spec, self.patience = name, f"{mode} {name}", patience
        self.best, self.since = math.inf, 0

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.since

    def add(self, figures: Mapping[str, float]) -> None:
        """Takes the figures of the next validation."""
        if self.name not in figures:
            raise InputError(
                f"fit(monitor={self.name!r}): validation gives no such figure; {nearest(self.name, figures)}"
            )
        score = score_of(self.spec, figures)
        self.since = 0 if score < self.best else self.since + 1
        self.best = min(score, self.best)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps: the figure that is followed, its best score so far, validations since then."""
        best = self.best if math.isfinite(self.best) else None
        return {"monitor": self.spec, "best": best, "since": self.since}

    def restore(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Goes on after the last of these checkpoints, given by their facts, also where that run followed another
        figure."""
        last = history[-1] if history else {}
        if last.get("monitor") == self.spec:
            self.best, self.since = math.inf if last["best"] is None else last["best"], last["since"]
        else:
            kept = [score_of(self.spec, facts["validation"]) for facts in history if "validation" in facts]
            self.best = min(kept, default=math.inf)


def score_of(spec: str, figures: Mapping[str, float]) -> float:
    """The figure of "min NAME" or "max NAME", so that lower is better; infinite where there is no finite one."""
    mode, name = spec.split(" ", 1)
    value = figures.get(name, math.nan)
    return math.inf if not math.isfinite(value) else value if mode == "min" else -value


def figures_of(found: float | Mapping[str, float]) -> dict[str, float]:
    """What a `Validate` returned, by name."""
    named = found if isinstance(found, Mapping) else {"loss": found}
    return {name: float(value) for name, value in named.items()}
