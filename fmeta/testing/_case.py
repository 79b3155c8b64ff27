"""What a law is about: a learner where it stands, the meta-gradients that fit it, and when two results are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fmeta.core import Learner, MetaGradient, Task, Tree, direct, tree
from fmeta.gradients import (
    adjoint,
    difference,
    evolution,
    first_order,
    implicit,
    meta_grad,
    multi_step,
    truncated,
    unrolled,
)
from fmeta.testing._oracles import distance, tasks_of

SAME = 1e-9  # two ways to compute one thing, in float64


class Case(NamedTuple):
    """A learner, where it stands, and a batch of two tasks or more, all in float64."""

    learner: Learner
    meta: Tree
    tasks: Task
    claimed: Mapping[str, MetaGradient] = {}  # meta-gradients beside fmeta's own that are said to be exact
    backend: str = "aot_eager"


def admitted(case: Case) -> dict[str, MetaGradient]:
    """The meta-gradients that fit the learner, by name."""
    found: dict[str, MetaGradient] = {"unrolled": unrolled(), **case.claimed}
    if isinstance(case.tasks.key, Tensor):
        found["evolution"] = evolution(0.01, 2)
    inner = case.learner.inner
    if inner is not None:
        found |= {"adjoint": adjoint(), "truncated": truncated(1), "first_order": first_order()}
        if inner.steps > 1:
            found["multi-step adjoint"] = adjoint(multi_step(inner.steps))
        first = tasks_of(case.tasks)[0]
        support = inner.prepare(case.meta, first.support, first.key)
        if tree.same_structure(case.meta, inner.start(case.meta, support, first.key)):
            found["difference"] = difference()
        if inner.strongly_convex:
            found["implicit"] = implicit(direct(), tolerance=float("inf"))
    return found


def exact(case: Case) -> dict[str, MetaGradient]:
    """Those that are the gradient of the mean query loss after adaptation."""
    ways: dict[str, MetaGradient] = {"unrolled": unrolled(), **case.claimed}
    if case.learner.inner is not None:
        ways |= {"adjoint": adjoint(), "truncated(steps)": truncated(case.learner.inner.steps)}
    return ways


def grads_of(case: Case, gradient: MetaGradient) -> Tree:
    return meta_grad(case.learner, gradient)(case.meta, case.tasks)[0]


def near(found: Tree, expected: Tree, what: str, tolerance: float = SAME) -> None:
    gap = distance(found, expected)
    if not gap <= tolerance:
        raise AssertionError(f"{what}: off by {gap:.1e} of the largest entry, allowed {tolerance:g}")
