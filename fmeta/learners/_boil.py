"""BOIL: MAML whose head stands still."""

from __future__ import annotations

from fmeta.core._checks import InputError
from fmeta.core._types import Learner, Loss, MetaGradient, Model, Optimizer
from fmeta.gradients import unrolled
from fmeta.learners._factories import Metrics, adapt_part


def boil(
    model: Model,
    loss: Loss,
    *,
    head: str = "head.*",
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """Body only update in the inner loop (Oh et al. 2021, https://arxiv.org/abs/2008.08882): `anil` the other way.

    Args:
        model: the network; `meta` is all its parameters, `fast` a dict of the adapted ones by name.
        loss: `(prediction, y) -> [example]` (or a mean).
        head: shell-style patterns, separated by commas, of the parameter names that do not adapt; all of them are
            meta-learned.
        optimizer: of the inner loop.
        steps: inner steps, at least 1.
        metrics: more functions to report on the query, by name.

    Raises:
        InputError: (when it first runs) a pattern that matches no parameter, or matches all.
    """
    if head.startswith("!"):
        raise InputError(f"boil(head={head!r}): expected the patterns of what does not adapt, without '!'")
    return adapt_part("boil", model, loss, f"!{head}", optimizer, steps, gradient or unrolled(), metrics)
