"""Task encoders: an embedding of the support set modulates the network."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core._checks import check_model
from fmeta.core._losses import cross_entropy
from fmeta.core._random import fold
from fmeta.core._similarity import squared_distances
from fmeta.core._types import Examples, Learner, Loss, Model, Tree
from fmeta.learners._classes import check_features, check_ways, prototypes
from fmeta.learners._factories import Metrics, encoder_based


class TaskEncoderParams(NamedTuple):
    encoder: Tree
    network: Tree


class TaskEncoderFast(NamedTuple):
    embedding: Tensor  # [embedding] of the task: tasks that are alike have embeddings that are near
    prototypes: Tree  # [way, feature] where there are classes, else ()
    absence: Tree  # [way] or ()


def pairs(x: Tensor, y: Tensor) -> Tensor:
    """The default `join` for regression: `[example, feature]` and `[example, target]` side by side."""
    return torch.cat([x, y.to(x.dtype)], -1)


def task_encoder(
    encoder: Model,
    network: Model,
    loss: Loss = cross_entropy,
    *,
    ways: int | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """A task embedding from a permutation-invariant encoder of the support set, and a network that it modulates.

        e = Σᵢ wᵢ encoder(sᵢ) / Σᵢ wᵢ,    prediction(x) = network((x, e))

    where sᵢ is `pairs(xᵢ, yᵢ)`: a conditional neural process (Garnelo et al. 2018, https://arxiv.org/abs/1807.01613)
    with feature-wise modulation. With `ways` the labels of a task mean nothing by themselves, so sᵢ is xᵢ, the network
    gives features, and the prediction is −‖network((x, e)) − cₙ‖² for the class means cₙ of the modulated support set,
    as CNAPs adapts its extractor (Requeima et al. 2019, https://arxiv.org/abs/1906.07697).

    `learner.adapt(meta, support, ())` gives `TaskEncoderFast`, for a batch of tasks
    `fmeta.adapt_tasks(learner, meta, tasks)`: read the embeddings there, to cluster or plot tasks.

    Args:
        encoder: `[example, ...] -> [example, embedding]`.
        network: `(x, embedding) -> [example, ...]`: `mlp(…, film=…)`, `conv4(None, film=…)`, or your own.
        loss: `(prediction, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted. None for regression.
        metrics: more functions to report on the query, by name.
    """
    check_model("task_encoder", encoder)
    check_model("task_encoder", network)
    if ways is not None:
        check_ways("task_encoder", ways)

    def init(key: Tensor) -> TaskEncoderParams:
        return TaskEncoderParams(encoder.init(fold(key, 0)), network.init(fold(key, 1)))

    def adapt(meta: TaskEncoderParams, support: Examples, key: Tree) -> TaskEncoderFast:
        seen = support.x if ways is not None else pairs(support.x, support.y)
        each = check_features("task_encoder", encoder.apply(meta.encoder, seen))
        weight = support.weight.to(each.dtype) if isinstance(support.weight, Tensor) else torch.ones_like(each[:, 0])
        embedding = (weight @ each) / weight.sum()
        if ways is None:
            return TaskEncoderFast(embedding, (), ())
        features = network.apply(meta.network, (support.x, embedding))
        return TaskEncoderFast(embedding, *prototypes("task_encoder", features, support, ways))

    def predict(fast: TaskEncoderFast, meta: TaskEncoderParams, x: Tree) -> Tree:
        found = network.apply(meta.network, (x, fast.embedding))
        if ways is None:
            return found
        return fast.absence - squared_distances(check_features("task_encoder", found), fast.prototypes)

    def held(fast: TaskEncoderFast) -> Tensor:
        return fast.absence == 0

    if ways is None:
        return encoder_based("task_encoder", init, adapt, predict, loss, metrics)
    return encoder_based("task_encoder", init, adapt, predict, loss, metrics, held, "logits")
