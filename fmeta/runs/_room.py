"""What an experiment takes of memory, looked at before it is taken, and said by the options that are large."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fmeta.runs._options import RunOptions, made

if TYPE_CHECKING:
    from fmeta.runs._experiment import Experiment

T = TypeVar("T")


def check_memory(of: Experiment, what: str, counts: Mapping[str, int], function: Callable[..., T], *args: Any) -> None:
    """Raises OutOfMemoryError where `function(*args, *counts)` does not fit; looks only where an option is large."""
    from fmeta.execution._memory import check_room

    if _large(of, counts):
        check_room(*said(of, what, counts), of.device(), function, *args, *counts.values())


def within_memory(of: Experiment, what: str, counts: Mapping[str, int], function: Callable[..., T], *args: Any) -> T:
    """`function(*args, *counts)`. Raises OutOfMemoryError where it does not fit."""
    from fmeta.execution._memory import running_out

    check_memory(of, what, counts, function, *args)
    with running_out(*said(of, what, counts)):
        return function(*args, *counts.values())


def said(of: Experiment, what: str, counts: Mapping[str, int]) -> tuple[str, str, str]:
    """The call, what it is about, and the cure."""
    large = _large(of, counts)
    if not large:
        return f"recipe {of.recipe.name}", what, "expected less than the recipe's own options"
    given = ", ".join(f"{name}={value!r}" for name, value in large.items())
    return f"experiment({given})", what, f"lower {' or '.join(large)}"


def _large(of: Experiment, counts: Mapping[str, int]) -> dict[str, Any]:
    """The options of recipe and learner that are above their defaults, and the numbers of tasks that are."""
    usual = dataclasses.asdict(made(RunOptions, type(of.recipe).defaults))
    usual["tasks"] = usual["eval_tasks"]
    fields = [(part, f) for part in (of.recipe, of.learner) if part for f in _fields(part)]
    options = {f.name: getattr(part, f.name) for part, f in fields if _above(getattr(part, f.name), f.default)}
    return options | {name: count for name, count in counts.items() if count > usual[name]}


def _fields(part: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()


def _above(value: Any, usual: Any) -> bool:
    """Whether whole numbers are more than they are by default, each or in their sum."""
    if isinstance(value, tuple) and isinstance(usual, tuple):
        return all(isinstance(n, int) for n in (*value, *usual)) and sum(value) > sum(usual)
    return type(value) is int and type(usual) is int and value > usual
