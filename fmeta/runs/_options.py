"""The choices that every run has, and what a row of a learner or a meta-gradient is. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from typeguard import TypeCheckError, check_type

from fmeta._errors import InputError, nearest

if TYPE_CHECKING:
    import torch

    from fmeta.core import Learner, MetaGradient, Optimizer
    from fmeta.runs._recipe import Offer, Recipe
    from fmeta.tasks import Sampler, Split

Scope = Literal["none", "whole", "step", "auto"]  # as in fmeta.execution, which imports torch
Precision = Literal["float32", "tf32", "bfloat16"]  # as in fmeta.core
Part = TypeVar("Part")


class OptionError(InputError):
    """An option that does not fit. The command line says `--inner-lr` for what is `inner_lr` here."""

    def __init__(self, option: str, value: Any, problem: str) -> None:
        super().__init__(f"{option}={value!r}: {problem}")
        self.option, self.value, self.problem = option, value, problem


class UnknownOption(OptionError):
    """An option that is not there. The command line spells the known ones its own way."""

    def __init__(self, option: str, value: Any, known: Iterable[str]) -> None:
        self.known = list(dict.fromkeys(known))
        super().__init__(option, value, f"no such option here; {nearest(option.rpartition('.')[2], self.known)}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The choices of every run."""

    iterations: int = 15_000
    """meta-steps"""
    meta_batch: int = 25
    """tasks per meta-step"""
    outer_lr: float = 1e-3
    """rate of the outer loop: of Adam, or for reptile of plain interpolation"""
    outer_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """how the outer rate falls to 0 over the iterations"""
    clip: float = 0.0
    """largest norm of the meta-gradient; 0 does not clip"""
    seed: int = 0
    """decides the initialisation and every task"""
    compile: Scope = "auto"
    """what is compiled: nothing, the whole step as one graph, its stages, or what is fastest here"""
    precision: Precision = "float32"
    """of the network's forward and backward pass; parameters and updates stay in float32"""
    device: str = "auto"
    """cpu, cuda, or auto: CUDA where there is one"""
    threads: int = 0
    """processor threads; 0 takes torch's choice"""
    log_every: int = 100
    """meta-steps between lines of metrics.jsonl"""
    save_every: int = 1000
    """meta-steps between checkpoints"""
    validate_every: int = 0
    """meta-steps between validations; 0 takes save_every"""
    validation_tasks: int = 200
    """tasks of a validation, always the same"""
    monitor: str = "loss"
    """figure of the validation by which the best checkpoint is chosen: loss, or the recipe's own"""
    patience: int = 0
    """validations that may be no better than the best before training stops; 0 never stops"""
    tensorboard: bool = True
    """write events for TensorBoard too, where that is installed"""
    skip_nonfinite: bool = False
    """leave tasks out whose loss or gradient is not finite, and count them"""
    eval_tasks: int = 1000
    """test tasks"""
    eval_steps: tuple[int, ...] = (0, 1, 5, 10)
    """adaptation steps after which the test measures, for learners with an inner loop"""

    movable: ClassVar[tuple[str, ...]] = (  # what a run may change on the way and stay itself
        "device", "threads", "tensorboard", "log_every", "save_every", "validate_every", "monitor", "patience",
        "skip_nonfinite", "eval_tasks", "eval_steps",
    )  # fmt: skip

    def check(self, figures: tuple[str, ...]) -> None:
        """Raises OptionError for numbers that would fail in mid-run; `figures` are what a validation gives."""
        least = dict.fromkeys(("iterations", "meta_batch", "log_every", "save_every", "validation_tasks"), 1)
        least |= dict.fromkeys(("threads", "validate_every", "patience"), 0)
        for name, low in least.items():
            if getattr(self, name) < low:
                raise OptionError(name, getattr(self, name), f"expected at least {low}")
        if not self.outer_lr > 0:
            raise OptionError("outer_lr", self.outer_lr, "expected a positive rate")
        if not self.clip >= 0:
            raise OptionError("clip", self.clip, "expected a norm, or 0, which does not clip")
        if self.monitor not in figures:
            raise OptionError("monitor", self.monitor, f"expected {' or '.join(figures)}")
        if self.eval_tasks < 2:
            raise OptionError("eval_tasks", self.eval_tasks, "expected at least 2, for an interval")
        if not self.eval_steps or min(self.eval_steps) < 0:
            raise OptionError("eval_steps", self.eval_steps, "expected one or more numbers of steps >= 0")


@dataclass(frozen=True, kw_only=True)
class LearnerRow:
    """A learner's options, and how it is made of what a recipe offers: the fields are the options of it alone."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"head"})  # of what a recipe `gives`
    gradient: ClassVar[str] = "unrolled"  # the row of its own meta-gradient
    tests_on: ClassVar[str] = "episodes"  # the form of its test tasks: learners of one form can be compared
    defaults: ClassVar[Mapping[str, Any]] = {}  # of its meta-gradient's options, where they are other than the row's

    def build(self, offer: Offer) -> Learner:
        row = type(self).__name__
        raise InputError(f"learner row {row}: it has no build(offer); expected one that returns a Learner")

    def optimizer(self, rate: Any) -> Optimizer:
        """Of the outer loop, at the rate or the schedule of the run."""
        from fmeta.core import adam

        return adam(rate)

    def sampler(self, recipe: Recipe, split: Split, device: torch.device) -> Sampler:
        """The tasks it trains or is tested on: the recipe's, unless it reads them otherwise."""
        return recipe.sampler(split, device)


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """A meta-gradient's options, and how it is made for a learner that takes so many inner steps."""

    name: ClassVar[str]

    def build(self, steps: int) -> MetaGradient:
        row = type(self).__name__
        raise InputError(f"meta-gradient row {row}: it has no build(steps); expected one that returns a MetaGradient")

    def phases(self, steps: int) -> dict[int, MetaGradient]:
        """First meta-step -> meta-gradient from there on."""
        return {0: self.build(steps)}


def fields_of(part: type) -> dict[str, Any]:
    """Options -> types; none where it is no dataclass."""
    if not dataclasses.is_dataclass(part):
        return {}
    hints = get_type_hints(part)
    return {field.name: hints[field.name] for field in dataclasses.fields(part)}


def made(part: type[Part], *sources: Mapping[str, Any]) -> Part:
    """A part with the values that the sources have for it, the last of them first."""
    names = fields_of(part)
    return part(**{n: v for source in sources for n, v in source.items() if n in names})


def check_value(option: str, value: Any, hint: Any) -> None:
    """Raises OptionError where an option of that type cannot have this value."""
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices and value not in choices:
        raise OptionError(option, value, nearest(str(value), map(str, choices)))
    try:
        check_type(value, hint)
    except TypeCheckError as error:
        raise OptionError(option, value, f"{error}; expected {getattr(hint, '__name__', hint)}") from error


def spelled_out(value: Any) -> str:
    """A value as it is typed: several numbers with spaces between."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def registered(rows: dict[str, type], name: str) -> Callable[[type[Part]], type[Part]]:
    """A decorator that puts a row into its table under its name."""

    def register(row: type[Part]) -> type[Part]:
        row.name = name  # type: ignore[attr-defined]
        rows[name] = row
        return row

    return register
