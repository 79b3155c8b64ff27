"""Meta-Curvature: MAML that learns how to transform its inner gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import check_model, check_optimizer
from fmeta.core._losses import weighted_mean
from fmeta.core._optim import chain
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, forward, gradient_based


class MetaCurvatureParams(NamedTuple):
    params: Tree
    curvature: dict[str, tuple[Tensor, ...]]  # name of a parameter -> a square matrix for each of its modes


def meta_curvature(
    model: Model,
    loss: Loss,
    *,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Meta-Curvature (Park & Oliva 2019, https://arxiv.org/abs/1902.03356): inner gradients times learned matrices.

        fastₖ₊₁ = fastₖ + Δ(G ×₁ M₁ ×₂ M₂ ×₃ M₃),    G = ∇ loss(fastₖ; support)

    with a matrix for each mode of a parameter: outputs, inputs, and the positions of a convolution's kernel together.
    The matrices start as identities, where it is MAML, and are meta-learned with the initialisation.

    Args:
        model: the network; `fast` is its parameters, `meta` is `MetaCurvatureParams(params, curvature)`.
        loss: `(prediction, y) -> [example]` (or a mean).
        optimizer: of the inner loop; it sees the transformed gradient.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.
    """
    check_model("meta_curvature", model)
    check_optimizer("meta_curvature", optimizer)

    def init(key: Tensor) -> MetaCurvatureParams:
        params = model.init(key)
        named = tree.named_leaves(params)
        identities = {
            name: tuple(torch.eye(d, dtype=p.dtype, device=p.device) for d in _modes(p)) for name, p in named.items()
        }
        return MetaCurvatureParams(params, identities)

    def inner_loss(fast: Tree, meta: MetaCurvatureParams, batch: Examples, at: At) -> Tensor:
        return weighted_mean(loss(forward(model, fast, batch.x, at.key), batch.y), batch.weight, "meta_curvature")

    inner = Inner(
        lambda meta, support, key: meta.params,
        inner_loss,
        lambda meta: chain(transform(meta.curvature), optimizer),
        steps,
    )
    return gradient_based(
        "meta_curvature", init, inner, lambda fast, meta, x: model.apply(fast, x), loss, metrics, gradient or unrolled()
    )


def transform(curvature: dict[str, tuple[Tensor, ...]]) -> Optimizer:
    """A link for `chain` that multiplies each gradient by its matrices, mode by mode."""

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        named = tree.named_leaves(grads)
        return tree.replace_leaves(grads, {name: _times(g, curvature[name]) for name, g in named.items()}), state

    return Optimizer(lambda params: (), update, descends=False)


def _modes(p: Tensor) -> tuple[int, ...]:
    return tuple(p.shape) if p.ndim <= 2 else (p.shape[0], p.shape[1], math.prod(p.shape[2:]))


def _times(g: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    u = g.reshape(_modes(g))
    for mode, matrix in enumerate(matrices):
        u = torch.tensordot(matrix, u, dims=([1], [mode])).movedim(0, mode)
    return u.reshape(g.shape)
