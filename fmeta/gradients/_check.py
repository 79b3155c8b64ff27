"""`check_meta_grad`: what a meta-gradient really computes, told by finite differences."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_meta, check_tasks, refuse_compiled
from fmeta.core._random import fold, key, normal
from fmeta.core._types import Learner, MetaGradient, Task, Tree, loss_weights_of
from fmeta.gradients._batched import step_weights
from fmeta.gradients._meta_grad import meta_grad
from fmeta.gradients._replayed import first_order
from fmeta.gradients._unrolled import objective
from fmeta.operators._over_tasks import over_tasks

_TRIES = 3  # directions measured for one that is wanted, where kinks lie in the way


class GradientReport(NamedTuple):
    """What `check_meta_grad` found. Comparisons are of directional derivatives, in float64."""

    order: str  # "exact", "exact (no second-order term here)", "first order" or "neither"
    cosine: float  # between the meta-gradient and finite differences
    relative_error: dict[str, float]  # per parameter
    detached: list[str]  # the loss depends on them, the meta-gradient is zero
    without_gradient: list[str]  # the loss does not depend on them
    kinks: list[str]  # finite differences of several lengths disagree in every direction tried: no order is sure

    @property
    def exact(self) -> bool:
        return self.order.startswith("exact")


def check_meta_grad(
    learner: Learner,
    meta: Tree,
    tasks: Task,
    gradient: MetaGradient | None = None,
    *,
    directions: int = 3,
    step: float = 1e-5,
    tolerance: float = 1e-4,
) -> GradientReport:
    """Compares a meta-gradient with central finite differences of the mean query loss after adaptation.

    (Of the weighted losses after every step, where the meta-gradient has `loss_weights`.)

    Everything is cast to float64. Each parameter tensor is moved along random unit directions, at a cost of
    `6 · directions · tensors` adaptations. The loss of a network with kinks (ReLU, max pooling) jumps where the inner
    gradient crosses one, so each direction is measured with three lengths, of which the two that agree best are
    believed, and exchanged for another where no two agree; still, prefer smooth activations for a check.

    Args:
        learner: any learner, its model not compiled.
        meta: where to check; a tree of floating tensors.
        tasks: a small batch of tasks.
        gradient: what to check; None is the learner's own.
        directions: per parameter tensor.
        step: the longest move; a tenth and a hundredth of it are tried too.
        tolerance: relative error up to which two derivatives count as equal.

    Raises:
        InputError: a model wrapped by torch.compile, or bad meta or tasks.
    """
    refuse_compiled("check_meta_grad", learner)
    check_meta("check_meta_grad", meta)
    check_tasks("check_meta_grad", tasks)
    if directions < 1 or not step > 0:
        raise InputError(f"check_meta_grad(directions={directions}, step={step}): expected at least 1, and a step > 0")
    meta, tasks = _double(meta), _double(tasks)

    gradient = gradient or learner.gradient
    weights = step_weights("check_meta_grad", loss_weights_of(gradient), learner)
    task_loss = objective(learner, weights)

    def value(at: Tree) -> Tensor:
        with torch.no_grad():
            return over_tasks(lambda m, task: task_loss(m, task)[0])(at, tasks).mean()

    def slope(name: str, leaf: Tensor, move: Tensor) -> tuple[float, bool]:
        found = []
        for length in (step, step / 10, step / 100):
            ahead, behind = (value(tree.replace_leaves(meta, {name: leaf + s * length * move})) for s in (1, -1))
            found.append(float((ahead - behind) / (2 * length)))
        return believed(found)

    def slopes(name: str, leaf: Tensor, own: Tensor) -> tuple[list[Tensor], Tensor, bool]:
        kept, doubtful = list[tuple[Tensor, float]](), list[tuple[Tensor, float]]()
        for j in range(_TRIES * directions):
            move = normal(fold(own, j), leaf.shape, torch.float64)
            move = move / move.norm()
            derivative, steady = slope(name, leaf, move)
            (kept if steady else doubtful).append((move, derivative))
            if len(kept) == directions:
                break
        moves, found = zip(*(kept or doubtful[:directions]), strict=True)
        return list(moves), leaf.new_tensor(found), bool(kept)

    claimed = tree.named_leaves(meta_grad(learner, gradient)(meta, tasks)[0])
    leaves = tree.named_leaves(meta)
    numeric: dict[str, Tensor] = {}
    analytic: dict[str, Tensor] = {}
    simple: dict[str, Tensor] = {}
    kinks: list[str] = []
    simplest = meta_grad(learner, first_order(weights)) if learner.inner else None
    constant = tree.named_leaves(simplest(meta, tasks)[0]) if simplest else None
    for i, (name, leaf) in enumerate(leaves.items()):
        moves, numeric[name], steady = slopes(name, leaf, fold(key(0, leaf.device), i))
        kinks += [] if steady else [name]
        analytic[name] = torch.stack([(claimed[name] * move).sum() for move in moves])
        if constant is not None:
            simple[name] = torch.stack([(constant[name] * move).sum() for move in moves])

    floor = _norm(numeric) * tolerance  # what is small beside the whole gradient is judged against the whole
    errors = {n: float((analytic[n] - d).norm() / d.norm().clamp(min=floor)) for n, d in numeric.items()}
    return GradientReport(
        order=_order(numeric, analytic, simple, tolerance),
        cosine=float(sum((analytic[n] * d).sum() for n, d in numeric.items()))
        / max(_norm(numeric) * _norm(analytic), 1e-300),
        relative_error=errors,
        detached=[n for n, d in numeric.items() if not claimed[n].any() and d.norm() > floor],
        without_gradient=[n for n, d in numeric.items() if not claimed[n].any() and d.norm() <= floor],
        kinks=kinks,
    )


def believed(found: Sequence[float]) -> tuple[float, bool]:
    """The derivative of which finite differences of three lengths speak, the longest first, and whether two agree.

    A kink within one length makes its figure disagree with the others: the two that agree best are believed.
    """
    gaps = [abs(a - b) for a, b in itertools.pairwise(found)]
    value = found[0] if gaps[0] <= gaps[1] else found[1]
    return value, min(gaps) <= 1e-5 * abs(value) + 1e-8


def _order(numeric: dict[str, Tensor], analytic: dict[str, Tensor], simple: dict[str, Tensor], tolerance: float) -> str:
    def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return bool(a) and _norm({n: a[n] - b[n] for n in b}) <= tolerance * _norm(b)

    if not numeric:
        return "exact (no second-order term here)"  # nothing to learn
    if not _norm(analytic) and _norm(numeric):
        return "neither"
    if equal(analytic, numeric):
        return "exact (no second-order term here)" if equal(simple, numeric) else "exact"
    return "first order" if equal(simple, analytic) else "neither"


def _norm(parts: dict[str, Tensor]) -> float:
    return float(torch.cat(list(parts.values())).norm()) if parts else 0.0


def _double(values: Tree) -> Tree:
    return tree.tree_map(lambda t: t.double() if t.is_floating_point() else t, values)
