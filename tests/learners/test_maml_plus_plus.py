"""MAML++: what is learned for each step is used at that step (Antoniou et al. 2019)."""

import pytest
import torch
from helpers import F64, labelled, normed, regressor, vectors
from torch.nn import functional as F

import fmeta
from fmeta.core import fold, normal
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.testing import distance

KEY = fmeta.key(24)
STEPS = 3


def shaken(meta):
    """Away from the start, where all steps have one rate, scale and shift."""
    leaves = iter(range(100))
    return tree_map(lambda t: t + 0.1 * normal(fold(KEY, next(leaves)), t.shape, F64), meta)


NORMED = fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=0.3, steps=STEPS)
META, TASKS = shaken(NORMED.init(KEY)), labelled(fold(KEY, 200), shape=(2,))


def network(params, x):
    """`normed` written out, with torch's own batch norm."""
    h = F.linear(x, params["body.weight"], params["body.bias"])
    h = F.batch_norm(h, None, None, params["norm1.weight"], params["norm1.bias"], training=True)
    return F.linear(torch.tanh(h), params["head.weight"], params["head.bias"])


def losses_by_hand(meta, task, steps=STEPS):
    """Cross entropy of the query after each step, and the parameters: torch.autograd with create_graph."""
    params, losses = {n: p.clone() for n, p in meta.params.items()}, []
    for k in range(steps):
        now = min(k, STEPS - 1)
        norms = {n: p[now] for n, p in meta.each_step.items()}
        loss = F.cross_entropy(network(params | norms, task.support.x), task.support.y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {n: p - meta.lr[n][now] * g for (n, p), g in zip(params.items(), grads, strict=True)}
        losses.append(F.cross_entropy(network(params | norms, task.query.x), task.query.y))
    return losses, params


def each_task():
    return [tree_map(lambda t, i=i: t[i], TASKS) for i in range(3)]


def leaves_of(meta):
    return tree_map(lambda t: t.clone().requires_grad_(), meta)


def test_what_is_learned_and_where_it_starts():
    model, meta = normed(), NORMED.init(KEY)
    start = model.init(KEY)
    assert list(meta.params) == list(meta.lr) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert all(torch.equal(p, start[n]) for n, p in meta.params.items())
    assert all(torch.equal(lr, torch.full((STEPS,), 0.3, dtype=F64)) for lr in meta.lr.values())
    assert sorted(meta.each_step) == ["norm1.bias", "norm1.weight"]
    assert all(torch.equal(p, torch.stack([start[n]] * STEPS)) for n, p in meta.each_step.items())


def test_each_step_has_its_own_rate_scale_and_shift():
    for task in each_task():
        fast = NORMED.adapt(META, task.support, task.key)
        losses, params = losses_by_hand(leaves_of(META), task)
        assert distance(fast.params, {n: p.detach() for n, p in params.items()}) < 1e-11
        assert NORMED.loss(fast, META, task.query)[0].item() == pytest.approx(losses[-1].item(), rel=1e-11)


@pytest.mark.parametrize("progress", [0.0, 0.7, None], ids=["equal weights", "annealed", "last step alone"])
@pytest.mark.parametrize("gradient", ["unrolled", "adjoint"])
def test_the_meta_gradient_of_all_that_is_learned(gradient, progress):
    weights = None if progress is None else fmeta.multi_step(STEPS, progress)
    meta = leaves_of(META)
    terms = []
    for task in each_task():
        losses, _ = losses_by_hand(meta, task)
        terms.append(sum(w * loss for w, loss in zip(weights or (0.0, 0.0, 1.0), losses, strict=True)))
    expected = torch.autograd.grad(torch.stack(terms).mean(), tree_leaves(meta))
    found, _ = fmeta.meta_grad(NORMED, getattr(fmeta, gradient)(weights))(META, TASKS)
    assert distance(tree_leaves(found), list(expected)) < 1e-10


def test_its_own_gradient_weighs_all_steps_alike():
    own, equal = (fmeta.meta_grad(NORMED, g)(META, TASKS)[0] for g in (None, fmeta.unrolled([1 / 3] * 3)))
    assert distance(own, equal) < 1e-14


def test_every_step_of_every_rate_scale_and_shift_is_learned():
    """But for the rate of a bias before a norm, which subtracts it again."""
    found, _ = fmeta.meta_grad(NORMED)(META, TASKS)
    assert [n for n, g in found.lr.items() if not (g.abs() > 1e-8).all()] == ["body.bias"]
    assert all((g.abs().amax(1) > 1e-8).all() for g in found.each_step.values())


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_after_more_steps_than_were_trained_the_last_rates_and_norms_serve(steps):
    result = fmeta.evaluate(NORMED, META, TASKS, steps=[steps])
    for i, task in enumerate(each_task()):
        expected = losses_by_hand(leaves_of(META), task, steps)[0][-1]
        assert result.values["loss"][i, 0].item() == pytest.approx(expected.item(), rel=1e-10)


def test_before_the_first_step_the_first_norms_serve():
    result = fmeta.evaluate(NORMED, META, TASKS, steps=[0])
    first = {n: p[0] for n, p in META.each_step.items()}
    for i, task in enumerate(each_task()):
        expected = F.cross_entropy(network(META.params | first, task.query.x), task.query.y)
        assert result.values["loss"][i, 0].item() == pytest.approx(expected.item(), rel=1e-11)


# ---- without norms -----------------------------------------------------------------------------

PLAIN = fmeta.maml_plus_plus(regressor(), fmeta.mse, lr=0.1, steps=STEPS, each_step="")


def test_without_norms_it_is_maml_with_rates_for_each_step():
    meta, tasks = shaken(PLAIN.init(KEY)), vectors(fold(KEY, 201))
    assert meta.each_step == {}
    rated = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=STEPS)
    rated = fmeta.with_inner(rated, rated.inner._replace(optimizer=lambda params: fmeta.sgd(fmeta.per_step(meta.lr))))
    found, info = fmeta.meta_grad(PLAIN, fmeta.unrolled())(meta, tasks)
    expected, expected_info = fmeta.meta_grad(rated, fmeta.unrolled())(meta.params, tasks)
    assert distance(found.params, expected) < 1e-12
    assert distance(info.losses, expected_info.losses) < 1e-12


def test_without_norms_it_is_a_plain_loop_with_rates_for_each_step():
    meta, tasks, net = leaves_of(shaken(PLAIN.init(KEY))), vectors(fold(KEY, 201)), regressor()
    losses = []
    for i in range(4):
        task, fast = tree_map(lambda t, i=i: t[i], tasks), dict(meta.params)
        for k in range(STEPS):
            loss = ((net.apply(fast, task.support.x) - task.support.y) ** 2).mean()
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - meta.lr[n][k] * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        losses.append(((net.apply(fast, task.query.x) - task.query.y) ** 2).mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), [*meta.params.values(), *meta.lr.values()])
    found, _ = fmeta.meta_grad(PLAIN, fmeta.unrolled())(tree_map(torch.Tensor.detach, meta), tasks)
    assert distance([*found.params.values(), *found.lr.values()], list(expected)) < 1e-10


def test_at_the_start_it_is_maml_at_one_rate():
    meta, tasks = PLAIN.init(KEY), vectors(fold(KEY, 202))
    maml = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=STEPS)
    found, _ = fmeta.meta_grad(PLAIN, fmeta.unrolled())(meta, tasks)
    assert distance(found.params, fmeta.meta_grad(maml)(meta.params, tasks)[0]) < 1e-12


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["norn*", "norm*,norn*", "batchnorm.weight"])
def test_a_pattern_that_matches_nothing_lists_near_names(pattern):
    learner = fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=0.1, steps=2, each_step=pattern)
    with pytest.raises(fmeta.InputError, match=r"maml_plus_plus.*matches no parameter; .*norm1\.weight"):
        learner.init(KEY)


def test_the_default_pattern_needs_norms():
    with pytest.raises(fmeta.InputError, match=r"maml_plus_plus.*'norm\*' matches no parameter.*hidden1\.weight"):
        fmeta.maml_plus_plus(regressor(), fmeta.mse, lr=0.1, steps=2).init(KEY)


def test_a_pattern_that_leaves_nothing_to_adapt_is_refused():
    learner = fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=0.1, steps=2, each_step="*")
    with pytest.raises(fmeta.InputError, match="leaves no parameter to adapt"):
        learner.init(KEY)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(lr):
    with pytest.raises(fmeta.InputError, match="expected a finite rate >= 0"):
        fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=lr, steps=2)


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(steps):
    with pytest.raises(
        fmeta.InputError, match=rf"maml_plus_plus\(steps={steps}\): expected a whole number, at least 1"
    ):
        fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=0.1, steps=steps)


def test_nested_parameters_are_refused():
    nested = fmeta.Model(lambda key: {"body": {"weight": torch.ones(1, 2)}}, lambda params, x: x, None)
    learner = fmeta.maml_plus_plus(nested, fmeta.mse, lr=0.1, steps=2, each_step="")
    with pytest.raises(fmeta.InputError, match="maml_plus_plus: the model's parameters are nested; expected one flat"):
        learner.init(KEY)
