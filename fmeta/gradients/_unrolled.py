"""`unrolled`: reverse mode through the whole adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.func import grad

from fmeta.core._inner import trajectory
from fmeta.core._types import GradFn, Info, Learner, MetaGradient, Stage, Task, Tree, WeighingSteps
from fmeta.gradients._batched import as_weights, inner_of, step_weights
from fmeta.operators._over_tasks import over_tasks

Outcome = tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]  # what is minimised; the loss after adaptation, metrics


def unrolled(loss_weights: Sequence[float] | None = None) -> MetaGradient:
    """The exact meta-gradient, by reverse mode through whatever `adapt` does.

        d/dmeta  1/T Σₜ loss(adapt(meta, supportₜ), meta, queryₜ)

    For learners without an inner loop this is plain training. Memory grows with the inner steps times the activations
    of one step. Finn et al. 2017, https://arxiv.org/abs/1703.03400.

    Args:
        loss_weights: one weight for the query loss after each inner step; their sum is minimised in place of the loss
            after the last step (MAML++'s multi-step loss, Antoniou et al. 2019, https://arxiv.org/abs/1810.09502;
            `multi_step` makes the paper's). `Info` reports the loss after the last step all the same.
    """
    return _Unrolled(as_weights("unrolled", loss_weights))


@dataclass(frozen=True)
class _Unrolled(WeighingSteps):
    loss_weights: tuple[float, ...] | None

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        task_loss = objective(learner, step_weights("unrolled", self.loss_weights, learner))

        def mean_loss(meta: Tree, tasks: Task) -> tuple[Tensor, Info]:
            minimised, (losses, metrics) = over_tasks(task_loss)(meta, tasks)
            return minimised.mean(), Info(losses.mean(), losses, metrics)

        def unrolled_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            return grad(mean_loss, has_aux=True)(meta, tasks)

        return stage(unrolled_grads)


def objective(learner: Learner, loss_weights: tuple[float, ...] | None = None) -> Callable[[Tree, Task], Outcome]:
    """What one task contributes to the outer loss, as a function of meta."""

    def last(meta: Tree, task: Task) -> Outcome:
        loss, metrics = learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)
        return loss, (loss, metrics)

    if loss_weights is None:
        return last
    run = trajectory(inner_of(learner, "loss_weights"))

    def every(meta: Tree, task: Task) -> Outcome:
        path = run(meta, task.support, task.key)[1:]
        found = [learner.loss(fast, meta, task.query) for fast in path]
        return sum(w * loss for w, (loss, _) in zip(loss_weights, found, strict=True)), found[-1]  # type: ignore

    return every
