"""`implicit` against the closed form of a ridge regression towards meta, and what it says of itself."""

import functools
import warnings

import pytest
import torch
from helpers import F64, LEARNERS, STEPPING, regressor, vectors
from torch._dynamo.testing import CompileCounterWithBackend

import fmeta
from fmeta import Examples
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.testing import distance

KEY = fmeta.key(6)
DAMPING = 0.8
LINEAR = fmeta.models.mlp([2, 1], dtype=F64)
TASKS = vectors(fold(KEY, 1), tasks=4, shots=20, query=5)
META = LINEAR.init(fold(KEY, 2))


def ridge(steps, gradient=None, lr=0.3, optimizer=fmeta.sgd, **more):
    return fmeta.imaml(
        LINEAR, fmeta.mse, damping=DAMPING, optimizer=optimizer(lr), steps=steps, gradient=gradient, **more
    )


class System:
    """One task in matrices, for weights and bias in one vector w: L = mean (Xw − y)² + λ/2 ‖w − meta‖²."""

    def __init__(self, task):
        x, y = with_ones(task.support), task.support.y
        self.task, self.start = task, flat(META)
        self.a = 2 * x.T @ x / len(x) + DAMPING * torch.eye(3, dtype=F64)
        self.best = torch.linalg.solve(self.a, (2 * x.T @ y / len(x))[:, 0] + DAMPING * self.start)

    def after(self, steps, lr=0.3):
        """Gradient descent of a quadratic, in closed form."""
        shrink = torch.linalg.matrix_power(torch.eye(3, dtype=F64) - lr * self.a, steps)
        return self.best + shrink @ (self.start - self.best)

    def query_slope(self, w):
        x, y = with_ones(self.task.query), self.task.query.y[:, 0]
        return 2 * x.T @ (x @ w - y) / len(x)

    def meta_gradient(self, w):
        """∂w*/∂meta = λ A⁻¹."""
        return DAMPING * torch.linalg.solve(self.a, self.query_slope(w))


def with_ones(examples):
    return torch.cat([examples.x, torch.ones_like(examples.x[:, :1])], 1)


def flat(params):
    return torch.cat([params["head.weight"].reshape(-1), params["head.bias"]])


def systems():
    return [System(tree_map(lambda t, i=i: t[i], TASKS)) for i in range(4)]


def exact(steps):
    """The mean over tasks of λ A⁻¹ ∇query, where descent ends after so many steps."""
    return torch.stack([s.meta_gradient(s.after(steps)) for s in systems()]).mean(0)


SOLVERS = {"cg": fmeta.cg(6), "neumann": fmeta.neumann(100, 0.3), "direct": fmeta.direct()}


@pytest.mark.parametrize("steps", [100, 3], ids=["converged", "not converged"])
@pytest.mark.parametrize("name", SOLVERS)
def test_equals_the_closed_form(name, steps):
    """At the solution it is the meta-gradient; elsewhere it is the same formula where descent ended."""
    grads, _ = fmeta.meta_grad(ridge(steps), fmeta.implicit(SOLVERS[name]))(META, TASKS)
    assert distance(flat(grads), exact(steps)) < 1e-10


def test_the_closed_form_is_the_gradient_of_the_path():
    """So that the test above compares with the right thing."""
    assert distance(flat(fmeta.meta_grad(ridge(100), fmeta.unrolled())(META, TASKS)[0]), exact(100)) < 1e-10


def test_the_default_solver_and_the_learners_own_are_conjugate_gradients():
    assert distance(flat(fmeta.meta_grad(ridge(100), fmeta.implicit())(META, TASKS)[0]), exact(100)) < 1e-10
    assert distance(flat(fmeta.meta_grad(ridge(100))(META, TASKS)[0]), exact(100)) < 1e-10


@pytest.mark.parametrize("optimizer", [fmeta.momentum, lambda lr: fmeta.adam(fmeta.cosine_decay(lr, 400))])
def test_the_optimizer_that_found_the_solution_does_not_matter(optimizer):
    learner = ridge(400, optimizer=optimizer, lr=0.05)
    assert distance(flat(fmeta.meta_grad(learner, fmeta.implicit())(META, TASKS)[0]), exact(100)) < 1e-6


@functools.cache
def network():
    """An MLP that has converged."""
    learner = fmeta.imaml(regressor(width=5), fmeta.mse, damping=4.0, optimizer=fmeta.sgd(0.15), steps=120)
    return learner, learner.init(KEY)


@pytest.mark.parametrize("exact", ["unrolled", "adjoint"])
@pytest.mark.parametrize("solve", [fmeta.cg(60), fmeta.neumann(150, 0.15), fmeta.direct()], ids=SOLVERS)
def test_equals_the_path_of_a_network_at_convergence(solve, exact):
    learner, meta = network()
    grads, info = fmeta.meta_grad(learner, fmeta.implicit(solve))(meta, TASKS)
    assert info.metrics["inner_gradient"].max() < 1e-10
    assert distance(grads, fmeta.meta_grad(learner, getattr(fmeta, exact)())(meta, TASKS)[0]) < 1e-8


def test_solving_by_the_identity_is_first_order():
    """With v = b/λ, A's inverse without the curvature of the loss, λ v is ∂loss/∂fast."""
    learner, meta = network()
    identity = fmeta.implicit(lambda product, b: tree_map(lambda t: t / 4.0, b), tolerance=10.0)
    grads, _ = fmeta.meta_grad(learner, identity)(meta, TASKS)
    assert distance(grads, fmeta.meta_grad(learner, fmeta.first_order())(meta, TASKS)[0]) < 1e-12


def test_a_solver_of_the_users():
    """Steepest descent with exact line search."""

    def dot(a, b):
        return sum((u * v).sum() for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True))

    def steepest(product, b):
        x = tree_map(torch.zeros_like, b)
        for _ in range(60):
            r = tree_map(torch.sub, b, product(x))
            rate = dot(r, r) / (dot(r, product(r)) + 1e-300)
            x = tree_map(lambda u, v, rate=rate: u + rate * v, x, r)
        return x

    grads, info = fmeta.meta_grad(ridge(100), fmeta.implicit(steepest))(META, TASKS)
    assert distance(flat(grads), exact(100)) < 1e-10
    assert info.metrics["residual"].max() < 1e-10


def test_a_query_loss_that_depends_on_meta_directly_adds_its_own_gradient():
    learner = ridge(100)

    def loss(fast, meta, query):
        value, metrics = learner.loss(fast, meta, query)
        return value + (meta["head.weight"] ** 3).sum(), metrics

    grads, _ = fmeta.meta_grad(learner._replace(loss=loss), fmeta.implicit())(META, TASKS)
    extra = torch.cat([3 * META["head.weight"][0] ** 2, torch.zeros(1, dtype=F64)])
    assert distance(flat(grads), exact(100) + extra) < 1e-10


def test_a_learned_regulariser_has_the_closed_form_hypergradient():
    """Meta is the logarithm of the strength alone, and the start does not depend on it: no path carries a gradient."""

    def inner_loss(fast, meta, batch, at):
        support = fmeta.mse(LINEAR.apply(fast, batch.x), batch.y).mean()
        return support + 0.5 * meta["log"].exp() * sum((p**2).sum() for p in fast.values())

    inner = fmeta.Inner(
        lambda meta, support, key: tree_map(torch.zeros_like, META),
        inner_loss,
        lambda meta: fmeta.sgd(0.3),
        120,
        strongly_convex=True,
    )
    learner = fmeta.gradient_based(
        "tuned", lambda key: None, inner, lambda fast, meta, x: LINEAR.apply(fast, x), fmeta.mse, None, fmeta.implicit()
    )
    strength = torch.tensor(0.7, dtype=F64)
    grads, _ = fmeta.meta_grad(learner)({"log": strength.log()}, TASKS)
    expected = []
    for s in systems():
        a = s.a + (strength - DAMPING) * torch.eye(3, dtype=F64)
        w = torch.linalg.solve(a, s.a @ s.best - DAMPING * s.start)
        expected.append(-strength * w @ torch.linalg.solve(a, s.query_slope(w)))
    assert grads["log"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-10)


def test_padding_changes_nothing():
    def padded(examples):
        weight = torch.tensor([1.0, 0.0] + [1.0] * (examples.x.shape[1] - 1), dtype=F64)
        x, y = (torch.cat([t[:, :1], 0 * t[:, :1] + 9.0, t[:, 1:]], 1) for t in (examples.x, examples.y))
        return Examples(x, y, weight.expand(4, -1))

    tasks = TASKS._replace(support=padded(TASKS.support), query=padded(TASKS.query))
    assert distance(flat(fmeta.meta_grad(ridge(100))(META, tasks)[0]), exact(100)) < 1e-10


# ---- what it reports ---------------------------------------------------------------------------


def test_the_residual_reported_is_that_of_each_task():
    """Of the Neumann series with n terms A x − b is −(I − rate·A)ⁿ⁺¹ b."""
    way = fmeta.implicit(fmeta.neumann(4, 0.1), tolerance=10.0)
    info = fmeta.meta_grad(ridge(3), way)(META, TASKS)[1]
    expected = []
    for s in systems():
        b = s.query_slope(s.after(3))
        left = torch.linalg.matrix_power(torch.eye(3, dtype=F64) - 0.1 * s.a, 5) @ b
        expected.append(left.norm() / b.norm())
    torch.testing.assert_close(info.metrics["residual"], torch.stack(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("steps", [1, 5, 15])
def test_the_inner_gradient_reported_is_that_at_the_end_of_each_descent(steps):
    info = fmeta.meta_grad(ridge(steps))(META, TASKS)[1]
    expected = torch.stack([(s.a @ (s.after(steps) - s.best)).norm() for s in systems()])
    torch.testing.assert_close(info.metrics["inner_gradient"], expected, rtol=1e-9, atol=0)


def test_loss_and_metrics_of_the_learner_are_reported_beside():
    def absolute(prediction, y):
        return (prediction - y).abs().mean(-1)

    info = fmeta.meta_grad(ridge(100, metrics={"absolute": absolute}))(META, TASKS)[1]
    gaps = [(with_ones(s.task.query) @ s.best - s.task.query.y[:, 0]) for s in systems()]
    torch.testing.assert_close(info.losses, torch.stack([(g**2).mean() for g in gaps]), rtol=1e-10, atol=0)
    torch.testing.assert_close(info.loss, info.losses.mean())
    torch.testing.assert_close(info.metrics["absolute"], torch.stack([g.abs().mean() for g in gaps]))
    assert sorted(info.metrics) == ["absolute", "inner_gradient", "residual"]


@pytest.mark.parametrize(
    "solve", [fmeta.cg(1), fmeta.neumann(2, 0.1), fmeta.neumann(30, 2.0)], ids=["few", "short", "diverging"]
)
def test_an_inexact_solution_is_warned_about_once_with_a_cure(solve):
    run = fmeta.meta_grad(ridge(5), fmeta.implicit(solve))
    with pytest.warns(UserWarning, match=r"imaml, implicit.*residual of .*above 0\.01.*more iterations") as caught:
        first, second = run(META, TASKS), run(META, TASKS)
    assert [w.filename for w in caught] == [__file__]
    assert first[1].metrics["residual"].max() > 1e-2
    assert all(leaf.isfinite().all() for leaf in tree_leaves((first, second)))


@pytest.mark.parametrize("rate", [1e10, 1e60])
def test_a_solution_that_overflowed_is_warned_about(rate):
    """The residual is then infinite or not a number, and must not read as solved."""
    run = fmeta.meta_grad(ridge(2), fmeta.implicit(fmeta.neumann(16, rate)))
    with pytest.warns(UserWarning, match="the meta-gradient is inexact"):
        _, info = run(META, TASKS)
    assert not (info.metrics["residual"] < 1.0).any()


def test_a_descent_that_overflowed_does_not_report_an_inner_gradient_of_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = fmeta.meta_grad(ridge(5, lr=1e100))(META, TASKS)[1]
    assert not info.losses.isfinite().any()
    assert not (info.metrics["inner_gradient"] < 1.0).any()


def test_the_tolerance_decides_what_is_warned_about():
    """The suite turns warnings into errors."""
    loose = fmeta.implicit(fmeta.cg(1), tolerance=2.0)
    info = fmeta.meta_grad(ridge(5), loose)(META, TASKS)[1]
    worst = info.metrics["residual"].max().item()
    assert 1e-2 < worst < 2.0
    with pytest.warns(UserWarning, match="inexact"):
        fmeta.meta_grad(ridge(5), fmeta.implicit(fmeta.cg(1), tolerance=0.9 * worst))(META, TASKS)
    fmeta.meta_grad(ridge(5), fmeta.implicit(fmeta.cg(1), tolerance=1.1 * worst))(META, TASKS)


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(n for n in STEPPING if not LEARNERS[n].learner.inner.strongly_convex))
def test_a_learner_whose_inner_problem_is_not_strongly_convex_is_refused(name):
    learner = LEARNERS[name].learner
    with pytest.raises(fmeta.InputError, match=rf"meta_grad\({learner.name}, implicit.*strongly convex.*unrolled\(\)"):
        fmeta.meta_grad(learner, fmeta.implicit())


def test_a_learner_without_an_inner_loop_is_refused():
    bare = fmeta.Learner(None, None, None, None, None, fmeta.unrolled(), "prototypes")
    with pytest.raises(fmeta.InputError, match=r"meta_grad\(prototypes, implicit.*has none.*unrolled\(\)"):
        fmeta.meta_grad(bare, fmeta.implicit())


@pytest.mark.parametrize("name", ["residual", "inner_gradient"])
def test_a_metric_of_a_name_it_uses_is_refused(name):
    with pytest.raises(fmeta.InputError, match=rf"imaml\(metrics=…\): a metric is called '{name}'"):
        ridge(3, metrics={name: fmeta.mse})


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, float("nan")])
def test_a_tolerance_that_is_not_positive_is_refused(tolerance):
    with pytest.raises(fmeta.InputError, match="expected a positive"):
        fmeta.implicit(tolerance=tolerance)


def test_what_is_no_solver_is_refused():
    with pytest.raises(fmeta.InputError, match=r"implicit\(solve=5\): expected a solver: cg\(iterations\)"):
        fmeta.implicit(5)


# ---- compiled ----------------------------------------------------------------------------------


COVERING = {("cg", "step"), ("direct", "whole")}


def compiled():
    for name in SOLVERS:
        for scope in ("step", "whole"):
            yield pytest.param(name, scope, marks=[] if (name, scope) in COVERING else pytest.mark.thorough)


@pytest.mark.parametrize(("name", "scope"), list(compiled()))
def test_compiled_equals_eager_and_compiles_once(name, scope):
    solve = {"cg": fmeta.cg(2), "neumann": fmeta.neumann(2, 0.1), "direct": fmeta.direct()}[name]
    learner, way = ridge(2), fmeta.implicit(solve, tolerance=10.0)
    counter = CompileCounterWithBackend("aot_eager")

    def stage(function):
        return fmeta.compile(function, backend=counter)

    eager = fmeta.meta_grad(learner, way)
    run = stage(eager) if scope == "whole" else fmeta.meta_grad(learner, way, stage)
    assert distance(run(META, TASKS), eager(META, TASKS)) < 1e-12
    graphs = counter.frame_count
    assert graphs == (1 if scope == "whole" else 5)
    others = vectors(fold(KEY, 3), tasks=4, shots=20, query=5)
    assert distance(run(META, others), eager(META, others)) < 1e-12
    assert counter.frame_count == graphs


@pytest.mark.thorough
def test_compiled_stages_warn_too():
    run = fmeta.meta_grad(
        ridge(1), fmeta.implicit(fmeta.neumann(1, 0.1)), lambda f: fmeta.compile(f, backend="aot_eager")
    )
    with pytest.warns(UserWarning, match="inexact") as caught:
        run(META, TASKS), run(META, TASKS)
    assert len(caught) == 1
