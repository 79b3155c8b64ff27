"""What an option may be in a study: a range, or one of several values. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmeta._errors import InputError


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; with `log` every factor weighs alike. Whole numbers where these two are.

    Raises InputError for ends that are no range.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"from {self.low} to {self.high} is no range; expected the low end first")
        if self.log and self.low <= 0:
            raise InputError(f"a log scale from {self.low}; expected a low end above 0, or no :log")

    def __str__(self) -> str:
        return f"{self.low}:{self.high}{':log' if self.log else ''}"

    def grid(self, points: int) -> list[Any]:
        """So many numbers evenly spaced, both ends among them; fewer where there are not as many whole ones."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        between = [low + (high - low) * n / (points - 1) for n in range(1, points - 1)]
        inner = [math.exp(value) if self.log else value for value in between]
        whole = isinstance(self.low, int)
        return list(dict.fromkeys([self.low, *(round(value) if whole else value for value in inner), self.high]))

    def propose(self, trial: Any, option: str) -> Any:
        """The value that the sampler of an Optuna trial takes."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(option, self.low, self.high, log=self.log)

    def value(self, proposed: Any) -> Any:
        """What was proposed, as the option takes it."""
        return proposed


@dataclass(frozen=True)
class Choice:
    """One of several values, by the texts they were given as."""

    values: Mapping[str, Any]

    def __str__(self) -> str:
        return "|".join(self.values)

    def grid(self, points: int) -> list[Any]:
        """All of them, as they were given."""
        return list(self.values)

    def propose(self, trial: Any, option: str) -> Any:
        """The value that the sampler of an Optuna trial takes."""
        return self.values[trial.suggest_categorical(option, list(self.values))]

    def value(self, proposed: Any) -> Any:
        """What was proposed, as the option takes it."""
        return self.values[proposed]


Space = dict[str, Range | Choice]  # by option


def as_space(given: Mapping[str, Range | Choice | Sequence[Any]]) -> Space:
    """Sequences of values as choices."""
    return {
        option: axis if isinstance(axis, Range | Choice) else Choice({str(value): value for value in axis})
        for option, axis in given.items()
    }
