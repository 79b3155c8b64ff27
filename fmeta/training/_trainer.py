"""`Trainer`: what the loop of `fit` goes around, a value; and `trainer`, the one that takes a meta-gradient."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fmeta.core import Info, InputError, Learner, MetaGradient, Optimizer, Stage, Staged, Task, Tree, eager, tree
from fmeta.core._checks import check_meta, check_optimizer
from fmeta.core.tree import global_norm
from fmeta.gradients import meta_grad


class State(Protocol):
    """What `fit` needs of a trainer's state: a NamedTuple of tensors with these among its fields."""

    @property
    def meta(self) -> Tree: ...
    @property
    def step(self) -> Tensor: ...  # int64 [] meta-steps taken
    @property
    def bad(self) -> Tensor: ...  # int64 [] the first step that was withheld, or -1
    @property
    def _replace(self) -> Callable[..., Any]: ...


S = TypeVar("S", bound=State)


class TrainState(NamedTuple):
    """Everything training needs to go on, all tensors."""

    meta: Tree
    opt_state: Tree
    step: Tensor  # int64 [] meta-steps taken
    bad: Tensor  # int64 [] the first step whose loss, gradient or update was not finite, or -1


class Trainer(NamedTuple):
    """Meta-training as a value: how it begins, what one meta-step does, and what the loop of `fit` needs to know of it.

    A state is a NamedTuple of tensors with the fields `meta`, `step` and `bad` of `TrainState`, and any others: a
    memory, a target network. A step is a pure function that moves `state.step` on by one; it may take several updates
    on its batch, and `withhold` keeps what is not finite out of the state.

    `init` and `step` are enough to train on one process. With `build` and `phases` the loop can put the meta-gradient
    on several processes, leave out tasks that are not finite, compile piece by piece, tell floating-point operations,
    and say what would fit where memory ends:

        def build(gradient, stage):                     # of every phase, for every way to run it
            grads_of = meta_grad(learner, gradient, stage)
            update = stage(…)                           # all else that computes, in pieces that a stage can wrap
            def step(state, tasks): …                   # calls them; what it decides in Python is the same every time
            return Staged(step, check, functools.partial(build, gradient))

    To collect the tasks of a step with the present weights: `trainer._replace(host=collect)`.
    """

    init: Callable[[Tensor], Any]  # key -> state
    step: Callable[[Any, Task], tuple[Any, Info]]  # state, tasks -> state, info; of the first phase
    name: str = "trainer"  # in what is told
    phases: Mapping[int, MetaGradient] = {}  # first meta-step -> meta-gradient from there on; 0 is one
    build: Callable[[MetaGradient, Stage], Staged] | None = None  # the step, with a stage around each piece of its work
    learner: Learner | None = None  # tried eagerly on the first batch, for the errors that a compiled step cannot raise
    # state, tasks -> tasks, between sampling and step: what no trace can hold, and the same for the same arguments
    host: Callable[[Any, Task], Task] | None = None
    # each process sees all tasks of a meta-batch, as a memory must, and the meta-gradient alone is shared out
    whole_batch: bool = False

    def phase(self, at: int) -> int:
        """The first meta-step of the phase that meta-step `at` is in."""
        return max((first for first in self.phases if first <= at), default=0)


def trainer(
    learner: Learner,
    optimizer: Optimizer,
    gradient: MetaGradient | Mapping[int, MetaGradient | None] | None = None,
    *,
    stage: Stage = eager,
) -> Trainer:
    """Meta-training of a learner with an outer optimizer: one meta-gradient, one update.

    `step(state, tasks)` takes the meta-gradient of the batch and updates. Where the loss, the gradient or the updated
    state is not finite the update is withheld, on the device and without a synchronisation: the state stays as it was,
    `state.bad` records the step, and no later step changes anything.

    Args:
        learner: what adapts.
        optimizer: of the outer loop.
        gradient: how to differentiate through the adaptation; None is the learner's own. A mapping from meta-steps to
            meta-gradients swaps them on the way: `{0: first_order(), 5000: unrolled()}` anneals from first to second
            order, and the outer optimizer goes on undisturbed. `fit` goes through the phases; `step` is that of the
            first, `build(phases[phase(at)], eager)` that of meta-step `at`.
        stage: wraps each piece of the work, as in `meta_grad`. To compile the whole step, leave it alone and use
            `fmeta.compile(trainer.step)`.

    Raises:
        InputError: an optimizer that does not descend, a meta-gradient that does not fit the learner, phases that do
            not begin at 0.
    """
    check_optimizer("trainer", optimizer)

    def init(key: Tensor) -> TrainState:
        meta = learner.init(key)
        check_meta(f"trainer({learner.name}).init", meta)
        count = torch.zeros((), dtype=torch.int64, device=key.device)
        return TrainState(meta, optimizer.init(meta), count, count - 1)

    def build(gradient: MetaGradient, stage: Stage) -> Staged:
        grads_of = meta_grad(learner, gradient, stage)

        @stage
        def apply(state: TrainState, grads: Tree, losses: Tensor) -> tuple[TrainState, Tensor]:
            # not their mean: a float64 scalar counts as a Python number, and the compiler starts again when it is NaN
            updates, opt_state = optimizer.update(grads, state.opt_state, state.meta)
            moved = TrainState(tree.add(state.meta, updates), opt_state, state.step + 1, state.bad)
            return withhold(state, moved, (losses, grads, moved)), global_norm(grads)

        def step(state: TrainState, tasks: Task) -> tuple[TrainState, Info]:
            grads, info = grads_of(state.meta, tasks)
            with torch.no_grad():
                state, norm = apply(state, grads, info.losses)
                return state, info._replace(gradient_norm=norm)

        def check(state: TrainState, tasks: Task) -> None:
            grads_of.check(state.meta, tasks)

        return Staged(step, check, functools.partial(build, gradient))

    phases = phases_of(learner, gradient)
    steps = {first: build(chosen, stage) for first, chosen in phases.items()}  # what does not fit is refused now
    return Trainer(init, steps[0], learner.name, phases, build, learner)


def withhold(state: S, moved: S, seen: Tree) -> S:
    """`moved`, where every number in `seen` is finite and no step before was withheld; else `state`, which then says in
    `bad` at which step. On the device, without a synchronisation."""
    going = state.bad < 0
    stopped = state._replace(bad=torch.where(going, state.step, state.bad))
    good = torch.stack([going, *(leaf.isfinite().all() for leaf in tree.tree_leaves(seen))]).all()
    return tree.where(good, moved, stopped)


def phases_of(
    learner: Learner, gradient: MetaGradient | Mapping[int, MetaGradient | None] | None
) -> dict[int, MetaGradient]:
    """The first meta-step of each meta-gradient; None is the learner's own."""
    phases = gradient if isinstance(gradient, Mapping) else {0: gradient}
    check_phases("trainer(gradient=a mapping)", "meta-gradient", phases)
    return {first: learner.gradient if chosen is None else chosen for first, chosen in phases.items()}


def check_phases(call: str, of: str, phases: Mapping[int, Any]) -> None:
    """Raises InputError unless the keys are meta-steps, 0 among them."""
    if 0 not in phases or not all(isinstance(first, int) and first >= 0 for first in phases):
        raise InputError(
            f"{call}: its keys are {list(phases)}; expected the first meta-step of each {of}, integers, 0 among them"
        )
