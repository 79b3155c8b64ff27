"""The meta-step of a run at each moment: by phase, compiled, over the ranks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fmeta.core import GradFn, Info, InputError, Learner, MetaGradient, Stage, Staged, Task, eager
from fmeta.core._checks import check_tasks
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution import compile
from fmeta.execution._compile import Execution
from fmeta.gradients import meta_grad, skipping
from fmeta.gradients._evolution import Evolution
from fmeta.gradients._first_look import first_look
from fmeta.gradients._skipping import Skipping
from fmeta.training._batches import Batches
from fmeta.training._ranks import Ranks, across_ranks
from fmeta.training._trainer import State, Trainer


class Steps:
    """Makes the step of the phase at hand, when that begins."""

    def __init__(self, trainer: Trainer, run: Execution, ranks: Ranks, meta_batch: int, batches: Batches) -> None:
        self.trainer, self.run, self.ranks, self.batches = trainer, run, ranks, batches
        self.shared = None if trainer.whole_batch else meta_batch
        self._phase = -1
        self._step: Callable[..., Any] | None = None
        self._flops: dict[int, tuple[int, int]] | None = None

    def gradient(self, at: int) -> MetaGradient | None:
        return self.trainer.phases.get(self.trainer.phase(at))

    def skips(self, at: int) -> bool:
        return isinstance(self.gradient(at), Skipping)

    def flops(self, at: int, tasks: int) -> int:
        """Operations of the matrix products and convolutions of a meta-step, two for a product and its addition."""
        fixed, each = (self._flops or {}).get(self.trainer.phase(at), (0, 0))
        return fixed + tasks * each

    def at(self, at: int, state: State, tasks: Task) -> Callable[..., Any]:
        """`(state, tasks) -> (state, info)` of meta-step `at`. The first batch is tried eager before anything else."""
        if self._flops is None:
            self._flops = self._tried(state, tasks)
        phase = self.trainer.phase(at)
        if self._step is None or self._phase != phase:
            self._phase, self._step = phase, self._made(self.gradient(at))
        return self._step

    def _tried(self, state: State, tasks: Task) -> dict[int, tuple[int, int]]:
        """The operations of each phase, whatever the number of tasks and for each; also for what a phase, of the
        meta-gradient or of the tasks, would raise when it begins."""
        finite = not any(isinstance(gradient, Skipping) for gradient in self.trainer.phases.values())
        _adapt_once(self.trainer, state, tasks, finite)
        for later in self.batches.of_later_sources() if self.trainer.host is None else ():
            _adapt_once(self.trainer, state, later, finite)
        build = self.trainer.build
        if build is None:
            return {}
        with contextlib.ExitStack() as stack:
            if self.run.scope == "none":
                stack.enter_context(warnings.catch_warnings(action="ignore"))  # the steps themselves give them
            tried = {
                first: self._tried_with(build(gradient, eager), state, tasks)
                for first, gradient in self.trainer.phases.items()
            }
        for first, (_, info) in tried.items():
            if _trains_nothing(info):
                self._tell_of_nothing(self.trainer.phases[first], info)
        return {first: flops for first, (flops, _) in tried.items()}

    def _tried_with(self, step: Staged, state: State, tasks: Task) -> tuple[tuple[int, int], Info]:
        """The operations of a phase, and what it sees: on one task, and on all where that has no gradient."""
        flops, info = _operations(step, state, tasks, self.trainer.whole_batch)
        return flops, step(state, tasks)[1] if _trains_nothing(info) else info

    def _tell_of_nothing(self, gradient: MetaGradient, info: Info) -> None:
        said = f"fit({self.trainer.name}): the meta-gradient of the first batch is exactly zero in every parameter"
        if isinstance(gradient, Evolution):  # whose few draws may see no difference, as of a loss in steps
            warnings.warn(f"{said}; more pairs, or a larger sigma, see more", stacklevel=2)
            return
        raise InputError(
            f"{said}, at a loss of {float(info.loss):g}, so nothing would train; expected a loss that depends on the "
            "parameters; look for torch.no_grad, .detach(), .data or .item() in forward or in the loss, and for "
            "requires_grad=False on the whole network, which fmeta.evaluate measures as it is"
        )

    def _made(self, gradient: MetaGradient | None) -> Callable[..., Any]:
        build, scope = self.trainer.build, self.run.scope
        if build is None or gradient is None:
            return compile(self.trainer.step, scope=scope)
        skips = isinstance(gradient, Skipping)
        if self.ranks.count == 1 and not skips:
            return self.run.whole(build(gradient, self.run.stage))
        # Python decides or communicates around the graph
        outside: MetaGradient = _Inside(gradient.gradient if isinstance(gradient, Skipping) else gradient, self.run)
        if skips:
            outside = skipping(outside)
        if self.ranks.count > 1:
            outside = across_ranks(outside, self.ranks, self.shared, self.batches.ahead)
        return build(outside, eager if scope == "none" else compile)


def _adapt_once(trainer: Trainer, state: State, tasks: Task, finite: bool) -> None:
    """Adapts to a batch eagerly, for the errors that a compiled function cannot raise."""
    learner = trainer.learner
    if learner is not None:
        check_tasks("fit", tasks)
        first_look("fit", learner, state.meta, tasks, finite=finite)
    elif isinstance(trainer.step, Staged):
        trainer.step.check(state, tasks)


def _operations(step: Staged, state: State, tasks: Task, mixes: bool) -> tuple[tuple[int, int], Info]:
    """Counted on one task, and on two where the step takes in more than the tasks it is given; and what the first of
    these steps saw."""

    def count(tasks: Task) -> tuple[int, Info]:
        with FlopCounterMode(display=False) as counter:
            _, info = step(state, tasks)
        return counter.get_total_flops(), info

    one, info = count(tree_map(lambda leaf: leaf[:1], tasks))
    if not mixes or len(tree_leaves(tasks)[0]) == 1:
        return (0, one), info
    each = count(tree_map(lambda leaf: leaf[:2], tasks))[0] - one
    return (one - each, each), info


def _trains_nothing(info: Any) -> bool:
    """Whether the gradient is zero where the loss is not."""
    norm = getattr(info, "gradient_norm", ())
    return isinstance(norm, torch.Tensor) and float(norm) == 0 and float(info.loss) != 0


@dataclass(frozen=True)
class _Inside:
    """A meta-gradient that is compiled by itself, whatever is around it."""

    gradient: MetaGradient | None
    run: Execution

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        return self.run.whole(meta_grad(learner, self.gradient, self.run.stage))


def check_bare(trainer: Trainer, ranks: Ranks) -> None:
    """Says what a trainer of init and step alone does without; refuses what it cannot do.

    Raises InputError for several processes, and for phases without a `build`.
    """
    if trainer.build is not None and trainer.phases:
        return
    if trainer.phases or trainer.build is not None:
        missing = "build" if trainer.build is None else "phases"
        raise InputError(f"fit({trainer.name}): the trainer has no {missing}; expected phases and build, or neither")
    if ranks.count > 1:
        raise InputError(
            f"fit({trainer.name}): {ranks.count} processes, and this trainer has no `build` to share its tasks out; "
            "expected one process, or a Trainer with phases and build"
        )
    warnings.warn(
        f"fit({trainer.name}): a trainer of init and step alone; it trains on one process, and does without trying its "
        "input first, skipping tasks that are not finite, compiling in pieces (unless its step is a Staged), "
        "floating-point operations in what is told, and advice where memory ends; fmeta.Trainer says which field "
        "brings what",
        stacklevel=4,
    )


def check_state(name: str, state: Any) -> None:
    """Raises InputError unless a state has what `fit` needs."""
    fields = getattr(state, "_fields", ())
    counts = [getattr(state, field, None) for field in ("step", "bad")]
    fits = all(isinstance(t, torch.Tensor) and t.dtype == torch.int64 and t.ndim == 0 for t in counts)
    odd = [type(leaf).__name__ for leaf in tree_leaves(state) if not isinstance(leaf, torch.Tensor)]
    if not {"meta", "step", "bad"} <= set(fields) or not fits or odd:
        came = f"a {type(state).__name__}" + (f" with the fields {', '.join(fields)}" if fields else "")
        came += f", and a {odd[0]} in it" if odd else ""
        raise InputError(
            f"fit({name}): init gives {came}; expected a NamedTuple of tensors, with meta, and step and bad, int64 [], "
            "0 and -1 at the beginning"
        )
