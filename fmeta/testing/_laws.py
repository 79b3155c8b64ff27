"""What holds for every learner and every meta-gradient. A law raises AssertionError, or says why it does not apply."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fmeta.core import At, Examples, InputError, Task, Tree, direct, fold, key, normal, tree
from fmeta.core._types import as_it_is, everything, keeps, loss_weights_of, order_of
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution import RetraceWarning, compile
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
from fmeta.gradients._evolution import perturbation
from fmeta.learners import with_inner
from fmeta.operators._over_tasks import over_tasks
from fmeta.testing._case import SAME, Case, admitted, exact, grads_of, near
from fmeta.testing._oracles import (
    distance,
    least_curvature,
    losses_by_loop,
    plain_meta_grad,
    steady_difference,
    tasks_of,
)

Skipped = str | None  # why the law does not apply


# ---- exactness ---------------------------------------------------------------------------------


def equals_plain_autograd(case: Case) -> Skipped:
    """Exact meta-gradients equal a loop of torch.autograd with create_graph over tasks and inner steps."""
    expected = plain_meta_grad(case.learner, case.meta, case.tasks)
    for name, gradient in exact(case).items():
        near(grads_of(case, gradient), expected, name)
    return None


def equals_finite_differences(case: Case) -> Skipped:
    """Exact meta-gradients equal central differences of the mean query loss after adaptation.

    Plain training through `adapt`, so it also holds `inner` and `adapt` to be the same adaptation. Of nine directions
    those count in which differences of several lengths agree, three at most, as they do away from the kinks of a ReLU.
    """
    ways = {name: grads_of(case, gradient) for name, gradient in exact(case).items()}
    counted = 0
    for move, (numeric, steady) in _differences(case):
        if not steady:
            continue
        counted += 1
        for name, grads in ways.items():
            gap, size = abs(float(tree.dot(grads, move)) - numeric), float(tree.global_norm(grads))
            if not gap <= 1e-5 * max(abs(numeric), 1e-2 * size) + 1e-9:
                raise AssertionError(f"{name}: a derivative is {numeric:.6e}, the meta-gradient says {gap:.1e} away")
        if counted == 3:
            break
    if not counted:
        raise AssertionError(
            "differences of 1e-5, 1e-6 and 1e-7 disagree in nine directions, so the loss is not smooth here: draw "
            "randomness from the task's key, take smooth activations for the check (no ReLU, no max pooling), raise "
            "eps_root of an inner adam"
        )
    return None


def own_gradient_has_its_order(case: Case) -> Skipped:
    """The learner's own meta-gradient is exact, or what it claims by `WeighingSteps.order`, against plain loops."""
    claim, found = order_of(case.learner.gradient), own_order(case)
    if claim == "neither":
        return "its own meta-gradient claims to be neither exact nor first order"
    if not keeps(claim, found):
        raise AssertionError(
            f"it claims to be {claim} and computes {found}; one that is meant to compute something else says so: "
            "derive it from WeighingSteps, with order = 'first order' or 'neither'"
        )
    return None


def own_order(case: Case) -> str:
    """What the learner's own meta-gradient computes, as `GradientReport.order` says it."""
    weights, inner = loss_weights_of(case.learner.gradient), case.learner.inner
    with warnings.catch_warnings(action="ignore"):  # of a solver that has not converged: it is then neither
        found = grads_of(case, case.learner.gradient)
    expected = plain_meta_grad(case.learner, case.meta, case.tasks, loss_weights=weights)
    simple = None
    if inner is not None:
        simple = plain_meta_grad(case.learner, case.meta, case.tasks, last=0, loss_weights=weights)
    if distance(found, expected) <= SAME:
        none = simple is not None and distance(simple, expected) <= SAME
        return "exact (no second-order term here)" if none else "exact"
    return "first order" if simple is not None and distance(found, simple) <= SAME else "neither"


def truncation_equals_plain_autograd(case: Case) -> Skipped:
    """first_order and truncated equal the plain loop with the inner gradients detached, in full or before the end."""
    if case.learner.inner is None:
        return "no inner loop"
    near(grads_of(case, truncated(0)), grads_of(case, first_order()), "truncated(0) against first_order")
    for last in sorted({0, 1, case.learner.inner.steps - 1}):
        expected = plain_meta_grad(case.learner, case.meta, case.tasks, last=last)
        near(grads_of(case, truncated(last)), expected, f"truncated({last})")
    return None


def multi_step_losses_equal_plain_autograd(case: Case) -> Skipped:
    """With `loss_weights`, too; the weight on the last step alone is no change."""
    if case.learner.inner is None:
        return "no inner loop"
    steps = case.learner.inner.steps
    for weights in (multi_step(steps), tuple(float(k % 2) for k in range(1, steps + 1))):
        expected = plain_meta_grad(case.learner, case.meta, case.tasks, loss_weights=weights)
        near(grads_of(case, unrolled(weights)), expected, f"unrolled({weights})")
        near(grads_of(case, adjoint(weights)), expected, f"adjoint({weights})")
        expected = plain_meta_grad(case.learner, case.meta, case.tasks, loss_weights=weights, last=0)
        near(grads_of(case, first_order(weights)), expected, f"first_order({weights})")
    last = (0.0,) * (steps - 1) + (1.0,)
    near(grads_of(case, adjoint(last)), grads_of(case, adjoint()), "all weight on the last step")
    return None


def implicit_equals_unrolled_at_convergence(case: Case) -> Skipped:
    """Where the inner problem is declared strongly convex and descent has converged, implicit is unrolled."""
    inner = case.learner.inner
    if inner is None or not inner.strongly_convex:
        return "the inner problem is not declared strongly convex"
    longer, steps, slope = case.learner, inner.steps, float("inf")
    while slope > 1e-11:
        if steps > 1_000:
            left = f"an inner gradient of {slope:.1e} after {steps // 2} steps"
            curvature = least_curvature(longer, case.meta, case.tasks)
            if not curvature > 0:
                raise AssertionError(f"the inner loss is not strongly convex: a curvature of {curvature:.1e}, {left}")
            return f"descent is too slow to see its end: {left}"
        longer = with_inner(case.learner, inner._replace(steps=steps))
        grads, info = meta_grad(longer, implicit(direct(), tolerance=float("inf")))(case.meta, case.tasks)
        slope = float(info.metrics["inner_gradient"].max())
        steps *= 2
    near(grads, meta_grad(longer, adjoint())(case.meta, case.tasks)[0], f"after {steps // 2} steps", 1e-8)
    return None


def implicit_is_refused_elsewhere(case: Case) -> Skipped:
    """A learner that is not declared strongly convex gets an error, not a zero."""
    if case.learner.inner is not None and case.learner.inner.strongly_convex:
        return "the inner problem is declared strongly convex"
    try:
        meta_grad(case.learner, implicit(direct()))
    except InputError as error:
        if case.learner.name in str(error):
            return None
        raise AssertionError(f"the error does not name the learner: {error}") from error
    raise AssertionError("implicit was accepted")


def evolution_projects_the_exact_gradient(case: Case) -> Skipped:
    """For a small sigma the estimate is the mean of ε(ε·g) over tasks and pairs, with each task's own g and ε."""
    if not isinstance(case.tasks.key, Tensor):
        return "the tasks have no keys"
    pairs, estimates = 3, []
    for task in tasks_of(case.tasks):
        alone = case._replace(tasks=tree_map(lambda leaf: leaf[None], task))
        grads = grads_of(alone, unrolled())
        for i in range(pairs):
            noise = perturbation(task.key, torch.tensor(i, device=task.key.device), case.meta)
            estimates.append(tree.scale(noise, tree.dot(noise, grads)))
    expected = tree_map(lambda *each: torch.stack(each).mean(0), *estimates)
    found = grads_of(case, evolution(1e-5, pairs))
    if distance(found, expected) > 1e-4:
        if not all(steady for _, (_, steady) in _differences(case)):
            return "finite differences of several lengths disagree: the loss has kinks (ReLU, max pooling) within sigma"
        near(found, expected, "evolution(1e-5, 3)", 1e-4)
    return None


def difference_is_meta_minus_fast(case: Case) -> Skipped:
    """Reptile's direction, against a loop."""
    if "difference" not in admitted(case):
        return "fast weights are not shaped like meta"
    with torch.no_grad():
        fast = [case.learner.adapt(case.meta, t.support, t.key) for t in tasks_of(case.tasks)]
    expected = tree_map(lambda m, *f: m - torch.stack(f).mean(0), case.meta, *fast)
    near(grads_of(case, difference()), expected, "difference")
    return None


def preparing_equals_computing_every_step(case: Case) -> Skipped:
    """`Inner.prepare` done once is what it is done anew in every step, under every meta-gradient."""
    inner = case.learner.inner
    if inner is None or inner.prepare is as_it_is:
        return "it prepares nothing"

    def start(meta: Tree, support: Examples, key: Tree) -> Tree:
        return inner.start(meta, inner.prepare(meta, support, key), key)

    def loss(fast: Tree, meta: Tree, support: Examples, at: At) -> Tensor:
        return inner.loss(fast, meta, inner.batch(inner.prepare(meta, support, at.task_key), at), at)

    plain = inner._replace(start=start, loss=loss, batch=everything, prepare=as_it_is)
    every_step = case._replace(learner=with_inner(case.learner, plain))
    for name, gradient in admitted(case).items():
        found, expected = (meta_grad(c.learner, gradient)(case.meta, case.tasks) for c in (case, every_step))
        near([found[0], found[1].losses], [expected[0], expected[1].losses], name)
    return None


# ---- batches of tasks --------------------------------------------------------------------------


def losses_are_the_querys(case: Case) -> Skipped:
    """`Info.losses` are each task's query loss after its adaptation, and `Info.loss` is their mean."""
    expected = losses_by_loop(case.learner, case.meta, case.tasks)
    for name, gradient in admitted(case).items():
        info = meta_grad(case.learner, gradient)(case.meta, case.tasks)[1]
        near([info.losses, info.loss], [expected, expected.mean()], name)
    return None


def adaptation_uses_the_support_targets(case: Case) -> Skipped:
    """Support targets handed to other support examples make another loss on the query."""
    support = case.tasks.support
    shifted = support._replace(y=tree_map(lambda y: y.roll(1, 1), support.y))
    if _equal(shifted.y, support.y):
        return "all support targets of a task are alike"
    before, after = (
        losses_by_loop(case.learner, case.meta, case.tasks._replace(support=s)) for s in (support, shifted)
    )
    if distance(after, before) < SAME:
        raise AssertionError("the query losses stay as they are when the support targets change places")
    return None


def batch_equals_loop(case: Case) -> Skipped:
    """A batch of tasks gives the mean of its tasks alone, in any order and in chunks of any size."""
    for name, gradient in admitted(case).items():
        run = meta_grad(case.learner, gradient)
        together = run(case.meta, case.tasks)[0]
        alone = [run(case.meta, tree_map(lambda leaf: leaf[None], task))[0] for task in tasks_of(case.tasks)]
        near(together, tree_map(lambda *each: torch.stack(each).mean(0), *alone), f"{name}: one task at a time")
        flipped = run(case.meta, tree_map(lambda leaf: leaf.flip(0), case.tasks))[0]
        near(flipped, together, f"{name}: tasks in another order")
        rest = run(case.meta, tree_map(lambda leaf: leaf[1:], case.tasks))[0]
        share = 1.0 / len(alone)
        mean = tree.add(tree.scale(alone[0], share), tree.scale(rest, 1.0 - share))
        near(mean, together, f"{name}: in two chunks")
    return None


def padding_changes_nothing(case: Case) -> Skipped:
    """Examples of weight 0 have no say, wherever they stand."""
    if any(isinstance(e.weight, Tensor) for e in (case.tasks.support, case.tasks.query)):
        return "the tasks have weights already"
    if case.learner.inner is not None and case.learner.inner.batch is not everything:
        return "inner steps draw minibatches, and other ones out of more examples"
    padded = case.tasks._replace(support=_padded(case.tasks.support, 1), query=_padded(case.tasks.query, 2))
    for name, gradient in admitted(case).items():
        run = meta_grad(case.learner, gradient)
        plain, info = run(case.meta, case.tasks)
        filled, filled_info = run(case.meta, padded)
        near([filled, filled_info.losses], [plain, info.losses], f"{name} ({_why_padding_counts(case)})")
    return None


# ---- functions without side effects --------------------------------------------------------------


def pure(case: Case) -> Skipped:
    """The same call gives the same bits, inputs stay untouched, and nothing that comes out requires grad."""
    inputs = (case.meta, case.tasks)
    before = tree_map(torch.clone, inputs)
    for name, gradient in admitted(case).items():
        run = meta_grad(case.learner, gradient)
        once, twice = run(*inputs), run(*inputs)
        if not _equal(before, inputs):
            raise AssertionError(f"{name}: wrote into its inputs")
        if not _equal(once, twice):
            raise AssertionError(f"{name}: the same call gave other bits; draw randomness from the task's key")
        if any(leaf.requires_grad for leaf in tree_leaves(once)):
            raise AssertionError(f"{name}: a result requires grad")
    return None


def init_depends_on_the_key_alone(case: Case) -> Skipped:
    """The same key gives the same bits, on the key's device, shaped as the meta at hand."""
    own = key(7, tree_leaves(case.tasks)[0].device)
    once, twice = case.learner.init(own), case.learner.init(own)
    if not _equal(once, twice):
        raise AssertionError("the same key gave other bits; draw every random number from the key")
    if not tree.same_structure(once, case.meta):
        raise AssertionError("meta is not shaped like what init gives")
    return None


def predictions_belong_to_their_examples(case: Case) -> Skipped:
    """`predict` has a prediction for every query example, deterministic, and a batch of tasks gives each task's own."""
    learner = case.learner

    def one(meta: Tree, task: Task) -> Tree:
        return learner.predict(learner.adapt(meta, task.support, task.key), meta, task.query.x)

    with torch.no_grad():
        together = over_tasks(one)(case.meta, case.tasks)
        alone = [one(case.meta, task) for task in tasks_of(case.tasks)]
        if not _equal(alone[0], one(case.meta, tasks_of(case.tasks)[0])):
            raise AssertionError("the same call gave other bits; predict without noise")
    near(together, tree_map(lambda *each: torch.stack(each), *alone), "one task at a time")
    count = len(tree_leaves(alone[0])[0]), len(tree_leaves(case.tasks.query.x)[0][0])
    if count[0] != count[1]:
        raise AssertionError(f"{count[0]} predictions for {count[1]} query examples")
    return None


def shapes_and_dtypes_are_metas(case: Case) -> Skipped:
    """The meta-gradient has meta's structure, shapes, dtype and device, in float64 and in float32."""
    for dtype in (torch.float64, torch.float32):
        meta, tasks = tree_map(lambda t, d=dtype: t.to(d) if t.is_floating_point() else t, (case.meta, case.tasks))
        for name, gradient in admitted(case).items():
            grads = meta_grad(case.learner, gradient)(meta, tasks)[0]
            if not tree.same_structure(grads, meta):
                raise AssertionError(f"{name}: the meta-gradient is not shaped like meta")
            for label, g, m in zip(tree.leaf_names(meta), tree_leaves(grads), tree_leaves(meta), strict=True):
                if g.dtype != m.dtype or g.device != m.device:
                    raise AssertionError(
                        f"{name}: {label} is {m.dtype} on {m.device}, its gradient {g.dtype} on {g.device}"
                    )
    return None


def compiled_equals_eager(case: Case) -> Skipped:
    """As one graph and in stages, gradients and losses; new data compiles nothing."""
    ways = {"unrolled, whole": (unrolled(), True)}
    if case.learner.inner is not None:
        ways["adjoint, step"] = (adjoint(), False)
    flipped = tree_map(lambda leaf: leaf.flip(0), case.tasks)
    for name, (gradient, whole) in ways.items():

        def stage(function: Callable[..., object]) -> Callable[..., object]:
            return compile(function, backend=case.backend)

        eager = meta_grad(case.learner, gradient)
        run = stage(eager) if whole else meta_grad(case.learner, gradient, stage)
        near(run(case.meta, case.tasks), eager(case.meta, case.tasks), name)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RetraceWarning)
            near(run(case.meta, flipped), eager(case.meta, flipped), f"{name}, new data")
    return None


def compiled_on_aliased_arguments_equals_eager(case: Case) -> Skipped:
    """A first call that passes one tensor in two places is no promise that later calls do; nor are views of one."""
    tasks = case.tasks
    if not tree_leaves(tasks.support):
        return "the tasks have no support set to stand for the query too"
    eager = meta_grad(case.learner)
    run = compile(eager, backend=case.backend)
    aliased = tasks._replace(query=tasks.support)
    apart = tasks._replace(query=tree_map(lambda leaf: leaf.flip(0), tasks.support))
    near(run(case.meta, aliased), eager(case.meta, tree_map(torch.clone, aliased)), "support and query one tensor")
    near(run(case.meta, apart), eager(case.meta, apart), "two tensors, after a call with one")
    count = len(tree_leaves(tasks.support)[0])
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf.flip(0)]), tasks.support)
    first, last = (tree_map(lambda leaf, b=b: leaf[b : b + count], twice) for b in (0, 1))
    views = tasks._replace(support=first, query=last)
    near(run(case.meta, views), eager(case.meta, tree_map(torch.clone, views)), "views of one tensor")
    return None


LAWS: dict[str, Callable[[Case], Skipped]] = {
    law.__name__.replace("_", " "): law
    for law in (
        equals_plain_autograd, equals_finite_differences, own_gradient_has_its_order, truncation_equals_plain_autograd,
        multi_step_losses_equal_plain_autograd, implicit_equals_unrolled_at_convergence, implicit_is_refused_elsewhere,
        evolution_projects_the_exact_gradient, difference_is_meta_minus_fast,
        preparing_equals_computing_every_step, losses_are_the_querys,
        adaptation_uses_the_support_targets, batch_equals_loop, padding_changes_nothing, pure,
        init_depends_on_the_key_alone, predictions_belong_to_their_examples, shapes_and_dtypes_are_metas,
        compiled_equals_eager, compiled_on_aliased_arguments_equals_eager,
    )
}  # fmt: skip


def _differences(case: Case) -> Iterator[tuple[Tree, tuple[float, bool]]]:
    """Directions, and what finite differences of the mean query loss are in each."""

    def value(meta: Tree) -> Tensor:
        return losses_by_loop(case.learner, meta, case.tasks).mean()

    for i in range(9):
        move = _direction(case, i)
        yield move, steady_difference(value, case.meta, move)


def _why_padding_counts(case: Case) -> str:
    """Which loss takes no notice of weights that are halved for every second example, if one does."""

    def halved(examples: Examples) -> Examples:
        count = tree_leaves(examples.y)[0].shape[:2]
        weight = torch.ones(count, dtype=torch.float64, device=tree_leaves(examples.y)[0].device)
        weight[:, ::2] = 0.5
        return examples._replace(weight=weight)

    tasks = case.tasks
    before = losses_by_loop(case.learner, case.meta, tasks)
    ignored = [
        name
        for name, other in {
            "the inner loss": tasks._replace(support=halved(tasks.support)) if tree_leaves(tasks.support) else None,
            "the query loss": tasks._replace(query=halved(tasks.query)),
        }.items()
        if other is not None and distance(losses_by_loop(case.learner, case.meta, other), before) < SAME
    ]
    if ignored:
        return f"{' and '.join(ignored)} ignores Examples.weight; average by fmeta.weighted_mean(values, weight)"
    return "dropout and batch norm see padding; skip this law where a model has them"


def _direction(case: Case, number: int) -> Tree:
    leaves, structure = tree.tree_flatten(case.meta)
    own = fold(key(number, tree_leaves(case.tasks)[0].device), 1)
    return tree.tree_unflatten([normal(fold(own, i), m.shape, m.dtype) for i, m in enumerate(leaves)], structure)


def _padded(examples: Examples, number: int) -> Examples:
    """Two more examples of weight 0, one inside and one at the end, copies of others with inputs moved."""
    if not tree_leaves(examples):
        return examples
    first = tree_leaves(examples.x)[0]
    count = first.shape[1]
    rows = torch.tensor([0, count - 1, *range(1, count), 0], device=first.device)

    def more(leaf: Tensor) -> Tensor:
        leaf = leaf.index_select(1, rows)
        if leaf.is_floating_point():
            leaf[:, 1] += number
            leaf[:, -1] -= number
        return leaf

    weight = torch.ones(first.shape[0], count + 2, dtype=torch.float64, device=first.device)
    weight[:, 1] = weight[:, -1] = 0.0
    return Examples(tree_map(more, examples.x), tree_map(more, examples.y), weight)


def _equal(a: Tree, b: Tree) -> bool:
    return all(torch.equal(u, v) for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))
