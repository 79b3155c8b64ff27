"""`difference`: Reptile's direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError
from fmeta.core._types import GradFn, Info, Learner, MetaGradient, Stage, Task, Tree, WeighingSteps
from fmeta.gradients._batched import inner_of
from fmeta.operators._over_tasks import over_tasks


def difference() -> MetaGradient:
    """1/T Σₜ (meta − fastₜ): descending it moves meta towards the adapted weights. It is no gradient of the query loss.

    Needs fast weights of meta's own structure. Nichol et al. 2018, https://arxiv.org/abs/1803.02999.
    """
    return _Difference()


@dataclass(frozen=True)
class _Difference(WeighingSteps):
    order = "neither"

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        inner_of(learner, "difference()")

        def one(meta: Tree, task: Task) -> tuple[Tree, Tensor, dict[str, Tensor]]:
            fast = learner.adapt(meta, task.support, task.key)
            if not tree.same_structure(meta, fast):
                raise InputError(
                    f"meta_grad({learner.name}, difference()): meta − fast needs fast weights shaped like meta, and "
                    f"those of {learner.name} are not; expected a meta-gradient that fits; these do: unrolled(), "
                    "adjoint(), truncated(last), first_order()"
                )
            return tree.sub(meta, fast), *learner.loss(fast, meta, task.query)

        def difference_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            differences, losses, metrics = over_tasks(one)(meta, tasks)
            return tree.mean_tasks(differences), Info(losses.mean(), losses, metrics)

        return stage(difference_grads)
