"""Where recipes are: by name through entry points, or as an object in a module or a file. Needs no torch."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fmeta._errors import InputError, nearest
from fmeta._objects import find_object
from fmeta.runs._recipe import Recipe

_GROUP = "fmeta.recipes"


@functools.cache
def recipe_points() -> dict[str, EntryPoint]:
    """Every installed recipe's entry point, by name."""
    return {point.name: point for point in sorted(entry_points(group=_GROUP), key=lambda p: p.name)}


def recipe_class(name: str) -> type[Recipe]:
    """The installed recipe of that name. Raises InputError where there is none, or it cannot be imported."""
    points = recipe_points()
    if name not in points:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, points)}")
    brought = {point.value: point for point in entry_points(group=_GROUP, name=name)}
    if len(brought) > 1:
        packages = " and ".join(point.dist.name if point.dist else value for value, point in brought.items())
        raise InputError(f"recipe {name!r}: {packages} each bring one; expected one of that name; uninstall the other")
    try:
        found = points[name].load()
    except Exception as error:  # whatever its module may raise
        reason = f"{points[name].value} cannot be imported: {type(error).__name__}: {error}"
        brings = distribution_of(name) or "what brings it"
        raise InputError(f"recipe {name!r}: {reason}; expected one that can; mend or install again {brings}") from error
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise InputError(
            f"recipe {name!r}: {points[name].value} is no recipe; expected a subclass of fmeta.runs.Recipe"
        )
    if getattr(found, "name", None) != name:
        came = f"{points[name].value} has the name {getattr(found, 'name', None)!r}"
        raise InputError(f"recipe {name!r}: {came}; expected that of its entry point, by which its runs are opened")
    return found


def place_of(kind: type[Recipe]) -> str:
    """Where a recipe's class can be imported from, `module:object` or `file.py:object`; "" where it has an entry point,
    and for a class that stands nowhere, as in a function or a notebook."""
    point, module = recipe_points().get(kind.name), sys.modules.get(kind.__module__)
    if (point is not None and point.load() is kind) or module is None or "<locals>" in kind.__qualname__:
        return ""
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if spec is not None and "." in spec.name:
        return f"{spec.name}:{kind.__qualname__}"
    return f"{Path(file).resolve()}:{kind.__qualname__}" if file is not None else ""


def distribution_of(name: str) -> str:
    """What to install for a recipe, as `name version`; "" where that is not known."""
    point = recipe_points().get(name)
    return f"{point.dist.name} {point.dist.version}" if point is not None and point.dist is not None else ""


def is_object(reference: str) -> bool:
    """Whether a text is `module:object` or `file.py:object`, rather than a file of options."""
    place, colon, name = reference.rpartition(":")
    return bool(colon) and name.isidentifier() and (place.endswith(".py") or not Path(reference).exists())


def recipe_object(reference: str) -> Recipe | type[Recipe]:
    """The recipe at `module:object` or `file.py:object`, an instance or a class.

    Raises InputError where there is no such module, file or object, or it is no recipe.
    """
    found = find_object("recipe", reference)[1]
    if isinstance(found, Recipe) or (isinstance(found, type) and issubclass(found, Recipe)):
        return found
    came = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
    raise InputError(f"recipe {reference!r}: it is {came}; expected a recipe, a subclass of fmeta.runs.Recipe")
