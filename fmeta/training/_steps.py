"""The meta-step of a run at each moment: by phase, compiled, over the ranks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fmeta.core import GradFn, InputError, Learner, MetaGradient, Optimizer, Stage, Task, Tree, eager
from fmeta.core._checks import check_tasks
from fmeta.core.tree import tree_map
from fmeta.execution import compile
from fmeta.execution._compile import Execution
from fmeta.gradients import meta_grad, skipping
from fmeta.operators._over_tasks import over_tasks
from fmeta.training._ranks import Ranks, across_ranks
from fmeta.training._trainer import trainer

Phases = dict[int, MetaGradient | None]  # first meta-step -> meta-gradient from there on


def phases_of(gradient: MetaGradient | Mapping[int, MetaGradient] | None) -> Phases:
    if not isinstance(gradient, Mapping):
        return {0: gradient}
    if 0 not in gradient or not all(isinstance(first, int) and first >= 0 for first in gradient):
        raise InputError(
            f"fit(gradient=a mapping): its keys are {list(gradient)}; expected the first meta-step of each "
            "meta-gradient, integers, 0 among them"
        )
    return dict(gradient)


class Steps:
    """Makes the step of the phase at hand, when that begins."""

    def __init__(
        self,
        learner: Learner,
        optimizer: Optimizer,
        phases: Phases,
        run: Execution,
        skip_nonfinite: bool,
        ranks: Ranks,
        meta_batch: int,
        meanwhile: Callable[[], Any],
    ) -> None:
        self.learner, self.optimizer, self.phases, self.run = learner, optimizer, phases, run
        self.skip_nonfinite, self.ranks, self.meta_batch, self.meanwhile = skip_nonfinite, ranks, meta_batch, meanwhile
        self._phase = -1
        self._step: Callable[..., Any] | None = None
        self._flops = dict[int, int]()

    def gradient(self, at: int) -> MetaGradient | None:
        return self.phases[self._first(at)]

    def flops(self, at: int) -> int:
        """Operations of the matrix products and convolutions of one task, two for a product and its addition."""
        return self._flops[self._first(at)]

    def at(self, at: int, meta: Tree, tasks: Task) -> Callable[..., Any]:
        """`(state, tasks) -> (state, info)` of meta-step `at`. The first batch is tried eager before anything else."""
        if not self._flops:
            _adapt_once(self.learner, meta, tasks)
            one = tree_map(lambda leaf: leaf[:1], tasks)
            with contextlib.ExitStack() as stack:
                if self.run.scope == "none":
                    stack.enter_context(warnings.catch_warnings(action="ignore"))  # the steps themselves give them
                for first, chosen in self.phases.items():  # also for what a later phase would raise
                    with FlopCounterMode(display=False) as counter:
                        meta_grad(self.learner, chosen)(meta, one)
                    self._flops[first] = counter.get_total_flops()
        if self._phase != self._first(at):
            self._phase = self._first(at)
            self._step = self._made(self.phases[self._phase])
        assert self._step is not None
        return self._step

    def _first(self, at: int) -> int:
        return max(first for first in self.phases if first <= at)

    def _made(self, gradient: MetaGradient | None) -> Callable[..., Any]:
        if self.ranks.count == 1 and not self.skip_nonfinite:
            return self.run.whole(trainer(self.learner, self.optimizer, gradient, stage=self.run.stage).step)
        outside: MetaGradient = _Inside(gradient, self.run)  # Python decides or communicates around the graph
        if self.skip_nonfinite:
            outside = skipping(outside)
        if self.ranks.count > 1:
            outside = across_ranks(outside, self.ranks, self.meta_batch, self.meanwhile)
        stage = eager if self.run.scope == "none" else compile
        return trainer(self.learner, self.optimizer, outside, stage=stage).step


@dataclass(frozen=True)
class _Inside:
    """A meta-gradient that is compiled by itself, whatever is around it."""

    gradient: MetaGradient | None
    run: Execution

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        return self.run.whole(meta_grad(learner, self.gradient, self.run.stage))


def _adapt_once(learner: Learner, meta: Tree, tasks: Task) -> None:
    """Adapts to a batch eagerly, for the errors that a compiled function cannot raise."""
    check_tasks("fit", tasks)
    with torch.no_grad():
        over_tasks(lambda m, t: learner.loss(learner.adapt(m, t.support, t.key), m, t.query))(meta, tasks)
