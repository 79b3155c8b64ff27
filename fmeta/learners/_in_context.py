"""Learners whose network sees the support set beside every input."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._types import At, Examples, InContext, Inner, Learner, Optimizer, Tree, as_it_is
from fmeta.learners._factories import with_inner


class InContextFast(NamedTuple):
    fast: Tree
    support: Tree
    weight: Tree


class Prepared(NamedTuple):
    """What the learner prepared of the inputs, and the inputs, which the query will be seen beside."""

    x: Tree
    support: Tree


def in_context(learner: Learner) -> Learner:
    """`learner` with `InContext(x, support.x, support.weight)` for every input x, in adaptation and on the query.

    For networks whose normalisation takes its statistics from the support set (`norm="support"` and `"task"` of
    `conv4` and `resnet12`), so that no query example sees another, and padding counts nowhere.

    `fast` carries the support set along; its optimizer never sees it.
    """

    def beside(examples: Examples, support: Tree, weight: Tree) -> Examples:
        return examples._replace(x=InContext(examples.x, support, weight))

    def within(support: Examples) -> Examples:
        return beside(support, support.x, support.weight)

    def adapt(meta: Tree, support: Examples, key: Tree) -> InContextFast:
        return InContextFast(learner.adapt(meta, within(support), key), support.x, support.weight)

    def predict(fast: InContextFast, meta: Tree, x: Tree) -> Tree:
        return learner.predict(fast.fast, meta, InContext(x, fast.support, fast.weight))

    def loss(fast: InContextFast, meta: Tree, query: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        return learner.loss(fast.fast, meta, beside(query, fast.support, fast.weight))

    if learner.inner is None:
        return learner._replace(adapt=adapt, predict=predict, loss=loss)
    own = learner.inner

    def prepare(meta: Tree, support: Examples, key: Tree) -> Examples:
        return support._replace(x=Prepared(own.prepare(meta, within(support), key).x, support.x))

    def start(meta: Tree, support: Examples, key: Tree) -> InContextFast:
        if isinstance(support.x, Prepared):
            seen, x = support._replace(x=support.x.x), support.x.support
        else:
            seen, x = within(support), support.x
        return InContextFast(own.start(meta, seen, key), x, support.weight)

    def inner_loss(fast: InContextFast, meta: Tree, batch: Examples, at: At) -> Tensor:
        if isinstance(batch.x, Prepared):
            return own.loss(fast.fast, meta, batch._replace(x=batch.x.x), at)
        support, weight = tree.tree_map(torch.Tensor.detach, (fast.support, fast.weight))
        return own.loss(fast.fast, meta, beside(batch, support, weight), at)

    def optimizer(meta: Tree) -> Optimizer:
        chosen = own.optimizer(meta)

        def update(grads: InContextFast, state: Tree, params: InContextFast) -> tuple[InContextFast, Any]:
            updates, state = chosen.update(grads.fast, state, params.fast)
            return InContextFast(updates, *tree.zeros_like((params.support, params.weight))), state

        return Optimizer(lambda params: chosen.init(params.fast), update)

    # what is carried along has no optimum, which `implicit` would need
    inner = Inner(
        start,
        inner_loss,
        optimizer,
        own.steps,
        own.batch,
        prepare=as_it_is if own.prepare is as_it_is else prepare,
    )
    return with_inner(learner._replace(predict=predict, loss=loss), inner)
