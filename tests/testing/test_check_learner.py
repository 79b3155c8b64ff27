"""The conformance kit itself: it passes what is right, and names the law that is broken."""

import pytest
import torch
from helpers import F64, LEARNERS, regressor, vectors
from torch.func import grad

import fmeta
from fmeta import testing
from fmeta.core import WeighingSteps, fold
from fmeta.core.tree import tree_map

KEY = fmeta.key(8)
TASKS = vectors(KEY, tasks=3)
MAML = LEARNERS["maml"].learner
CHEAP = [law for law in testing.LAWS if not law.startswith("compiled") and law != "batch equals loop"]


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 6), torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def ridge(model_width=4, decay=0.1):
    """A learner written outside the package: a closed-form head on a meta-learned body, no inner loop."""

    def init(key):
        return {"body": fmeta.core.normal(key, (2, model_width), F64), "decay": torch.tensor(decay, dtype=F64)}

    def features(meta, x):
        return torch.tanh(x @ meta["body"])

    def adapt(meta, support, key):
        z = features(meta, support.x)
        weight = support.weight[:, None] if isinstance(support.weight, torch.Tensor) else torch.ones_like(z[:, :1])
        gram = z.T @ (weight * z) + meta["decay"].exp() * torch.eye(model_width, dtype=z.dtype)
        return torch.linalg.solve(gram, z.T @ (weight * support.y))

    def predict(fast, meta, x):
        return features(meta, x) @ fast

    def loss(fast, meta, query):
        errors = fmeta.mse(predict(fast, meta, query.x), query.y)
        weight = query.weight if isinstance(query.weight, torch.Tensor) else torch.ones_like(errors)
        return (weight * errors).sum() / weight.sum(), {}

    return fmeta.Learner(init, adapt, predict, loss, None, fmeta.unrolled(), "ridge")


def test_a_learner_from_outside_passes_every_law():
    report = testing.check_learner(ridge(), TASKS)
    assert report.gradients == ["unrolled", "evolution"]
    assert {"equals plain autograd", "padding changes nothing", "compiled equals eager"} <= set(report.passed)
    assert report.skipped["difference is meta minus fast"] == "fast weights are not shaped like meta"
    assert set(report.passed) | set(report.skipped) == set(testing.LAWS)


def test_a_module_from_outside_passes():
    torch.manual_seed(0)
    learner = fmeta.maml(fmeta.from_module(Head()), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    float32 = tree_map(lambda t: t.float() if t.is_floating_point() else t, TASKS)
    assert set(testing.check_learner(learner, float32, laws=CHEAP).passed) > {"equals finite differences", "pure"}


def broken(learner, law, **keywords):
    with pytest.raises(testing.LawError, match=law) as caught:
        testing.check_learner(learner, TASKS, laws=[law], **keywords)
    return caught.value.failures[law]


def test_an_adapt_that_is_not_the_inner_loop_is_caught():
    other = MAML._replace(adapt=fmeta.trajectory(MAML.inner, 1))
    other = other._replace(adapt=lambda m, s, k: fmeta.trajectory(MAML.inner, 1)(m, s, k)[-1])
    assert "unrolled: off by" in broken(other, "equals plain autograd")


def test_a_detached_inner_gradient_is_caught():
    def adapt(meta, support, key):
        fast = meta
        for _ in range(3):
            g = grad(lambda f: fmeta.mse(regressor().apply(f, support.x), support.y).mean())(fast)
            fast = tree_map(lambda w, g: w - 0.1 * g.detach(), fast, g)
        return fast

    assert "the meta-gradient says" in broken(MAML._replace(adapt=adapt), "equals finite differences")


def test_global_randomness_is_caught():
    def adapt(meta, support, key):
        return tree_map(lambda w: w + torch.randn((), dtype=F64), meta)

    found = broken(MAML._replace(adapt=adapt, inner=None), "pure")
    assert "torch.randn" in found  # vmap refuses it
    noise = iter(range(100))
    counting = MAML._replace(adapt=lambda m, s, k: tree_map(lambda w: w + 0.1 * next(noise), m), inner=None)
    assert "the same call gave other bits" in broken(counting, "pure")


def test_writing_into_the_inputs_is_caught():
    def loss(fast, meta, query):
        query.y.mul_(1.5)
        return MAML.loss(fast, meta, query)

    assert "in place (tasks.query.y)" in broken(MAML._replace(loss=loss), "pure")


def test_forgotten_weights_are_caught():
    def loss(fast, meta, query):
        return fmeta.mse(MAML.predict(fast, meta, query.x), query.y).mean(), {}

    assert "off by" in broken(MAML._replace(loss=loss), "padding changes nothing")


def test_an_init_that_draws_from_elsewhere_is_caught():
    loose = MAML._replace(init=lambda key: tree_map(lambda w: w + torch.randn((), dtype=F64), MAML.init(key)))
    assert "the same key gave other bits" in broken(loose, "init depends on the key alone")


def test_predictions_that_see_other_tasks_or_lose_examples_are_caught():
    law = "predictions belong to their examples"
    short = MAML._replace(predict=lambda fast, meta, x: MAML.predict(fast, meta, x)[1:])
    assert "4 predictions for 5" in broken(short, law)
    counting = iter(range(100))
    drifting = MAML._replace(predict=lambda fast, meta, x: MAML.predict(fast, meta, x) + next(counting))
    assert "other bits" in broken(drifting, law)


def test_any_exception_of_a_learner_is_a_finding():
    def predict(fast, meta, x):
        raise KeyError("head")

    found = broken(MAML._replace(predict=predict), "predictions belong to their examples")
    assert found == "KeyError: 'head'"


def test_support_targets_without_effect_are_caught():
    deaf = MAML._replace(adapt=lambda meta, support, key: tree_map(lambda w: w + support.x.mean(), meta), inner=None)
    assert "stay as they are" in broken(deaf, "adaptation uses the support targets")


def test_a_false_claim_of_convexity_is_caught():
    """Descent in MAML's inner problem does come to rest after thousands of steps, but at one optimum of many."""
    claimed = fmeta.with_inner(MAML, MAML.inner._replace(strongly_convex=True))
    assert "not strongly convex" in broken(claimed, "implicit equals unrolled at convergence")


def test_descent_that_is_too_slow_is_skipped_and_told():
    learner = fmeta.imaml(regressor(), fmeta.mse, damping=3.0, optimizer=fmeta.sgd(1e-4), steps=600)
    law = "implicit equals unrolled at convergence"
    assert "too slow to see its end" in testing.check_learner(learner, TASKS, laws=[law]).skipped[law]


@pytest.mark.parametrize("law", ["equals plain autograd", "equals finite differences", "batch equals loop"])
def test_a_false_claim_of_exactness_is_caught(law):
    def summed(learner, stage):
        def grads(meta, tasks):
            found, info = fmeta.unrolled()(learner, stage)(meta, tasks)
            return tree_map(lambda g: g * len(info.losses), found), info

        return grads

    assert "mine" in broken(MAML, law, claimed={"mine": summed})
    assert testing.check_learner(MAML, TASKS, laws=[law], claimed={"mine": fmeta.adjoint()}).passed == [law]


def disguised(learner, stage):
    """First order that claims nothing, and so to be exact."""
    return fmeta.first_order()(learner, stage)


class Told(WeighingSteps):
    """The same, which says what it is."""

    order = "first order"

    def __call__(self, learner, stage):
        return disguised(learner, stage)


OWN = "own gradient has its order"


@pytest.mark.parametrize(
    ("gradient", "order"),
    [
        (fmeta.unrolled(), "exact"),
        (fmeta.adjoint(fmeta.multi_step(MAML.inner.steps)), "exact"),
        (fmeta.chunked(fmeta.adjoint(), 2), "exact"),
        (fmeta.first_order(), "first order"),
        (Told(), "first order"),
        (fmeta.skipping(fmeta.first_order()), "first order"),
        (fmeta.truncated(1), "neither"),
        (fmeta.difference(), "neither"),
        (fmeta.evolution(0.01, 2), "neither"),
    ],
)
def test_the_report_says_what_the_learners_own_gradient_computes(gradient, order):
    report = testing.check_learner(MAML._replace(gradient=gradient), TASKS, laws=[OWN])
    assert report.order == order
    assert (report.passed == [OWN]) is (order != "neither")
    assert testing.check_learner(MAML, TASKS, laws=["pure"]).order is None
    assert testing.check_learner(MAML, TASKS, laws=[OWN], skip=[OWN]).order is None


def test_an_impostor_does_not_pass_as_the_learners_own_gradient():
    assert "claims to be exact and computes first order" in broken(MAML._replace(gradient=disguised), OWN)
    doubled = MAML._replace(gradient=lambda learner, stage: lambda meta, tasks: (
        fmeta.tree.scale(fmeta.meta_grad(learner, fmeta.unrolled())(meta, tasks)[0], 2.0), None
    ))  # fmt: skip
    assert "claims to be exact and computes neither" in broken(doubled, OWN)
    half = MAML._replace(gradient=fmeta.chunked(disguised, 2))
    assert "claims to be exact and computes first order" in broken(half, OWN)


def test_the_learner_of_readme_keeps_the_laws_though_a_relu_has_kinks():
    """Along three of these directions the loss jumps within one length of the differences or more."""
    model = fmeta.models.mlp([1, 40, 40, 1])
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=5)
    tasks = testing.random_regression(fmeta.key(0), tasks=4, inputs=1)
    laws = ["equals finite differences", "evolution projects the exact gradient", OWN]
    report = testing.check_learner(learner, tasks, laws=laws)
    assert "kinks" in report.skipped.pop(laws[1])
    assert report == ([laws[0], OWN], {}, report.gradients, "exact")


def test_a_loss_without_smooth_directions_is_named_with_what_helps():
    noise = iter(range(10**6))
    learner = MAML._replace(adapt=lambda m, s, k: tree_map(lambda w: w + 0.1 * next(noise), m), inner=None)
    found = broken(learner, "equals finite differences")
    assert "disagree in nine directions" in found
    assert "randomness from the task's key" in found


def test_the_hint_about_padding_fits_its_cause():
    def deaf(fast, meta, batch, at):
        return fmeta.mse(MAML.predict(fast, meta, batch.x), batch.y).mean()

    def loss(fast, meta, query):
        return fmeta.mse(MAML.predict(fast, meta, query.x), query.y).mean(), {}

    law = "padding changes nothing"
    inner = fmeta.with_inner(MAML, MAML.inner._replace(loss=deaf))
    assert "(the inner loss ignores Examples.weight; average by fmeta.weighted_mean" in broken(inner, law)
    assert "(the query loss ignores Examples.weight" in broken(MAML._replace(loss=loss), law)
    assert "(the inner loss and the query loss ignores" in broken(inner._replace(loss=loss), law)
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    batch = fmeta.maml(fmeta.from_module(net, norm="batch"), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    assert "(dropout and batch norm see padding" in broken(batch, law)


def test_all_broken_laws_are_told_at_once():
    idle, laws = MAML._replace(adapt=lambda m, s, k: m), ["pure", "equals plain autograd", "losses are the querys"]
    with pytest.raises(testing.LawError, match=r"check_learner\(maml\): 2 broken") as caught:
        testing.check_learner(idle, TASKS, laws=laws)
    assert list(caught.value.failures) == ["equals plain autograd", "losses are the querys"]


def test_a_learner_that_does_not_run_in_float64_is_one_error():
    fixed = torch.ones(2, 1)
    model = fmeta.Model(lambda key: {"w": torch.ones(())}, lambda params, x: params["w"] * (x @ fixed), None)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    with pytest.raises(fmeta.InputError, match=r"check_learner\(maml\): it does not run.*dtype"):
        testing.check_learner(learner, TASKS)


def test_bad_input():
    with pytest.raises(fmeta.InputError, match="unknown law 'pur'; did you mean 'pure'"):
        testing.check_learner(MAML, TASKS, laws=["pur"])
    with pytest.raises(fmeta.InputError, match="got one task"):
        testing.check_learner(MAML, tree_map(lambda t: t[:1], TASKS))
    skipped = testing.check_learner(MAML, TASKS, laws=["pure"], skip=["pure"]).skipped
    assert skipped == {"pure": "asked to skip"}


def test_oracles_agree_with_a_derivative_known_by_hand():
    """One linear weight, one inner step: d/dw of (w − lr·2x(wx − y))²-like losses is elementary."""
    model = fmeta.models.mlp([1, 1], dtype=F64)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    tasks = vectors(fold(KEY, 1), tasks=2, shots=1, query=1, inputs=1)
    meta = {"head.weight": torch.tensor([[0.7]], dtype=F64), "head.bias": torch.tensor([-0.2], dtype=F64)}
    expected = torch.zeros(2, dtype=F64)
    for i in range(2):
        (x,), (y,), (u,), (v,) = (t[i, 0] for t in (*tasks.support[:2], *tasks.query[:2]))
        a, b = torch.stack([x, torch.ones(())]), torch.stack([u, torch.ones(())])
        w = torch.tensor([0.7, -0.2], dtype=F64)
        fast = w - 0.1 * 2 * a * (w @ a - y)
        expected += (torch.eye(2, dtype=F64) - 0.2 * torch.outer(a, a)) @ (2 * b * (fast @ b - v)) / 2
    found = testing.plain_meta_grad(learner, meta, tasks)
    assert testing.distance([found["head.weight"][0, 0], found["head.bias"][0]], list(expected)) < 1e-12
