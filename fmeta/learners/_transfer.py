"""Pretraining and what follows it, as one learner."""

from __future__ import annotations

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_model
from fmeta.core._losses import accuracy, cross_entropy
from fmeta.core._types import Examples, Learner, Model, Tree
from fmeta.gradients import unrolled
from fmeta.learners._supervised import supervised


def transfer(classifier: Model, learner: Learner) -> Learner:
    """A classifier of all training classes, and how its encoder is used on new ones.

    A task without a support set, as `fmeta.tasks.batches` draws, is judged by `supervised(classifier)`: train with
    those. A task with one is what `learner` makes of it, from `meta["encoder"]`: test with those. So pretraining and
    its test are one run, with the checkpoints, figures and comparisons of any other.

    Args:
        classifier: `fmeta.models.with_head(encoder, classes, …)`; `meta` is its parameters.
        learner: `fine_tune(encoder, …)` on the same encoder, or another whose meta is the encoder's parameters.
    """
    check_model("transfer", classifier)
    if learner.inner is not None:
        raise InputError(
            f"transfer({learner.name}): it shows its inner steps, which belong to another meta; expected a learner "
            "without, such as fine_tune(…, adapt='head')"
        )
    plain = supervised(classifier, cross_entropy, metrics={"accuracy": accuracy})

    def adapt(meta: Tree, support: Examples, key: Tree) -> Tree:
        return learner.adapt(meta["encoder"], support, key) if tree.tree_leaves(support) else ()

    def predict(fast: Tree, meta: Tree, x: Tree) -> Tree:
        return plain.predict((), meta, x) if fast == () else learner.predict(fast, meta["encoder"], x)

    def loss(fast: Tree, meta: Tree, query: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        return plain.loss((), meta, query) if fast == () else learner.loss(fast, meta["encoder"], query)

    return Learner(classifier.init, adapt, predict, loss, None, unrolled(), "transfer", "logits")
