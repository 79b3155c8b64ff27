"""Which rows a recipe can have, and which part takes an option. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmeta._errors import nearest
from fmeta.runs._gradient_rows import GRADIENTS
from fmeta.runs._learner_rows import LEARNERS
from fmeta.runs._options import GradientRow, LearnerRow, OptionError, UnknownOption, check_value, fields_of
from fmeta.runs._recipe import Recipe


def offered(recipe: type[Recipe]) -> dict[str, type[LearnerRow]]:
    """The learners that a recipe can have."""
    if recipe.own_learner is not Recipe.own_learner:
        return {}
    return {name: row for name, row in LEARNERS.items() if row.needs <= recipe.gives}


def takers(option: str) -> list[str]:
    """The learners and meta-gradients that have an option."""
    tables: tuple[Mapping[str, type], ...] = (LEARNERS, GRADIENTS)
    return [name for table in tables for name, row in table.items() if option in fields_of(row)]


def unknown_option(option: str, value: Any, parts: list[type], rows: Mapping[str, type]) -> OptionError:
    """The error for an option that none of the parts has."""
    bare = option.rpartition(".")[2]
    who = [name for name in takers(bare) if name in rows or name in GRADIENTS]
    chosen = " with ".join(p.name for p in parts if issubclass(p, LearnerRow | GradientRow))
    if who and bare == option:
        return OptionError(option, value, f"{chosen} does not take it; expected it with {', '.join(who)}")
    return UnknownOption(option, value, ["learner", "gradient", *(name for part in parts for name in fields_of(part))])


def row_of(what: str, name: str, rows: Mapping[str, Any], every: Mapping[str, Any], recipe: type[Recipe]) -> Any:
    """The row of that name. Raises OptionError where there is none, or the recipe lacks what it needs."""
    if name in rows:
        return rows[name]
    if not rows:
        raise OptionError(what, name, f"recipe {recipe.name} brings its own {what}; leave it out")
    if name in every:
        lacks = sorted(every[name].needs - recipe.gives)
        raise OptionError(what, name, f"recipe {recipe.name} gives no {', '.join(lacks)}; {nearest(name, rows)}")
    raise OptionError(what, name, nearest(str(name), rows))


def addressed(
    options: Mapping[str, Any], row: type[LearnerRow] | None, parts: list[type], rows: Mapping[str, type]
) -> dict[str, Any]:
    """The options for the chosen parts by their bare names, checked where parts are given."""
    hints = {name: hint for part in parts for name, hint in fields_of(part).items()}
    plain, special = dict[str, Any](), dict[str, Any]()
    for option, value in options.items():
        owner, dot, bare = option.rpartition(".")
        if dot:
            if parts and (owner not in rows or bare not in fields_of(rows[owner])):
                raise unknown_option(option, value, parts, rows)
            if row is None or owner != row.name:
                continue
            special[bare] = value
        else:
            if parts and option not in hints:
                raise unknown_option(option, value, parts, rows)
            plain[option] = value
    found = plain | special
    for name, value in found.items():
        if name in hints:
            check_value(name, value, hints[name])
    return found
