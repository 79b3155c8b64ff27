"""Meta-SGD: MAML that learns a rate for every parameter."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import check_model
from fmeta.core._losses import weighted_mean
from fmeta.core._optim import sgd
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Tree
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, forward, gradient_based


class MetaSGDParams(NamedTuple):
    params: Tree
    lr: Tree  # shaped like params


def meta_sgd(
    model: Model,
    loss: Loss,
    *,
    lr: float,
    steps: int = 1,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Meta-SGD (Li et al. 2017, https://arxiv.org/abs/1707.09835): fastₖ₊₁ = fastₖ − α ∘ ∇ loss, with α in meta.

    Args:
        model: the network; `meta` is `MetaSGDParams(params, lr)`, `fast` its parameters.
        loss: `(prediction, y) -> [example]` (or a mean).
        lr: where every learned rate starts.
        steps: inner steps; 1 in the paper.
        metrics: more functions to report on the query, by name.
    """
    check_model("meta_sgd", model)
    sgd(lr)  # refuses what is no rate

    def init(key: Tensor) -> MetaSGDParams:
        params = model.init(key)
        return MetaSGDParams(params, tree.tree_map(lambda p: torch.full_like(p, lr), params))

    def inner_loss(fast: Tree, meta: MetaSGDParams, batch: Examples, at: At) -> Tensor:
        return weighted_mean(loss(forward(model, fast, batch.x, at.key), batch.y), batch.weight, "meta_sgd")

    inner = Inner(lambda meta, support, key: meta.params, inner_loss, lambda meta: sgd(meta.lr), steps)
    return gradient_based(
        "meta_sgd", init, inner, lambda fast, meta, x: model.apply(fast, x), loss, metrics, gradient or unrolled()
    )
