"""Which options count for whom where several learners or meta-gradients are chosen. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fmeta._errors import InputError
from fmeta.runs._experiment import Experiment, experiment
from fmeta.runs._gradient_rows import GRADIENTS
from fmeta.runs._learner_rows import LEARNERS
from fmeta.runs._options import LearnerRow, RunOptions, fields_of
from fmeta.runs._recipe import Recipe
from fmeta.runs._rows import offered, row_of, unknown_option


class Chooser(NamedTuple):
    """A recipe with the options that are fixed; the others are still to be chosen."""

    recipe: Recipe | type[Recipe]
    reference: str
    fixed: Mapping[str, Any]

    def experiment(self, options: Mapping[str, Any]) -> Experiment:
        """With these options too; those that its learner and meta-gradient do not take count for nothing."""
        every = {**self.fixed, **options}
        taken = self.takes(every)
        return experiment(self.recipe, reference=self.reference, **{n: v for n, v in every.items() if n in taken})

    def takes(self, options: Mapping[str, Any]) -> list[str]:
        """Which of the options the learner and the meta-gradient that are among them take, in their order."""
        parts = self.parts(options)
        plain = {name for part in parts for name in fields_of(part)} | {"learner", "gradient"}
        row = next((part for part in parts if issubclass(part, LearnerRow)), None)
        own = {f"{row.name}.{name}" for name in fields_of(row)} if row is not None else set()
        return [name for name in options if name in plain | own]

    def parts(self, options: Mapping[str, Any]) -> list[Any]:
        """The classes of recipe, learner and meta-gradient, where there are these, and of the run."""
        kind = self.recipe if isinstance(self.recipe, type) else type(self.recipe)
        rows = offered(kind)
        chosen = {**self.fixed, **options}
        name = chosen.get("learner", kind.defaults.get("learner", next(iter(rows), None)))
        row = None if name is None else row_of("learner", name, rows, LEARNERS, kind)
        way = GRADIENTS.get(chosen.get("gradient") or (row.gradient if row is not None else ""))
        return [part for part in (kind, row, way, RunOptions) if part is not None]

    def check(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        """Raises OptionError for an option that none of the combinations takes."""
        named = list(dict.fromkeys([*self.fixed, *(name for each in combinations for name in each)]))
        taken = set().union(*(self.takes({**self.fixed, **each}) for each in combinations))
        kind = self.recipe if isinstance(self.recipe, type) else type(self.recipe)
        for name in named:
            if name not in taken:
                value = {**self.fixed, **dict(combinations[0])}.get(name)
                raise unknown_option(name, value, self.parts(combinations[0]), offered(kind))


def as_chooser(recipe: Experiment | Recipe | type[Recipe] | str | Chooser) -> Chooser:
    """An experiment with its learner and what else is other than usual fixed, or a recipe with its own options."""
    if isinstance(recipe, Chooser):
        return recipe
    of = recipe if isinstance(recipe, Experiment) else experiment(recipe)
    learner = {} if of.learner is None else {"learner": of.learner.name}
    usual, own = experiment(of.recipe, **learner).options(), fields_of(type(of.recipe))
    fixed = {name: value for name, value in of.options().items() if name not in own and value != usual.get(name)}
    return Chooser(of.recipe, of.reference, {**(learner if isinstance(recipe, Experiment) else {}), **fixed})


class Point(NamedTuple):
    """One combination of a grid."""

    fields: dict[str, Any]  # the options that differ, those that count for it
    experiment: Experiment


def grid(recipe: Experiment | Recipe | type[Recipe] | str | Chooser, axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the options that have several values, each once.

        of = fmeta.runs.experiment("sinusoid", iterations=100, compile="none")
        points = fmeta.runs.grid(of, {"learner": ["maml", "meta_sgd"], "maml.inner_optimizer": ["sgd", "adam"]})

    Raises OptionError for an option that none of the chosen learners and meta-gradients takes.
    """
    chooser, combinations = as_chooser(recipe), list(_combinations(axes))
    chooser.check(combinations)
    points: dict[str, Point] = {}
    for combination in combinations:
        fields = {n: v for n, v in combination.items() if n in chooser.takes({**chooser.fixed, **combination})}
        points.setdefault(repr(fields), Point(fields, chooser.experiment(fields)))
    if not points:
        raise InputError("grid: no combination; expected at least one value of each option")
    return list(points.values())


def _combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
