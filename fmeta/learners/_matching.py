"""Matching networks: a vote of the support set, weighted by similarity."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_counts, check_model
from fmeta.core._losses import cross_entropy
from fmeta.core._random import fold
from fmeta.core._similarity import cosines
from fmeta.core._types import Examples, Learner, Loss, Model, Tree
from fmeta.core.tree import scalar_like
from fmeta.learners._classes import absence, check_features, check_ways, membership
from fmeta.learners._factories import Metrics, encoder_based
from fmeta.learners._lstm import LSTM, init_lstm, lstm_step


class FullContext(NamedTuple):
    """The LSTMs that embed support and query in view of the whole support set."""

    forward: LSTM
    backward: LSTM
    attention: LSTM


class MatchingParams(NamedTuple):
    encoder: Tree
    context: FullContext | tuple[()]


class MatchingFast(NamedTuple):
    support: Tensor  # [example, feature]
    log_weight: Tensor  # [example, way]: of an example in the column of its class, −∞ elsewhere
    absence: Tensor  # [way]


def matching(
    encoder: Model,
    loss: Loss = cross_entropy,
    *,
    ways: int,
    full_context: int | None = None,
    reads: int = 5,
    scale: float = 1.0,
    metrics: Metrics | None = None,
) -> Learner:
    """Matching networks (Vinyals et al. 2016, https://arxiv.org/abs/1606.04080).

        P(n | x) = Σᵢ a(x, xᵢ)[yᵢ = n],    a(x, ·) = softmaxᵢ scale·cos(f(x), g(xᵢ))

    over the support set; the prediction is log P. Without full context f and g are the encoder. With it g(xᵢ) is the
    encoder plus both hidden states of a bidirectional LSTM that reads the support set in the order it comes, and f(x)
    is the hidden state of an LSTM that looks at the support set `reads` times by content (sections A.1 and A.2):

        ĥₖ, cₖ = LSTM(encoder(x), [hₖ₋₁, rₖ₋₁], cₖ₋₁),    hₖ = ĥₖ + encoder(x),    rₖ = Σᵢ softmaxᵢ(hₖ·g(xᵢ)) g(xᵢ)

    Args:
        encoder: `x -> [example, feature]`, such as `conv4(None)`.
        loss: `(log-probabilities, y) -> [example]` (or a mean).
        ways: N, most classes of a task; one without support examples is never predicted.
        full_context: the encoder's features, for full context embeddings; None goes without.
        reads: K, looks at the support set.
        scale: of the cosines; 1 in the paper.
        metrics: more functions to report on the query, by name.
    """
    check_model("matching", encoder)
    check_ways("matching", ways)
    check_counts("matching", reads=reads, **({} if full_context is None else {"full_context": full_context}))
    if not 0.0 < scale < float("inf"):
        raise InputError(f"matching(scale={scale}): expected a positive number")

    def init(key: Tensor) -> MatchingParams:
        params = encoder.init(fold(key, 0))
        if full_context is None:
            return MatchingParams(params, ())
        size, dtype = full_context, scalar_like(params, key).dtype
        recurrent = (None, None, 2 * size)
        cells = [init_lstm(fold(key, i), size, size, dtype, r) for i, r in enumerate(recurrent, 1)]
        return MatchingParams(params, FullContext(*cells))

    def features(meta: MatchingParams, x: Tree) -> Tensor:
        found = check_features("matching", encoder.apply(meta.encoder, x))
        if full_context not in (None, found.shape[1]):
            raise InputError(
                f"matching(full_context={full_context}): the encoder gave {found.shape[1]} features; expected as many"
            )
        return found

    def adapt(meta: MatchingParams, support: Examples, key: Tree) -> MatchingFast:
        found = features(meta, support.x)
        member = membership("matching", support, ways, found.dtype)
        if isinstance(meta.context, FullContext):
            here = member.sum(-1) > 0
            ahead = _read(meta.context.forward, found, here, range(len(found)))
            back = _read(meta.context.backward, found, here, range(len(found) - 1, -1, -1))
            found = found + ahead + back
        smallest = torch.finfo(member.dtype).tiny
        log_weight = torch.where(member == 0, -torch.inf, member.clamp_min(smallest).log())
        return MatchingFast(found, log_weight, absence(member))

    def predict(fast: MatchingFast, meta: MatchingParams, x: Tree) -> Tensor:
        found = features(meta, x)
        if isinstance(meta.context, FullContext):
            found = _look(meta.context.attention, found, fast, reads)
        log_weight = torch.where(fast.absence == 0, fast.log_weight, 0.0)  # a column of −∞ has no gradient
        votes = scale * cosines(found, fast.support)[..., None] + log_weight  # [query, example, way]
        return (votes.logsumexp(1) + fast.absence).log_softmax(-1)

    return encoder_based("matching", init, adapt, predict, loss, metrics, lambda fast: fast.absence == 0, "logits")


def _read(cell: LSTM, features: Tensor, here: Tensor, order: Sequence[int]) -> Tensor:
    """The hidden state at each example, `[example, feature]`; padding is passed over."""
    hidden = memory = torch.zeros_like(features[0])
    found: list[Tensor] = [hidden] * len(features)
    for i in order:
        after = lstm_step(cell, features[i], hidden, memory)
        hidden, memory = (torch.where(here[i], new, old) for new, old in zip(after, (hidden, memory), strict=True))
        found[i] = hidden
    return torch.stack(found)


def _look(cell: LSTM, features: Tensor, fast: MatchingFast, reads: int) -> Tensor:
    hidden = memory = torch.zeros_like(features)
    log_weight = fast.log_weight.amax(-1)  # [example]
    for _ in range(reads):
        attention = (hidden @ fast.support.mT + log_weight).softmax(-1)
        raised, memory = lstm_step(cell, features, torch.cat([hidden, attention @ fast.support], -1), memory)
        hidden = raised + features
    return hidden
