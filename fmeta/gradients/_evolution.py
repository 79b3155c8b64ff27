"""`evolution`: a meta-gradient from losses alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts
from fmeta.core._random import fold, normal
from fmeta.core._types import GradFn, Info, Learner, MetaGradient, Stage, Task, Tree, WeighingSteps
from fmeta.gradients._batched import indices
from fmeta.operators._over_tasks import over_tasks


def evolution(sigma: float, pairs: int) -> MetaGradient:
    """The antithetic evolution-strategies estimate of the gradient of the smoothed query loss, task by task.

        1/T Σₜ 1/n Σᵢ εᵢ (Fₜ(meta + σεᵢ) − Fₜ(meta − σεᵢ)) / 2σ,    F(meta) = loss(adapt(meta, support), meta, query)

    with ε standard normal, drawn from each task's key. It needs no derivative of the query loss, so that loss may be a
    count of errors; n pairs cost 2n adaptations. Its error falls like √(parameters / (pairs · tasks)). A task that
    comes again needs a new key, or it meets the same ε. Salimans et al. 2017, https://arxiv.org/abs/1703.03864; Song
    et al. 2020, https://arxiv.org/abs/1910.01215.

    Args:
        sigma: standard deviation of the perturbations, in the units of meta.
        pairs: n, antithetic pairs for each task.

    Raises:
        InputError: sigma <= 0, pairs < 1, tasks without a key.
    """
    if not 0 < sigma < float("inf"):
        raise InputError(f"evolution(sigma={sigma}): expected a positive standard deviation")
    check_counts("evolution", pairs=pairs)
    return Evolution(sigma, pairs)


@dataclass(frozen=True)
class Evolution(WeighingSteps):
    sigma: float
    pairs: int
    order = "neither"

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        sigma = self.sigma

        def outcome(meta: Tree, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            return learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)

        def estimate(meta: Tree, task: Task, index: Tensor) -> Tree:
            noise = perturbation(task.key, index, meta)
            ahead, behind = (outcome(tree.add(meta, tree.scale(noise, s * sigma)), task)[0] for s in (1, -1))
            return tree.scale(noise, (ahead - behind) / (2 * sigma))

        @stage
        def pair(meta: Tree, tasks: Task, index: Tensor) -> Tree:
            return tree.mean_tasks(over_tasks(estimate, shared=(0, 2))(meta, tasks, index))

        @stage
        def judge(meta: Tree, tasks: Task) -> Info:
            losses, metrics = over_tasks(outcome)(meta, tasks)
            return Info(losses.mean(), losses, metrics)

        def evolution_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            if not isinstance(tasks.key, Tensor):
                raise InputError(
                    "meta_grad(…, evolution(sigma, pairs)): perturbations are drawn from the task's key, and the tasks "
                    "have none; expected Task(support, query, key); use fmeta.split(key, number_of_tasks)"
                )
            total = tree.zeros_like(meta)
            for index in indices(self.pairs, tasks):
                total = tree.add(total, pair(meta, tasks, index))
            return tree.scale(total, 1.0 / self.pairs), judge(meta, tasks)

        return evolution_grads


def perturbation(task_key: Tensor, index: Tensor, meta: Tree) -> Tree:
    """Standard normal noise shaped like meta: the `index`-th of a task."""
    own = fold(fold(task_key, "perturbations"), index)
    leaves, structure = tree.tree_flatten(meta)
    drawn = [normal(fold(own, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    return tree.tree_unflatten(drawn, structure)
