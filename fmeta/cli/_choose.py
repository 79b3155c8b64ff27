"""Which recipe, learner and meta-gradient a command line means, and the options of the three. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fmeta._errors import InputError
from fmeta._objects import find_object
from fmeta.cli._words import Unknown, Words, axes_of, flags_of, read, space_of, split, values
from fmeta.runs._experiment import Experiment, experiment
from fmeta.runs._find import is_object, recipe_class, recipe_object
from fmeta.runs._gradient_rows import GRADIENTS
from fmeta.runs._grid import Chooser, as_chooser
from fmeta.runs._learner_rows import LEARNERS
from fmeta.runs._options import OptionError, RunOptions, fields_of
from fmeta.runs._recipe import Recipe
from fmeta.runs._rows import offered, unknown_option

DEFAULT = "sinusoid"  # the recipe of a command line that names none: it needs no data


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the run is kept, and where its recipe is."""

    run_dir: Path | None = None
    """folder of the run; a new one below runs/ if left out"""
    resume: bool = False
    """go on with the run in --run-dir"""
    recipe: str | None = None
    """what stands in for the defaults: file.py:name or module:name of a recipe, best.json of a study, or recipe.json"""


class Named(NamedTuple):
    """What the first words of a command line choose."""

    kind: type[Recipe]
    base: Experiment  # with the defaults, or what was stored
    words: Words


def named(command: str, arguments: Sequence[str], *, varied: bool = False) -> Named:
    """The recipe that is named first, or by --recipe, or that of the run to resume. Where options are `varied`, those
    that are on or off have values too: true,false."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    rest = list(arguments[1:] if name is not None else arguments)
    kind = recipe_class(name or DEFAULT)  # for what takes no value; the stored one may be another
    words = split(command, rest, ["help"] if varied else flags_of([Where, *_every(kind)]))
    base = _stored(words) if command == "train" or words.value("recipe") else None
    if base is not None and name is not None and base.recipe.name != name:
        where = words.value("recipe") or words.value("run_dir")
        raise InputError(
            f"{command} {name}: the recipe in {where!r} is {base.recipe.name}, not {name}; leave {name} out"
        )
    if words.free:
        raise InputError(f"{command}: {words.free[0]!r} is too much; expected options, each with -- in front")
    if base is None:
        base = experiment(name or DEFAULT)
    return Named(type(base.recipe), base, words)


def choose(command: str, at: Named, own: Any) -> tuple[Experiment, Any]:
    """The experiment that the words describe, and the command's own options."""
    rows = offered(at.kind)
    base = at.base
    for what, table in (("learner", rows), ("gradient", GRADIENTS)):
        name = at.words.value(what)
        now = getattr(base, what)
        if name is not None and (now is None or now.name != name):
            if not table:
                raise OptionError(what, name, f"recipe {at.kind.name} brings its own {what}; leave it out")
            base = base.changed(**{what: name})
    parts = {"choice": _choice(base, rows), **dict(base.parts()), "own": own}
    parts = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}
    unknown, about = _unknown([type(part) for part in parts.values()], rows), (at.kind.__doc__ or "").strip()
    found = read(f"{command} {at.kind.name}", about, parts, at.words, unknown)
    mine = {name: found.pop(name) for name in fields_of(type(own)) if name in found}
    return base.changed(**found), dataclasses.replace(own, **mine)


class Varied(NamedTuple):
    """A chooser with the options that are fixed, what is to be varied, and the command's own options."""

    chooser: Chooser
    axes: dict[str, Any]
    own: Any


def vary(command: str, arguments: Sequence[str], own: Any, *, ranges: bool) -> Varied:
    """For commands in which options have several values, or, with `ranges`, ranges."""
    at = named(command, arguments, varied=True)
    rows, mine = offered(at.kind), fields_of(type(own))
    if at.words.value("help") is not None:
        choose(command, at, own)  # prints it and leaves
    hints, theirs = _hints(at.kind), at.words.without(*mine, "recipe")
    unknown = _unknown([*_parts(at, theirs), type(own)], rows)
    varied, axes = space_of(theirs, hints) if ranges else axes_of(theirs, hints)
    fixed = values(varied, hints, unknown)
    given = values(at.words.without(*(option for option, _ in theirs.options), "recipe"), mine, unknown)
    recipe: Any = at.kind
    stored = dict[str, Any]()
    if at.words.value("recipe"):
        recipe = at.base.recipe
        stored = {name: value for name, value in as_chooser(at.base).fixed.items() if name not in axes}
    return Varied(Chooser(recipe, at.base.reference, stored | fixed), axes, dataclasses.replace(own, **given))


def _stored(words: Words) -> Experiment | None:
    """What --resume or --recipe stand for."""
    resume, file, folder = words.value("resume") is not None, words.value("recipe"), words.value("run_dir")
    if resume and file is not None:
        raise OptionError("recipe", file, "a run to resume has its own recipe; leave one of the two out")
    if resume and folder is None:
        raise InputError("train --resume: no run folder given; expected --run-dir RUN beside it")
    if resume:
        from fmeta.runs._folder import open_run

        return open_run(Path(str(folder))).experiment
    if file is None:
        return None
    if is_object(file):
        reference = find_object("--recipe", file)[0]
        return experiment(recipe_object(reference), reference=reference)
    from fmeta.runs._folder import read_experiment

    try:
        return read_experiment(Path(file)).experiment
    except OSError as error:
        raise OptionError("recipe", file, f"{error.strerror}; expected a recipe file, or file.py:name") from error


def _choice(base: Experiment, rows: dict[str, Any]) -> Any:
    """`--learner` and `--gradient` as options with the choices that there are."""
    fields: list[Any] = []
    if base.learner is not None:
        fields.append(("learner", Literal[tuple(rows)], dataclasses.field(default=base.learner.name)))
    if base.gradient is not None or base.learner is None:
        now = base.gradient.name if base.gradient is not None else None
        hint = Literal[tuple(GRADIENTS)] if now else Literal[tuple(GRADIENTS)] | None
        fields.append(("gradient", hint, dataclasses.field(default=now)))
    about = {"__doc__": "The learner and its meta-gradient; each has options of its own."}
    return dataclasses.make_dataclass("Choice", fields, frozen=True, namespace=about)()


def _every(kind: type[Recipe]) -> list[type]:
    """All parts that a command line of a recipe may speak of."""
    own: list[type] = [kind] if dataclasses.is_dataclass(kind) else []
    return [*own, RunOptions, *offered(kind).values(), *GRADIENTS.values()]


def _hints(kind: type[Recipe]) -> dict[str, Any]:
    """Every option of a recipe's experiments and its type; a learner's own as `maml.inner_lr` too."""
    rows = offered(kind)
    hints = {name: hint for part in _every(kind) for name, hint in fields_of(part).items()}
    hints |= {f"{owner}.{name}": hint for owner, row in rows.items() for name, hint in fields_of(row).items()}
    return hints | {"gradient": Literal[tuple(GRADIENTS)]} | ({"learner": Literal[tuple(LEARNERS)]} if rows else {})


def _parts(at: Named, words: Words) -> list[type]:
    chosen: dict[str, Any] = {"learner": offered(at.kind), "gradient": GRADIENTS}  # where one is chosen, not several
    return Chooser(at.kind, "", {n: words.value(n) for n, rows in chosen.items() if words.value(n) in rows}).parts({})


def _unknown(kinds: Sequence[type], rows: dict[str, Any]) -> Unknown:
    return lambda option, value: unknown_option(option, value, list(kinds), rows)
