"""What somebody else's recipe may get wrong, said by its name. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from fmeta._errors import InputError
from fmeta.runs._options import OptionError, RunOptions, fields_of, made
from fmeta.runs._recipe import Recipe

_WORDS = ("learner", "gradient", "recipe", "run_dir", "resume", "help")  # options that are no part's


def check_names(recipe: type[Recipe], others: Sequence[type]) -> None:
    """Raises InputError where a recipe has no name, or calls an option as another part calls one of its own."""
    name = getattr(recipe, "name", None)
    if not isinstance(name, str):
        raise InputError(f"recipe {recipe.__qualname__}: it has no name; expected `name: ClassVar[str] = ...` in it")
    taken = dict.fromkeys(_WORDS, "the command line") | {
        option: getattr(part, "name", "every run") for part in others for option in fields_of(part)
    }
    for option, hint in fields_of(recipe).items():
        if not _plain(hint):
            raise InputError(
                f"recipe {name}: its option {option!r} is a {getattr(hint, '__name__', hint)}; expected text, numbers, "
                "true or false, a Literal, or a tuple of them, which recipe.json can hold"
            )
        if option in taken:
            raise InputError(
                f"recipe {name}: its option {option!r} is one of {taken[option]} too; expected a name that is free; "
                f"rename the field of {recipe.__qualname__}"
            )


def _plain(hint: Any) -> bool:
    """Whether JSON can hold an option of that type, and give it back."""
    if get_origin(hint) is Literal:
        return all(isinstance(value, str | int | float) for value in get_args(hint))
    return all(map(_plain, get_args(hint))) if get_args(hint) else hint in (str, int, float, bool, type(None), ...)


def made_recipe(kind: type[Recipe], *sources: Mapping[str, Any]) -> Recipe:
    """A recipe with these options. Raises InputError where its class cannot be made of options."""
    try:
        return made(kind, *sources)
    except TypeError as error:  # abstract methods, or fields that must be given
        raise InputError(
            f"recipe {kind.name}: {error}; expected a frozen dataclass with sampler(), whose fields have defaults"
        ) from error


def check_ignored(recipe: Recipe, run: RunOptions) -> None:
    """Raises OptionError for options of the run that a part of the recipe's own does not look at."""
    usual, ignored = made(RunOptions, type(recipe).defaults), dict[str, str]()
    if recipe.own_learner() is not None:
        ignored["precision"] = "learner"
    if recipe.own_optimizer() is not None:
        ignored |= {"outer_lr": "optimizer", "outer_schedule": "optimizer"}
    for option, own in ignored.items():
        value = getattr(run, option)
        if value != getattr(usual, option):
            problem = f"recipe {recipe.name} brings its own {own}, which does not look at it; leave it out"
            raise OptionError(option, value, problem)


def brought(recipe: Recipe, what: str, value: Any, fits: bool, expected: str) -> Any:
    """The value; raises InputError where what a recipe brings does not fit."""
    if not fits:
        came = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise InputError(f"recipe {recipe.name}: {what} is {came}; expected {expected}")
    return value
