"""`loss_weights`: the outer loss is a weighted sum of the query losses after each inner step."""

import math

import pytest
import torch
from helpers import LEARNERS, STEPPING, regressor, vectors
from torch._dynamo.testing import CompileCounterWithBackend

import fmeta
from fmeta.core import fold, loss_weights_of
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(11)
SEVERAL = sorted(n for n, steps in STEPPING.items() if steps > 1)
WAYS = {
    "unrolled": fmeta.unrolled,
    "adjoint": fmeta.adjoint,
    "truncated": lambda weights: fmeta.truncated(1, weights),
    "first_order": fmeta.first_order,
}
MAML = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
META, TASKS = MAML.init(KEY), vectors(fold(KEY, 1))


def setup(name):
    learner, sample, *_ = LEARNERS[name]
    return learner, learner.init(KEY), sample(fold(KEY, 1))


def stopped(learner, steps):
    """The same learner with fewer inner steps."""
    return fmeta.with_inner(learner, learner.inner._replace(steps=steps))


def combined(learner, meta, tasks, weights, way):
    """Σₖ wₖ · meta-gradient of the learner that stops after k steps: the gradient is linear in the loss."""
    total = tree_map(torch.zeros_like, meta)
    for k, weight in enumerate(weights, 1):
        grads, _ = fmeta.meta_grad(stopped(learner, k), way(k))(meta, tasks)
        total = tree_map(lambda t, g, w=weight: t + w * g, total, grads)
    return total


def drawn_weights(steps):
    return [0.3, 0.0, 1.7, 0.4][:steps] if steps > 2 else [0.3, 1.7]


@pytest.mark.parametrize("way", ["unrolled", "adjoint", "first_order"])
@pytest.mark.parametrize("name", SEVERAL)
def test_it_is_the_weighted_sum_over_learners_that_stop_earlier(name, way):
    learner, meta, tasks = setup(name)
    weights = drawn_weights(learner.inner.steps)
    found, _ = fmeta.meta_grad(learner, WAYS[way](weights))(meta, tasks)
    assert distance(found, combined(learner, meta, tasks, weights, lambda k: getattr(fmeta, way)())) < 1e-10


@pytest.mark.parametrize("last", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["maml-adam", "cavia"])
def test_truncated_keeps_the_last_steps_of_the_whole_loop(name, last):
    """A loss after step k sees the second-order terms of those of the last steps that come before it."""
    learner, meta, tasks = setup(name)
    weights, constant = [0.3, 0.5, 0.4], 3 - last
    found, _ = fmeta.meta_grad(learner, fmeta.truncated(last, weights))(meta, tasks)
    expected = combined(learner, meta, tasks, weights, lambda k: fmeta.truncated(max(0, k - constant)))
    assert distance(found, expected) < 1e-10


@pytest.mark.parametrize("way", WAYS)
def test_all_weight_on_an_early_step_is_the_learner_that_stops_there(way):
    found, _ = fmeta.meta_grad(MAML, WAYS[way]([1.0, 0.0, 0.0]))(META, TASKS)
    # of three steps truncated(1) counts the first gradient as constant
    alone = {"unrolled": fmeta.unrolled(), "adjoint": fmeta.adjoint()}.get(way, fmeta.first_order())
    assert distance(found, fmeta.meta_grad(stopped(MAML, 1), alone)(META, TASKS)[0]) < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_the_scale_of_the_weights_is_the_scale_of_the_gradient(way):
    once, thrice = (fmeta.meta_grad(MAML, WAYS[way]([s, 2 * s, s]))(META, TASKS)[0] for s in (1.0, 3.0))
    assert distance(thrice, tree_map(lambda g: 3.0 * g, once)) < 1e-12


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("way", WAYS)
def test_info_reports_the_loss_after_the_last_step(way, weights):
    info = fmeta.meta_grad(MAML, WAYS[way](weights))(META, TASKS)[1]
    for i in range(4):
        task = tree_map(lambda t, i=i: t[i], TASKS)
        fast = MAML.adapt(META, task.support, task.key)
        expected = fmeta.mse(regressor().apply(fast, task.query.x), task.query.y).mean()
        assert info.losses[i].item() == pytest.approx(expected.item(), rel=1e-12)
    assert info.loss.item() == pytest.approx(info.losses.mean().item(), rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_meta_gradient_keeps_the_weights_it_was_given(way):
    """Changing the list afterwards changes nothing."""
    given = [0.2, 0.3, 0.5]
    gradient = WAYS[way](given)
    given[0] = 100.0
    found, _ = fmeta.meta_grad(MAML, gradient)(META, TASKS)
    assert distance(found, fmeta.meta_grad(MAML, WAYS[way]([0.2, 0.3, 0.5]))(META, TASKS)[0]) == 0


def test_check_meta_grad_checks_the_weighted_losses():
    assert fmeta.check_meta_grad(MAML, META, TASKS, fmeta.adjoint([0.5, 0.2, 0.3])).order == "exact"
    assert fmeta.check_meta_grad(MAML, META, TASKS, fmeta.first_order([0.5, 0.2, 0.3])).order == "first order"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([], r"0 loss_weights.*3 inner steps.*multi_step\(3\)"),
        ([0.5, 0.5], r"2 loss_weights.*3 inner steps.*multi_step\(3\)"),
        ([0.25] * 4, r"4 loss_weights.*3 inner steps.*multi_step\(3\)"),
        ([0.5, -0.1, 0.6], "expected finite weights >= 0"),
        ([0.5, math.nan, 0.5], "expected finite weights >= 0"),
        ([0.5, math.inf, 0.5], "expected finite weights >= 0"),
        ([0.0, 0.0, 0.0], "not all 0"),
    ],
)
def test_bad_weights_are_refused(way, weights, expected):
    with pytest.raises(fmeta.InputError, match=rf"{way}: .*{expected}"):
        fmeta.meta_grad(MAML, WAYS[way](weights))


@pytest.mark.parametrize("way", WAYS)
def test_a_learner_without_an_inner_loop_refuses_weights(way):
    bare = fmeta.Learner(None, None, None, None, None, fmeta.unrolled(), "prototypes")
    with pytest.raises(fmeta.InputError, match=r"prototypes.*has none"):
        fmeta.meta_grad(bare, WAYS[way]([1.0]))


# ---- MAML++'s weights --------------------------------------------------------------------------


def weights_of_the_paper(steps, epoch, epochs):
    """`get_per_step_loss_importance_vector` of the authors' code, with numbers for its options."""
    weights = [1.0 / steps] * steps
    decay, least = 1.0 / steps / epochs, 0.03 / steps
    for i in range(steps - 1):
        weights[i] = max(weights[i] - epoch * decay, least)
    weights[-1] = min(weights[-1] + epoch * (steps - 1) * decay, 1.0 - (steps - 1) * least)
    return tuple(weights)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("epoch", [0, 3, 14, 15])
def test_multi_step_is_the_papers_rule(steps, epoch):
    expected = weights_of_the_paper(steps, epoch, 15)
    assert fmeta.multi_step(steps, epoch / 15) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.98, 1.0])
def test_multi_step_weights_sum_to_one(steps, progress):
    weights = fmeta.multi_step(steps, progress)
    assert len(weights) == steps
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    assert min(weights) > 0


@pytest.mark.parametrize("given", [(0, 0.0), (-1, 0.0), (3, -0.1), (3, 1.1), (3, math.nan)])
def test_bad_settings_of_multi_step_are_refused(given):
    with pytest.raises(fmeta.InputError, match=r"multi_step.*expected steps >= 1 and 0 <= progress <= 1"):
        fmeta.multi_step(*given)


# ---- compiled ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["adjoint", pytest.param("truncated", marks=pytest.mark.thorough)])
def test_weights_in_stages_equal_eager_and_compile_nothing_more(way):
    """One compiled `finish` serves every step, whatever its weight."""
    counter, weights = CompileCounterWithBackend("aot_eager"), [0.2, 0.3, 0.5]
    staged = fmeta.meta_grad(MAML, WAYS[way](weights), lambda function: fmeta.compile(function, backend=counter))
    assert distance(staged(META, TASKS), fmeta.meta_grad(MAML, WAYS[way](weights))(META, TASKS)) < 1e-12
    assert counter.frame_count == {"adjoint": 5, "truncated": 7}[way]


def test_every_meta_gradient_of_ours_is_a_value_that_says_its_weights():
    weights = (0.25, 0.75)
    made = [fmeta.difference(), fmeta.evolution(0.1, 2), fmeta.implicit(), fmeta.unrolled(), fmeta.unrolled(weights)]
    made += [fmeta.chunked(way, 2) for way in made] + [fmeta.skipping(way) for way in made]
    assert [loss_weights_of(way) for way in made[4::5]] == [weights] * 3
    assert {loss_weights_of(way) for i, way in enumerate(made) if i % 5 != 4} == {None}
    assert fmeta.difference() == fmeta.difference()
    assert fmeta.chunked(fmeta.adjoint(weights), 2) == fmeta.chunked(fmeta.adjoint(weights), 2)
    with pytest.raises(AttributeError):
        fmeta.difference().loss_weights = weights


def test_a_plain_function_is_a_meta_gradient():
    def own(learner, stage):
        return fmeta.adjoint()(learner, stage)

    learner, sample, _ = LEARNERS["maml"]
    meta, tasks = learner.init(KEY), sample(KEY)
    expected = fmeta.meta_grad(learner, fmeta.adjoint())(meta, tasks)
    for way in (own, fmeta.chunked(own, 2), fmeta.skipping(own)):
        assert loss_weights_of(way) is None
        assert distance(fmeta.meta_grad(learner, way)(meta, tasks)[0], expected[0]) < 1e-12
    assert fmeta.check_meta_grad(learner, meta, tasks, own).exact
