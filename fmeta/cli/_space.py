"""Fields of a recipe that are given several values, or a range, on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

import tyro

from fmeta.cli._recipe import Recipe
from fmeta.core import InputError

_NUMBERS = re.compile(r"[-+.\de]+:[-+.\de]+(:\w*)?")  # what cannot be meant as a text, as cuda:0 is


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; with `log` every factor weighs alike. Whole numbers where these two are."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low}:{self.high}{':log' if self.log else ''}"

    def grid(self, points: int) -> list[Any]:
        """So many numbers evenly spaced, both ends among them; fewer where there are not as many whole ones."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        between = [low + (high - low) * n / (points - 1) for n in range(1, points - 1)]
        inner = [math.exp(value) if self.log else value for value in between]
        whole = isinstance(self.low, int)
        return list(dict.fromkeys([self.low, *(round(value) if whole else value for value in inner), self.high]))

    def propose(self, trial: Any, field: str) -> None:
        """Lets the sampler of an Optuna trial take one."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        suggest(field, self.low, self.high, log=self.log)

    def value(self, proposed: Any) -> Any:
        """What was proposed, as the recipe takes it."""
        return proposed


@dataclass(frozen=True)
class Choice:
    """One of several values, by the texts they were given as."""

    values: dict[str, Any]

    def __str__(self) -> str:
        return "|".join(self.values)

    def grid(self, points: int) -> list[Any]:
        """All of them, as they were given."""
        return list(self.values)

    def propose(self, trial: Any, field: str) -> None:
        """Lets the sampler of an Optuna trial take one."""
        trial.suggest_categorical(field, list(self.values))

    def value(self, proposed: Any) -> Any:
        """What was proposed, as the recipe takes it."""
        return self.values[proposed]


Space = dict[str, Range | Choice]  # by field


def options_of(words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The words before the first option, and each option with its values."""
    options: list[list[str]] = [[]]
    for word in words:
        option, _, value = word.partition("=")
        if word.startswith("--"):
            options.append([option, value] if value else [option])
        else:
            options[-1].append(word)
    return options[0], options[1:]


def axes_of(call: str, kind: type[Recipe], words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words that are the same everywhere, and the fields with several values."""
    hints, axes = get_type_hints(kind), dict[str, list[str]]()
    fixed, options = options_of(words)
    for option, *values in options:
        field, text = _field(option), " ".join(values)
        between = "|" if "|" in text else ","
        if field not in hints or between not in text:
            fixed += [option, *values]
            continue
        if get_origin(hints[field]) is tuple and between == ",":
            raise InputError(
                f"{call}({field}={text!r}): each value is several numbers; expected values separated by |, such as "
                f"{option} '4 4|8 8'"
            )
        axes[field] = [part.strip() for part in text.split(between) if part.strip()]
        if not axes[field]:
            raise InputError(f"{call}({field}={text!r}): no values; expected one or more")
        if len(set(axes[field])) < len(axes[field]):
            raise InputError(f"{call}({field}={text!r}): a value is given twice; expected different ones")
    return fixed, axes


def words_of(call: str, kind: type[Recipe], field: str, value: str) -> list[str]:
    """One value of a field, as the words of the command line."""
    hint, option = get_type_hints(kind)[field], field.replace("_", "-")
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise InputError(f"{call}({field}={value!r}): expected true or false")
        return [f"--{option}" if value.lower() == "true" else f"--no-{option}"]
    return [f"--{option}", *(value.split() if get_origin(hint) is tuple else [value])]


def space_of(call: str, kind: type[Recipe], words: Sequence[str]) -> tuple[list[str], Space]:
    """The words that are the same everywhere, and the fields with a range or several values, in the recipe's order."""
    rest, ranges = _ranges(call, kind, words)
    fixed, axes = axes_of(call, kind, rest)
    space: Space = {**ranges}
    for field, texts in axes.items():
        values = {}
        for text in texts:
            one = words_of(call, kind, field, text)
            parsed = tyro.cli(kind, args=one, prog=f"fmeta {call} {kind.name}", config=(tyro.conf.OmitArgPrefixes,))
            values[text] = getattr(parsed, field)
        if len(set(values.values())) < len(values):
            raise InputError(f"{call}({field}={','.join(texts)!r}): a value is given twice; expected different ones")
        space[field] = Choice(values)
    given = [_field(option[0]) for option in options_of(words)[1]]
    for field in space:
        if given.count(field) > 1:
            raise InputError(f"{call}({field}): it is given twice; expected once")
    return fixed, {field: space[field] for field in get_type_hints(kind) if field in space}


def _ranges(call: str, kind: type[Recipe], words: Sequence[str]) -> tuple[list[str], dict[str, Range]]:
    hints, ranges = get_type_hints(kind), dict[str, Range]()
    rest, options = options_of(words)
    for option, *values in options:
        field, text = _field(option), " ".join(values)
        if hints.get(field) in (int, float) and ":" in text:
            ranges[field] = _range(f"{call}({field}={text!r})", hints[field], text)
            continue
        if field in hints and _NUMBERS.fullmatch(text):
            raise InputError(
                f"{call}({field}={text!r}): it is no field of one number, which a range is for; expected values, "
                "separated by | or by commas"
            )
        rest += [option, *values]
    return rest, ranges


def _range(call: str, number: type, text: str) -> Range:
    low, high, *scale = text.split(":")
    try:
        ends = number(low), number(high)
    except ValueError:
        ends = math.nan, math.nan
    if not all(map(math.isfinite, ends)) or scale not in ([], ["log"]):
        what = "whole numbers" if number is int else "numbers"
        raise InputError(f"{call}: expected LOW:HIGH or LOW:HIGH:log, {what}")
    if ends[0] >= ends[1]:
        raise InputError(f"{call}: from {ends[0]} to {ends[1]} is no range; expected the low end first")
    if scale and ends[0] <= 0:
        raise InputError(f"{call}: a log scale from {ends[0]}; expected a low end above 0, or no :log")
    return Range(*ends, log=bool(scale))


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
