"""`Experiment`: a recipe, a learner's row, a meta-gradient's row and a run's options, which make a run together.

Importing it needs no torch, so that the command line knows every option at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fmeta._errors import InputError
from fmeta.runs._find import place_of, recipe_class
from fmeta.runs._gradient_rows import GRADIENTS
from fmeta.runs._learner_rows import LEARNERS
from fmeta.runs._options import (
    GradientRow,
    LearnerRow,
    OptionError,
    RunOptions,
    made,
)
from fmeta.runs._recipe import Offer, Recipe
from fmeta.runs._recipe_checks import brought, check_ignored, check_names, made_recipe
from fmeta.runs._room import check_memory, said, within_memory
from fmeta.runs._rows import addressed, offered, row_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fmeta.core import Learner, MetaGradient, Optimizer, Task, Tree
    from fmeta.tasks import Sampler, Split


class Ready(NamedTuple):
    """What an experiment describes, ready to run."""

    learner: Learner
    optimizer: Optimizer
    phases: dict[int, MetaGradient]  # from which meta-step on
    train: Sampler
    validation: Task


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. `experiment` makes one from options."""

    recipe: Recipe
    learner: LearnerRow | None  # None: the recipe brings its own
    gradient: GradientRow | None  # None: the learner's own
    run: RunOptions
    reference: str = ""  # module:object or file.py:object of a recipe that has no entry point

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The parts that have options, by what they are."""
        for name in ("recipe", "learner", "gradient", "run"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def options(self) -> dict[str, Any]:
        """Every option and its value; `learner` and `gradient` among them."""
        chosen = {n: p.name for n, p in self.parts() if n in ("learner", "gradient")}
        return chosen | {f.name: getattr(p, f.name) for _, p in self.parts() for f in fields_in(p)}

    def movable(self) -> tuple[str, ...]:
        """The options that a run may change and stay itself."""
        return (*self.run.movable, *self.recipe.movable)

    def changed(self, **options: Any) -> Experiment:
        """With other values of some options."""
        going = ("learner", "gradient") if "learner" in options else ("gradient",) if "gradient" in options else ()
        drop = {*options, *going} | {f.name for part in going for f in fields_in(getattr(self, part))}  # theirs alone
        return experiment(self, **{n: v for n, v in self.options().items() if n not in drop}, **options)

    def digest(self) -> str:
        """A fingerprint of what decides the run: what `movable` holds is left out."""
        movable = self.movable()
        stored = [
            (n, getattr(p, "name", ""), {f.name: getattr(p, f.name) for f in fields_in(p) if f.name not in movable})
            for n, p in self.parts()
        ]
        return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """The protocol, to stand beside every figure."""
        return {"recipe": self.recipe.name, **self.recipe.facts(), "seed": self.run.seed}

    # ---- what it makes, which needs torch --------------------------------------------------------

    def device(self) -> torch.device:
        """Where it runs."""
        return _device(self.run.device)

    def key(self) -> Tensor:
        """The key of the whole run."""
        from fmeta.core import key

        return key(self.run.seed, self.device())

    def use_threads(self) -> None:
        """Takes as many processor threads as the run asks for."""
        if self.run.threads:
            import torch

            torch.set_num_threads(self.run.threads)

    def offer(self) -> Offer:
        """The recipe's, with networks in the precision of the run."""
        from fmeta.core import with_precision

        offer = self.recipe.offer()
        brought(self.recipe, "offer()", offer, isinstance(offer, Offer), "fmeta.runs.Offer")

        def network(*outputs: Any, **more: Any) -> Any:
            return with_precision(offer.network(*outputs, **more), self.run.precision, self.device())

        return offer._replace(network=network)

    def build_learner(self) -> Learner:
        """The recipe's own, or what the row makes of its offer."""
        return _learner_of(self)

    def phases(self, learner: Learner) -> dict[int, MetaGradient]:
        """First meta-step -> meta-gradient from there on."""
        if self.gradient is None:
            return {0: learner.gradient}
        return self.gradient.phases(learner.inner.steps if learner.inner is not None else 0)

    def optimizer(self) -> Optimizer:
        """Of the outer loop."""
        from fmeta import core

        rate: Any = self.run.outer_lr
        if self.run.outer_schedule != "constant":
            decay = core.linear_decay if self.run.outer_schedule == "linear" else core.cosine_decay
            rate = decay(rate, self.run.iterations)
        optimizer = self.recipe.own_optimizer() or (self.learner or LearnerRow()).optimizer(rate)
        return core.chain(core.clip_by_global_norm(self.run.clip), optimizer) if self.run.clip else optimizer

    def sampler(self, split: Split) -> Sampler:
        """The learner's tasks of a split, on the device of the run."""
        source = (self.learner or LearnerRow()).sampler(self.recipe, split, self.device())
        return brought(self.recipe, f"sampler({split!r})", source, callable(source), "(key, count) -> tasks")

    def initial(self, learner: Learner) -> Tree:
        """The learner's meta-parameters before training. Raises OutOfMemoryError where they do not fit."""
        return within_memory(self, "the network", {}, learner.init, self.key())

    def validation(self, count: int) -> Task:
        """The fixed list of validation tasks: the same for the same seed."""
        return _drawn(self, "validation", count, "validation_tasks")

    def test_tasks(self, count: int) -> Task:
        """The fixed list of test tasks: the same for the same seed."""
        return _drawn(self, "test", count, "tasks")

    def test_classes(self, count: int) -> tuple[Tensor, tuple[str, ...]] | None:
        """Which class each label of the test tasks stands for, and all names; None where there are no classes."""
        from fmeta.core import fold
        from fmeta.tasks import Episodes

        source = self.sampler("test")
        if not isinstance(source, Episodes):
            return None
        return source.classes(fold(self.key(), "test tasks"), count), source.names

    def ready(self) -> Ready:
        """The parts of the run, each tried once, so that nothing fails after the folder of the run was made."""
        from fmeta.core import tree
        from fmeta.execution._memory import check_work
        from fmeta.gradients import meta_grad

        self.run.check(tuple(dict.fromkeys(("loss", self.recipe.metric.name))))
        check_ignored(self.recipe, self.run)
        self.use_threads()
        train, validation = self.sampler("train"), self.validation(self.run.validation_tasks)
        check_memory(self, "the tasks of a meta-step", {"meta_batch": self.run.meta_batch}, train, self.key())
        check_memory(self, "the test tasks", {"eval_tasks": self.run.eval_tasks}, self.sampler("test"), self.key())
        learner = self.build_learner()
        phases, meta = self.phases(learner), self.initial(learner)
        with warnings.catch_warnings(action="ignore"):  # training gives them
            one = tree.tree_map(lambda t: t[:1], validation)
            for gradient in phases.values():
                grads = meta_grad(learner, gradient)
                check_work(*said(self, "a meta-step of one task", {}), grads, meta, one)
                _, info = grads(meta, one)
        figures, metric = ("loss", *info.metrics), self.recipe.metric.name
        brought(self.recipe, "metric", metric, metric in figures, f"what its learner reports: {', '.join(figures)}")
        return Ready(learner, self.optimizer(), phases, train, validation)


def experiment(recipe: str | Recipe | type[Recipe] | Experiment, *, reference: str = "", **options: Any) -> Experiment:
    """An experiment from a recipe and options of any of its parts; all others have their defaults.

        fmeta.runs.experiment("omniglot", learner="protonet", distance="cosine", iterations=1000)

    Args:
        recipe: the name of an installed one, a recipe, its class, or an experiment to take the recipe of.
        reference: where a recipe without an entry point stands, `module:object` or `file.py:object`; by default where
            its class does.
        options: by name; `learner` and `gradient` name rows. `maml.inner_lr` is for maml alone, and nothing to others.

    Raises:
        InputError: no such recipe; OptionError for an option that no chosen part takes (it names who does), or a value
            of another type.
    """
    if isinstance(recipe, Experiment):
        reference = recipe.reference
        recipe = recipe.recipe
    kind = recipe_class(recipe) if isinstance(recipe, str) else recipe if isinstance(recipe, type) else type(recipe)
    given = {} if isinstance(recipe, str | type) else {f.name: getattr(recipe, f.name) for f in fields_in(recipe)}
    rows = offered(kind)
    name = options.pop("learner", None) or (kind.defaults.get("learner", next(iter(rows))) if rows else None)
    row = row_of("learner", name, rows, LEARNERS, kind) if name is not None else None
    own = row.gradient if row is not None else None
    chosen = options.pop("gradient", None) or own
    way = None if chosen is None else row_of("gradient", chosen, GRADIENTS, GRADIENTS, kind)
    parts: list[type] = [p for p in (kind, row, way, RunOptions) if p is not None]
    check_names(kind, parts[1:])
    mine = addressed(options, row, parts, rows)
    usual, of_row = addressed(kind.defaults, row, [], rows), row.defaults if row is not None else {}
    kept = isinstance(recipe, Recipe) and not set(mine) & set(given)
    ready: Any = recipe if kept else made_recipe(kind, given, mine)
    return Experiment(
        ready,
        None if row is None else made(row, usual, mine),
        None if way is None else made(way, usual, of_row, mine),
        made(RunOptions, usual, mine),
        reference or place_of(kind),
    )


def _device(name: str) -> torch.device:
    import torch

    try:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.empty(0, device=auto if name == "auto" else name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", name, f"{str(error).splitlines()[0]}; expected cpu, cuda or auto") from error
    if device.type == "meta":
        raise OptionError("device", name, "tensors have no values there; expected cpu, cuda or auto")
    return device


def fields_in(part: Any) -> tuple[dataclasses.Field, ...]:
    """The options of a part; none where it is no dataclass."""
    return dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()


def _learner_of(of: Experiment) -> Learner:
    from fmeta.core import Learner

    own = of.recipe.own_learner()
    if own is not None:
        return brought(of.recipe, "own_learner()", own, isinstance(own, Learner), "a Learner, or None")
    if of.learner is None:
        raise InputError(
            f"recipe {of.recipe.name}: it offers no learner; expected own_learner(), or offer() and `gives`"
        )
    offer = of.offer()
    learner = of.learner.build(offer)
    return learner if offer.finish is None else offer.finish(learner)


def _drawn(of: Experiment, split: Split, count: int, option: str) -> Task:
    """The fixed list of tasks of a split: the same for the same seed."""
    from fmeta.core import fold
    from fmeta.core._checks import check_tasks

    key = fold(of.key(), f"{split} tasks")
    tasks = within_memory(of, f"the {split} tasks", {option: count}, of.sampler(split), key)
    found = check_tasks(f"recipe {of.recipe.name}: sampler({split!r})", tasks)
    if found != count:
        raise InputError(f"recipe {of.recipe.name}: sampler({split!r}) drew {found} tasks; expected {count}, as asked")
    return tasks
