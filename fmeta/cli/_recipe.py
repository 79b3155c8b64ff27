"""What every recipe has: a typed dataclass with every choice of a run. Each field is an option of the command line."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch

import fmeta
from fmeta.core import InputError, Learner, MetaGradient, Model, Optimizer, Precision, Task, fold, key, loss_weights_of
from fmeta.core.tree import tree_map
from fmeta.execution import Scope
from fmeta.learners import append
from fmeta.tasks import Episodes, Sampler, Split

_COMPARING = ("protonet", "matching", "relation", "ridge", "task_encoder", "mann", "transfer", "transfer")


class Experiment(NamedTuple):
    """What a recipe describes, ready to run."""

    learner: Learner
    optimizer: Optimizer
    gradient: dict[int, MetaGradient]  # from which meta-step on
    train: Sampler
    validation: Task
    metric: str  # the headline figure: "loss" or the name of a metric


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """The choices every recipe has."""

    learner: Literal[
        "maml", "reptile", "meta_sgd", "anil", "boil", "cavia", "imaml", "protomaml", "maml_plus_plus",
        "meta_curvature", "protonet", "matching", "relation", "ridge", "task_encoder", "mann",
        "transfer",
    ] = "maml"  # fmt: skip
    """algorithm"""
    gradient: Literal[
        "auto", "unrolled", "adjoint", "truncated", "first_order", "difference", "implicit", "evolution"
    ] = "auto"
    """meta-gradient; auto is the learner's own"""
    last: int = 1
    """inner steps whose second-order term truncated keeps"""
    first_order_until: int = 0
    """meta-steps trained with first_order before the meta-gradient takes over"""
    multi_step: bool = False
    """minimise the loss after every inner step, weighed alike (maml_plus_plus does by itself)"""
    solver_iterations: int = 5
    """conjugate-gradient iterations of implicit"""
    sigma: float = 0.01
    """standard deviation of evolution's perturbations"""
    pairs: int = 16
    """antithetic pairs of evolution, for each task"""
    iterations: int = 15_000
    """meta-steps"""
    meta_batch: int = 25
    """tasks per meta-step"""
    shots: int = 10
    """support examples of a task (of a class, for classification)"""
    query: int = 10
    """query examples of a task (of a class, for classification)"""
    inner_optimizer: Literal["sgd", "momentum", "rmsprop", "adam"] = "sgd"
    """optimizer of the inner loop"""
    inner_lr: float = 0.01
    """rate of the inner loop, on the mean loss (where it starts, for meta_sgd and maml_plus_plus)"""
    inner_steps: int = 1
    """inner steps in training"""
    inner_batch: int = 0
    """examples of an inner step of reptile; 0 takes all"""
    inner_clip: float = 0.0
    """largest norm of the inner gradient; 0 does not clip"""
    adapt: str = "head.*"
    """parameters that anil adapts, as patterns separated by commas"""
    context: int = 5
    """context parameters of cavia"""
    damping: float = 2.0
    """pull of imaml's inner problem towards meta"""
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
    """figure of the validation by which the best checkpoint is chosen: loss, or accuracy"""
    patience: int = 0
    """validations that may be no better than the best before training stops; 0 never stops"""
    skip_nonfinite: bool = False
    """leave tasks out whose loss or gradient is not finite, and count them"""
    eval_tasks: int = 1000
    """test tasks"""
    eval_steps: tuple[int, ...] = (0, 1, 5, 10)
    """adaptation steps after which the test measures"""

    name: ClassVar[str]
    movable: ClassVar[tuple[str, ...]] = (
        "device", "threads", "log_every", "save_every", "validate_every", "monitor", "patience",
        "skip_nonfinite", "eval_tasks", "eval_steps",
    )  # fmt: skip

    def where(self) -> torch.device:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.empty(0, device=auto if self.device == "auto" else self.device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"recipe(device={self.device!r}): {reason}; expected cpu, cuda or auto") from error
        if device.type == "meta":
            raise InputError("recipe(device='meta'): tensors have no values there; expected cpu, cuda or auto")
        return device

    def key(self) -> torch.Tensor:
        return key(self.seed, self.where())

    def check(self) -> None:
        """Raises InputError for numbers that would fail in mid-run."""
        if self.first_order_until < 0:
            raise InputError(f"recipe(first_order_until={self.first_order_until}): expected 0 or more")
        for name in ("iterations", "meta_batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe({name}={getattr(self, name)}): expected at least 1")
        if self.threads < 0:
            raise InputError(f"recipe(threads={self.threads}): expected 0 or more")
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 0:
                raise InputError(f"recipe({name}={getattr(self, name)}): expected 0 or more")
        if self.validation_tasks < 1:
            raise InputError(f"recipe(validation_tasks={self.validation_tasks}): expected at least 1")
        if self.monitor not in ("loss", self.metric()):
            known = " or ".join(dict.fromkeys(("loss", self.metric())))
            raise InputError(f"recipe(monitor={self.monitor!r}): expected {known}")
        if self.eval_tasks < 2:
            raise InputError(f"recipe(eval_tasks={self.eval_tasks}): expected at least 2, for an interval")
        if not self.eval_steps or min(self.eval_steps) < 0:
            raise InputError(f"recipe(eval_steps={self.eval_steps}): expected one or more numbers of steps >= 0")

    def prepare(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)

    def experiment(self) -> Experiment:
        """The parts of the run, each tried once, so that nothing fails after the folder of the run was made."""
        self.check()
        self.prepare()
        train = self.sampler("train")
        validation = self.validation(self.validation_tasks)
        self.sampler("test")
        learner, phases = self.build_learner(), self.phases()
        with warnings.catch_warnings(action="ignore"):  # training gives them
            for gradient in phases.values():
                fmeta.meta_grad(learner, gradient)(learner.init(self.key()), tree_map(lambda t: t[:1], validation))
        return Experiment(learner, self.outer(), phases, train, validation, self.metric())

    def validation(self, count: int) -> Task:
        """The fixed list of validation tasks: the same for the same seed."""
        return self.sampler("validation")(fold(self.key(), "validation tasks"), count)

    def test_tasks(self, count: int) -> Task:
        """The fixed list of test tasks: the same for the same seed."""
        return self.sampler("test")(fold(self.key(), "test tasks"), count)

    def test_classes(self, count: int) -> tuple[torch.Tensor, tuple[str, ...]] | None:
        """Which class each label of the test tasks stands for, and all names; None for a recipe without classes."""
        source = self.sampler("test")
        return (
            (source.classes(fold(self.key(), "test tasks"), count), source.names)
            if isinstance(source, Episodes)
            else None
        )

    # what a recipe of one domain decides
    @abstractmethod
    def sampler(self, split: Split) -> Sampler:
        """Draws tasks of one split."""

    @abstractmethod
    def model(self) -> Model:
        """The network of the learner at hand."""

    def metric(self) -> str:
        return "loss"

    def facts(self) -> dict[str, Any]:
        """The protocol, to stand beside every figure."""
        return {"recipe": self.name, "shots": self.shots, "seed": self.seed}

    def losses(self) -> dict[str, Any]:
        return {"loss": fmeta.mse}

    def condition(self) -> Callable[[Any, torch.Tensor], Any]:
        """How cavia's context enters the model."""
        return append

    @property
    def encodes(self) -> bool:
        """Whether the learner takes a network without a head."""
        return self.learner in ("protomaml", *_COMPARING)

    def comparing(self) -> dict[str, Any]:
        """Options of the learners without an inner loop, at hand for classes only."""
        raise InputError(f"recipe {self.name}(learner={self.learner!r}): it needs classes; expected another learner")

    def each_step(self) -> dict[str, str]:
        """The parameters that maml_plus_plus learns for each step, where they are not the default."""
        return {"each_step": ""}

    # parts
    def build_learner(self) -> Learner:
        model = fmeta.with_precision(self.model(), self.precision, self.where())
        if self.learner in _COMPARING:
            return getattr(fmeta, self.learner)(model, **self.comparing())
        kind: dict[str, Any] = {"steps": self.inner_steps, **self.losses()}
        own: dict[str, dict[str, Any]] = {
            "meta_sgd": {"lr": self.inner_lr},
            "maml_plus_plus": {"lr": self.inner_lr, **self.each_step()},
            "reptile": {"batch": self.inner_batch or None},
            "anil": {"adapt": self.adapt},
            "cavia": {"context": self.context, "condition": self.condition()},
            "imaml": {"damping": self.damping, "gradient": fmeta.implicit(fmeta.cg(self.solver_iterations))},
            "protomaml": {"ways": getattr(self, "ways", 0)},
        }
        if self.learner not in ("meta_sgd", "maml_plus_plus"):
            kind["optimizer"] = self.inner()
        return getattr(fmeta, self.learner)(model, **kind, **own.get(self.learner, {}))

    def inner(self) -> Optimizer:
        optimizers = {"sgd": fmeta.sgd, "momentum": fmeta.momentum, "rmsprop": fmeta.rmsprop, "adam": fmeta.adam}
        optimizer = optimizers[self.inner_optimizer](self.inner_lr)
        return fmeta.chain(fmeta.clip_by_global_norm(self.inner_clip), optimizer) if self.inner_clip else optimizer

    def meta_gradient(self) -> MetaGradient:
        own = self.build_learner().gradient
        chosen = (
            "unrolled" if self.gradient == "auto" and own == fmeta.unrolled(loss_weights_of(own)) else self.gradient
        )
        weighing = ("unrolled", "adjoint", "truncated", "first_order")
        if self.multi_step and chosen not in weighing:
            raise InputError(
                f"recipe(multi_step=True, gradient={self.gradient!r}): expected a meta-gradient that weighs the losses "
                f"of all steps: {', '.join(weighing)}"
            )
        weights = fmeta.multi_step(self.inner_steps) if self.multi_step or self.learner == "maml_plus_plus" else None
        ways: dict[str, Callable[[], MetaGradient]] = {
            "unrolled": lambda: fmeta.unrolled(weights),
            "adjoint": lambda: fmeta.adjoint(weights),
            "truncated": lambda: fmeta.truncated(self.last, weights),
            "first_order": lambda: fmeta.first_order(weights),
            "difference": fmeta.difference,
            "implicit": lambda: fmeta.implicit(fmeta.cg(self.solver_iterations)),
            "evolution": lambda: fmeta.evolution(self.sigma, self.pairs),
        }
        return own if chosen == "auto" else ways[chosen]()

    def phases(self) -> dict[int, MetaGradient]:
        """First meta-step -> meta-gradient from there on."""
        gradient = self.meta_gradient()
        if not self.first_order_until:
            return {0: gradient}
        return {0: fmeta.first_order(loss_weights_of(gradient)), self.first_order_until: gradient}

    def outer(self) -> Optimizer:
        schedules = {
            "constant": lambda: self.outer_lr,
            "linear": lambda: fmeta.linear_decay(self.outer_lr, self.iterations),
            "cosine": lambda: fmeta.cosine_decay(self.outer_lr, self.iterations),
        }
        rate = schedules[self.outer_schedule]()
        optimizer = fmeta.sgd(rate) if self.learner == "reptile" else fmeta.adam(rate)
        return fmeta.chain(fmeta.clip_by_global_norm(self.clip), optimizer) if self.clip else optimizer


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields that decide the run and differ: name -> (old, new). Without a schedule more iterations are none."""
    fields = [f.name for f in dataclasses.fields(old) if f.name not in old.movable]
    differ = {f: (getattr(old, f), getattr(new, f)) for f in fields if getattr(old, f) != getattr(new, f)}
    if new.iterations > old.iterations and old.outer_schedule == "constant":
        differ.pop("iterations", None)
    return differ
