"""`trainer`: one meta-step as a pure function of the training state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import Info, Learner, MetaGradient, Optimizer, Stage, Staged, Task, Tree, eager, tree
from fmeta.core._checks import check_meta, check_optimizer
from fmeta.core.tree import global_norm
from fmeta.gradients import meta_grad


class TrainState(NamedTuple):
    """Everything training needs to go on, all tensors."""

    meta: Tree
    opt_state: Tree
    step: Tensor  # int64 [] meta-steps taken
    bad: Tensor  # int64 [] the first step whose loss, gradient or update was not finite, or -1


class Trainer(NamedTuple):
    init: Callable[[Tensor], TrainState]  # key -> state
    step: Callable[[TrainState, Task], tuple[TrainState, Info]]  # state, tasks -> state, info


def trainer(
    learner: Learner, optimizer: Optimizer, gradient: MetaGradient | None = None, *, stage: Stage = eager
) -> Trainer:
    """Meta-training of a learner with an outer optimizer.

    `step(state, tasks)` takes the meta-gradient of the batch and updates. Where the loss, the gradient or the updated
    state is not finite the update is withheld, on the device and without a synchronisation: the state stays as it was,
    `state.bad` records the step, and no later step changes anything.

    Args:
        learner: what adapts.
        optimizer: of the outer loop.
        gradient: how to differentiate through the adaptation; None is the learner's own.
        stage: wraps each piece of the work, as in `meta_grad`. To compile the whole step, leave it alone and use
            `fmeta.compile(trainer.step)`.
    """
    check_optimizer("trainer", optimizer)
    grads_of = meta_grad(learner, gradient, stage)

    def init(key: Tensor) -> TrainState:
        meta = learner.init(key)
        check_meta(f"trainer({learner.name}).init", meta)
        count = torch.zeros((), dtype=torch.int64, device=key.device)
        return TrainState(meta, optimizer.init(meta), count, count - 1)

    @stage
    def apply(state: TrainState, grads: Tree, losses: Tensor) -> tuple[TrainState, Tensor]:
        # not their mean: a scalar of float64 counts as a Python number, and the compiler starts again when it is NaN
        updates, opt_state = optimizer.update(grads, state.opt_state, state.meta)
        moved = TrainState(tree.add(state.meta, updates), opt_state, state.step + 1, state.bad)
        finite = torch.stack([t.isfinite().all() for t in (losses, *tree.tree_leaves((grads, moved)))]).all()
        stopped = state._replace(bad=torch.where(state.bad < 0, state.step, state.bad))
        return tree.where(finite & (state.bad < 0), moved, stopped), global_norm(grads)

    def step(state: TrainState, tasks: Task) -> tuple[TrainState, Info]:
        grads, info = grads_of(state.meta, tasks)
        with torch.no_grad():
            state, norm = apply(state, grads, info.losses)
            return state, info._replace(gradient_norm=norm)

    def check(state: TrainState, tasks: Task) -> None:
        grads_of.check(state.meta, tasks)

    return Trainer(init, Staged(step, check, lambda stage: trainer(learner, optimizer, gradient, stage=stage).step))
