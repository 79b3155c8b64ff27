"""Transfer learning: a new head, trained on the support set, on an encoder that was trained before."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import InputError, check_counts, check_model, check_optimizer
from fmeta.core._inner import descend
from fmeta.core._losses import cross_entropy, weighted_mean
from fmeta.core._similarity import cosines
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import unrolled
from fmeta.learners._classes import check_features, check_ways, prototypes
from fmeta.learners._factories import Metrics, encoder_based, forward, gradient_based


class FineTuneFast(NamedTuple):
    encoder: Tree  # () where it stays as it is
    weight: Tensor  # [way, feature]
    bias: Tensor  # [way]; the cosine head does not learn it


def fine_tune(
    encoder: Model,
    loss: Loss = cross_entropy,
    *,
    ways: int,
    adapt: Literal["head", "all"] = "head",
    head: Literal["linear", "cosine"] = "linear",
    scale: float = 10.0,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """The transfer baselines (Chen et al. 2019, https://arxiv.org/abs/1904.04232): `meta` is an encoder's parameters.

        linear: logits = W f(x) + b, from W = 0, b = 0
        cosine: logits = scale·cos(W, f(x)), from the class means of the support set (Baseline++)

    Baseline and Baseline++ of the paper are `adapt="head"` after pretraining with the same head: `supervised` on
    `with_head(encoder, classes, …, head=…)`, whose `meta["encoder"]` is this learner's meta. Their cosine head begins
    at random; the class means are where many steps take it (Qi et al. 2018, https://arxiv.org/abs/1712.07136).

    Args:
        encoder: `x -> [example, feature]`.
        loss: `(logits, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted.
        adapt: "head": the encoder stays, and sees the support set once. "all": encoder and head take the steps.
        head: "linear" or "cosine".
        scale: of the cosines.
        optimizer: of the inner loop.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.
    """
    check_model("fine_tune", encoder)
    check_optimizer("fine_tune", optimizer)
    check_ways("fine_tune", ways)
    check_counts("fine_tune", steps=steps)
    if adapt not in ("head", "all") or head not in ("linear", "cosine") or not 0.0 < scale < float("inf"):
        raise InputError(
            f"fine_tune(adapt={adapt!r}, head={head!r}, scale={scale}): expected adapt 'head' or 'all', head 'linear' "
            "or 'cosine', a positive scale"
        )

    def begin(own: Tree, features: Tensor, support: Examples) -> FineTuneFast:
        means, absence = prototypes("fine_tune", features, support, ways)
        return FineTuneFast(own, means if head == "cosine" else torch.zeros_like(means), absence)

    def logits(fast: FineTuneFast, features: Tensor) -> Tensor:
        if head == "linear":
            return F.linear(check_features("fine_tune", features), fast.weight, fast.bias)
        return scale * cosines(check_features("fine_tune", features), fast.weight) + fast.bias.detach()

    def judge(fast: FineTuneFast, features: Tensor, batch: Examples) -> Tensor:
        return weighted_mean(loss(logits(fast, features), batch.y), batch.weight, "fine_tune")

    def predict(fast: FineTuneFast, meta: Tree, x: Tree) -> Tensor:
        return logits(fast, encoder.apply(meta if adapt == "head" else fast.encoder, x))

    def held(fast: FineTuneFast) -> Tensor:
        return fast.bias > torch.finfo(fast.bias.dtype).min / 4

    if adapt == "all":
        inner = Inner(
            lambda meta, support, key: begin(
                meta, check_features("fine_tune", encoder.apply(meta, support.x)), support
            ),
            lambda fast, meta, batch, at: judge(fast, forward(encoder, fast.encoder, batch.x, at.key), batch),
            lambda meta: optimizer,
            steps,
        )
        return gradient_based(
            "fine_tune", encoder.init, inner, predict, loss, metrics, gradient or unrolled(), held, "logits"
        )

    def on_features(fast: FineTuneFast, meta: Tree, batch: Examples, at: At) -> Tensor:
        return judge(fast, batch.x, batch)

    train_head = descend(Inner(lambda meta, s, key: begin((), s.x, s), on_features, lambda meta: optimizer, steps))

    def adapt_head(meta: Tree, support: Examples, key: Tree) -> FineTuneFast:
        features = check_features("fine_tune", encoder.apply(meta, support.x))
        return train_head(meta, support._replace(x=features), key)

    learner = encoder_based("fine_tune", encoder.init, adapt_head, predict, loss, metrics, held, "logits")
    return learner if gradient is None else learner._replace(gradient=gradient)
