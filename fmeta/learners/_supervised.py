"""Plain supervised learning, as pretraining is: a learner that does not adapt."""

from __future__ import annotations

from fmeta.core._checks import check_model
from fmeta.core._losses import cross_entropy
from fmeta.core._types import Learner, Loss, Model
from fmeta.learners._factories import Metrics, encoder_based


def supervised(model: Model, loss: Loss = cross_entropy, *, metrics: Metrics | None = None) -> Learner:
    """`meta` is the model's parameters and minimises the mean loss on the query; the support set is not looked at.

    With `fmeta.tasks.batches(data, size)` for tasks it trains a classifier of all classes: what transfer learning
    begins with (`fine_tune`), by the same trainer, checkpoints and resume as any learner.

    Args:
        model: the network, such as `fmeta.models.with_head(encoder, classes, features=…)`.
        loss: `(prediction, y) -> [example]` (or a mean).
        metrics: more functions to report, by name.
    """
    check_model("supervised", model)
    learner = encoder_based(
        "supervised", model.init, lambda *_: (), lambda fast, meta, x: model.apply(meta, x), loss, metrics
    )
    return learner._replace(adapt=lambda meta, support, key: ())
