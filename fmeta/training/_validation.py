"""Which validation was the best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fmeta.core import InputError, nearest

Validate = Callable[[Any], float | Mapping[str, float]]  # meta -> the loss, or figures by name


class Monitor:
    """Follows one figure of the validations."""

    def __init__(self, name: str, mode: Literal["min", "max"], patience: int) -> None:
        if mode not in ("min", "max"):
            raise InputError(f"fit(mode={mode!r}): expected 'min' or 'max'")
        if patience < 0:
            raise InputError(f"fit(patience={patience}): expected 0, which never stops, or more")
        self.name, self.mode, self.patience, self.sign = name, mode, patience, 1.0 if mode == "min" else -1.0
        self.best, self.since = math.inf, 0

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.since

    def add(self, figures: Mapping[str, float]) -> float:
        """The score of these figures, lower is better; infinite where it is not a number."""
        if self.name not in figures:
            raise InputError(
                f"fit(monitor={self.name!r}): validation gives no such figure; {nearest(self.name, figures)}"
            )
        value = self.sign * figures[self.name]
        score = value if math.isfinite(value) else math.inf
        self.since = 0 if score < self.best else self.since + 1
        self.best = min(score, self.best)
        return score

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps: which figure its score is of, the best score so far, validations since then."""
        best = self.best if math.isfinite(self.best) else None
        return {"monitor": f"{self.mode} {self.name}", "best": best, "since": self.since}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Goes on where the run of a checkpoint stood, if that followed the same figure."""
        if facts.get("monitor") == self.facts()["monitor"]:
            self.best = math.inf if facts["best"] is None else facts["best"]
            self.since = facts["since"]


def figures_of(found: float | Mapping[str, float]) -> dict[str, float]:
    """What a `Validate` returned, by name."""
    named = found if isinstance(found, Mapping) else {"loss": found}
    return {name: float(value) for name, value in named.items()}
