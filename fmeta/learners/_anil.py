"""ANIL: MAML that adapts a part of the network only."""

from __future__ import annotations

from fmeta.core._types import Learner, Loss, MetaGradient, Model, Optimizer
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, adapt_part


def anil(
    model: Model,
    loss: Loss,
    *,
    adapt: str = "head.*",
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Almost no inner loop (Raghu et al. 2020, https://arxiv.org/abs/1909.09157): only the head adapts.

    A network that says where its trunk ends (`Model.parts`: `with_head`, `conv4`, `resnet12`, `mlp` …) encodes the
    support set once for each task, and the inner steps run on its features, where `adapt` names the head's parameters
    and no others: the same learner at a third of the operations for 5 steps of Conv4. Dropout in the trunk is then
    drawn once for each adaptation, not anew in every step.

    Args:
        model: the network; `meta` is all its parameters, `fast` a dict of the adapted ones by name.
        loss: `(prediction, y) -> [example]` (or a mean).
        adapt: shell-style patterns of the parameter names that adapt, separated by commas; `!` in front means all but
            these. The others get no inner gradient at all; all of them are meta-learned.
        optimizer: of the inner loop.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.

    Raises:
        InputError: (when it first runs) a pattern that matches no parameter.
    """
    return adapt_part("anil", model, loss, adapt, optimizer, steps, gradient or unrolled(), metrics)
