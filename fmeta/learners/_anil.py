"""ANIL: MAML that adapts a part of the network only."""

from __future__ import annotations

from torch import Tensor

from fmeta.core import _tree as tree
from fmeta.core._checks import InputError, check_model, check_optimizer, nearest
from fmeta.core._losses import weighted_mean
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._parts import Metrics, forward, gradient_based


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

    Args:
        model: the network; `meta` is all its parameters, `fast` a dict of the adapted ones by name.
        loss: `(prediction, y) -> [example]` (or a mean).
        adapt: shell-style patterns of the parameter names that adapt, separated by commas. The others get no inner
            gradient at all; all of them are meta-learned.
        optimizer: of the inner loop.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.

    Raises:
        InputError: (when it first runs) a pattern that matches no parameter.
    """
    check_model("anil", model)
    check_optimizer("anil", optimizer)

    def start(meta: Tree, support: Examples) -> Tree:
        for pattern in adapt.split(","):
            if not tree.select_leaves(meta, pattern):
                raise InputError(
                    f"anil(adapt={adapt!r}): {pattern.strip()!r} matches no parameter; "
                    f"{nearest(pattern.strip(), tree.leaf_names(meta))}"
                )
        return tree.select_leaves(meta, adapt)

    def inner_loss(fast: Tree, meta: Tree, batch: Examples, at: At) -> Tensor:
        prediction = forward(model, tree.replace_leaves(meta, fast), batch.x, at.key)
        return weighted_mean(loss(prediction, batch.y), batch.weight, "anil")

    def predict(fast: Tree, meta: Tree, x: Tree) -> Tree:
        return model.apply(tree.replace_leaves(meta, fast), x)

    inner = Inner(start, inner_loss, lambda meta: optimizer, steps)
    return gradient_based("anil", model.init, inner, predict, loss, metrics, gradient or unrolled())
