"""`unrolled`: reverse mode through the whole adaptation."""

from __future__ import annotations

from torch import Tensor
from torch.func import grad

from fmeta.core._inner import over_tasks
from fmeta.core._types import GradFn, Info, Learner, MetaGradient, Stage, Task, Tree


def unrolled() -> MetaGradient:
    """The exact meta-gradient, by reverse mode through whatever `adapt` does.

        d/dmeta  1/T Σₜ loss(adapt(meta, supportₜ), meta, queryₜ)

    For learners without an inner loop this is plain training. Memory grows with the inner steps times the activations
    of one step. Finn et al. 2017, https://arxiv.org/abs/1703.03400.
    """

    def gradient(learner: Learner, stage: Stage) -> GradFn:
        def task_loss(meta: Tree, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            return learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)

        def mean_loss(meta: Tree, tasks: Task) -> tuple[Tensor, Info]:
            losses, metrics = over_tasks(task_loss)(meta, tasks)
            return losses.mean(), Info(losses.mean(), losses, metrics)

        def unrolled_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            return grad(mean_loss, has_aux=True)(meta, tasks)

        return stage(unrolled_grads)

    return gradient
