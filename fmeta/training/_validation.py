"""Which validation was the best, and when to stop."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fmeta.core import InputError
from fmeta.core._checks import check_counts, nearest

Validate = Callable[[Any], float | Mapping[str, float]]  # meta -> the loss, or figures by name


class Validation(NamedTuple):
    """What `fit` judges the meta-parameters by, how often, which figure decides, and when to stop.

    fmeta.fit(..., validate=fmeta.Validation(figures, every=500, monitor="accuracy", patience=5))
    """

    figures: Validate  # meta -> the loss, or figures by name
    every: int | None = None  # meta-steps; None: at each checkpoint that is due
    monitor: str = "loss"  # the figure that decides which checkpoint is the best; only a finite one can
    mode: Literal["min", "max"] | None = None  # which is best; None: the least loss, and the most of any other figure
    patience: int = 0  # validations in a row that may be no better than the best; 0 never stops


class Monitor:
    """Follows one figure of the validations."""

    def __init__(self, name: str = "loss", mode: Literal["min", "max"] | None = None, patience: int = 0) -> None:
        if mode not in ("min", "max", None):
            raise InputError(f"Validation(mode={mode!r}): expected 'min', 'max', or None to go by the figure's name")
        check_counts("Validation", least=0, patience=patience)
        mode = mode or ("min" if name == "loss" else "max")
        self.name, self.spec, self.patience = name, f"{mode} {name}", patience
        self.best, self.since = math.inf, 0

    @staticmethod
    def of(validation: Validation | None) -> "Monitor":
        if validation is None:
            return Monitor()
        if not callable(validation.figures):
            raise InputError(
                f"Validation(figures={validation.figures!r}): expected a function of the meta-parameters that gives "
                "the loss, or figures by name"
            )
        if validation.every is not None:
            check_counts("Validation", every=validation.every)
        return Monitor(validation.monitor, validation.mode, validation.patience)

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.since

    def add(self, figures: Mapping[str, float]) -> None:
        """Takes the figures of the next validation. Warns where the one that is followed is not finite."""
        if self.name not in figures:
            raise InputError(
                f"Validation(monitor={self.name!r}): validation gives no such figure; {nearest(self.name, figures)}"
            )
        score = score_of(self.spec, figures)
        if not math.isfinite(score):
            warnings.warn(
                f"fit(monitor={self.name!r}): this validation gives {figures[self.name]}, which is no better than any "
                "other; only a checkpoint of a finite figure becomes the best; lower the rates, look at the validation "
                "tasks, or monitor another figure",
                stacklevel=2,
            )
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
