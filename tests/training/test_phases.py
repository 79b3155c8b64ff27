"""`fit` swaps the meta-gradient during training: `gradient={0: first_order(), 5: unrolled()}`."""

import json

import pytest
import torch
from helpers import F64, grouped, vectors

import fmeta
from fmeta.core import fold, key
from fmeta.core.tree import tree_leaves
from fmeta.training._checkpoint import checkpoints

NET = fmeta.models.mlp([2, 6, 1], torch.tanh, F64)
LEARNER = fmeta.maml(NET, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
DAMPED = fmeta.imaml(NET, fmeta.mse, damping=2.0, optimizer=fmeta.sgd(0.2), steps=3)
OUTER = fmeta.adam(fmeta.cosine_decay(0.02, 12))
TASKS = vectors(fmeta.key(30), tasks=3)
SWAP = {0: fmeta.first_order(), 5: fmeta.unrolled()}


def same_tasks(k, count):
    """Whatever the key, so that a loop by hand sees what `fit` sees."""
    return TASKS


def random_tasks(k, count):
    return vectors(k, count)


def train(gradient, run_dir=None, iterations=12, sample=same_tasks, learner=LEARNER, **more):
    given = {"key": key(3), "meta_batch": 3, "log_every": 4, "save_every": 3, **more}
    return fmeta.fit(
        learner, OUTER, sample, iterations=iterations, gradient=gradient, run_dir=run_dir, **grouped(**given)
    )


def same_bits(a, b):
    return all(torch.equal(u, v) for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))


def by_hand(gradients):
    """One meta-step per gradient, the optimizer's state handed on."""
    state = fmeta.trainer(LEARNER, OUTER).init(fold(key(3), "initialisation"))
    for gradient in gradients:
        state, _ = fmeta.trainer(LEARNER, OUTER, gradient).step(state, TASKS)
    return state


def test_it_equals_training_by_hand_that_swaps():
    expected = by_hand([fmeta.first_order()] * 5 + [fmeta.unrolled()] * 7)
    assert same_bits(train(SWAP), expected)
    assert int(expected.step) == 12
    assert not same_bits(train(SWAP).meta, by_hand([fmeta.first_order()] * 6 + [fmeta.unrolled()] * 6).meta)


def test_three_phases_in_any_order_of_writing():
    gradients = {7: fmeta.unrolled(), 0: fmeta.first_order(), 2: fmeta.difference()}
    expected = by_hand([fmeta.first_order()] * 2 + [fmeta.difference()] * 5 + [fmeta.unrolled()] * 5)
    assert same_bits(train(gradients), expected)


def test_a_phase_may_be_the_learners_own():
    assert same_bits(train({0: fmeta.first_order(), 5: None}), train(SWAP))


def test_annealed_loss_weights():
    weights = [fmeta.multi_step(2, progress) for progress in (0.0, 0.5, 1.0)]
    phases = {4 * i: fmeta.adjoint(w) for i, w in enumerate(weights)}
    assert same_bits(train(phases), by_hand([fmeta.adjoint(w) for w in weights for _ in range(4)]))


def test_one_phase_is_no_mapping():
    assert same_bits(train({0: fmeta.first_order()}), train(fmeta.first_order()))


def test_a_phase_after_the_end_changes_nothing():
    assert same_bits(train({0: fmeta.first_order(), 50: fmeta.unrolled()}), train(fmeta.first_order()))


def test_it_equals_two_runs_of_which_the_second_resumes_the_first(tmp_path):
    """Random tasks: the swap changes none of them."""
    train(fmeta.first_order(), tmp_path, iterations=5, sample=random_tasks)
    second = train(fmeta.unrolled(), tmp_path, sample=random_tasks, resume=True)
    assert same_bits(train(SWAP, sample=random_tasks), second)


@pytest.mark.parametrize("cut", [3, 5, 8])
def test_resumed_in_any_phase_a_run_ends_with_the_same_bits(tmp_path, cut):
    train(SWAP, tmp_path, iterations=cut, sample=random_tasks)
    resumed = train(SWAP, tmp_path, sample=random_tasks, resume=True)
    assert same_bits(resumed, train(SWAP, sample=random_tasks))
    assert checkpoints(tmp_path / "checkpoints")[-1][0] == 12


@pytest.mark.parametrize("first", [2, 6], ids=["first phase", "second phase"])
def test_ctrl_c_in_either_phase_costs_nothing(tmp_path, first):
    def progress(step, values):
        if step >= first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SWAP, tmp_path, sample=random_tasks, loggers=[progress], log_every=2)
    resumed = train(SWAP, tmp_path, sample=random_tasks, resume=True, log_every=2)
    assert same_bits(resumed, train(SWAP, sample=random_tasks))


@pytest.mark.parametrize("backwards", [False, True])
def test_phases_may_report_different_metrics(tmp_path, backwards):
    """`implicit` adds metrics of its own; the line of step 6 spans the swap."""
    ways = [fmeta.implicit(fmeta.direct()), fmeta.unrolled()]
    train(dict(zip([0, 5], ways[::-1] if backwards else ways, strict=True)), tmp_path, learner=DAMPED)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    reported = {line["step"]: "residual" in line for line in lines}
    assert sorted(reported) == [3, 4, 6, 8, 9, 12]
    assert [reported[k] for k in (3, 4, 8, 9, 12)] == [not backwards] * 2 + [backwards] * 3


def test_a_non_finite_gradient_in_the_second_phase_names_its_step():
    def overflowing(learner, stage):
        run = fmeta.unrolled()(learner, stage)

        def grads(meta, tasks):
            found, info = run(meta, tasks)
            return {n: g * torch.inf for n, g in found.items()}, info

        return grads

    with pytest.raises(fmeta.NonFiniteError, match="not finite at step 5"):
        train({0: fmeta.unrolled(), 5: overflowing})


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[], [5], [1, 5], [0, -1], [0, 2.5], [0, "5"], [0.0, 5]], ids=lambda keys: str(keys))
def test_bad_phases_are_refused_before_a_folder_is_made(tmp_path, keys):
    with pytest.raises(fmeta.InputError, match=r"trainer\(gradient=a mapping\).*expected the first meta-step of each"):
        train({k: fmeta.unrolled() for k in keys}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("late", [fmeta.implicit(), fmeta.truncated(9), fmeta.unrolled([1.0]), fmeta.adjoint])
def test_a_later_phase_that_does_not_fit_is_refused_before_training(tmp_path, late):
    """Not after hours of the first."""
    with pytest.raises(fmeta.InputError, match="expected"):
        train({0: fmeta.unrolled(), 5: late}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- compiled ----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("scope", ["whole", "step"])
def test_compiled_phases_equal_eager(scope):
    short = fmeta.maml(NET, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    compiled, eager = (train(SWAP, iterations=7, scope=s, learner=short) for s in (scope, "none"))
    for u, v in zip(tree_leaves(compiled), tree_leaves(eager), strict=True):
        torch.testing.assert_close(u, v, rtol=1e-9, atol=1e-12)


def test_a_later_phase_that_fails_on_these_tasks_is_told_before_the_first_step():
    """At its own step it would have cost the run up to there."""
    seen = []

    def of_four_tasks(learner, stage):
        def grads(meta, tasks):
            raise fmeta.InputError("this meta-gradient needs four tasks")

        return grads

    with pytest.raises(fmeta.InputError, match="needs four tasks"):
        fmeta.fit(
            LEARNER, OUTER, lambda k, count: TASKS, key=key(3), iterations=12, meta_batch=3,
            gradient={0: fmeta.first_order(), 5: of_four_tasks},
            logging=fmeta.Logging(1, [lambda step, _: seen.append(step)]),
        )  # fmt: skip
    assert not seen
