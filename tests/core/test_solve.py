"""Solvers of linear systems over trees equal torch.linalg.solve, and stay finite where there is nothing to solve."""

import math

import pytest
import torch
from helpers import F64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import fmeta
from fmeta.core._solve import residual
from fmeta.core.tree import tree_flatten, tree_leaves, tree_unflatten
from fmeta.testing import distance

LIKE = {"b": (torch.zeros((), dtype=F64), torch.zeros(4, dtype=F64)), "a": torch.zeros(2, 3, dtype=F64)}
SIZE = 11


def as_tree(flat):
    leaves, structure = tree_flatten(LIKE)
    pieces = flat.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)], structure)


def as_vector(tree):
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def product_with(a):
    return lambda u: as_tree(a @ as_vector(u))


def solved(solve, a, b):
    """The solution of one system, in and out of trees."""
    return as_vector(solve(product_with(a), as_tree(b)))


def with_spectrum(spectrum, seed=0):
    """A symmetric matrix with these eigenvalues, and a right side."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=F64, generator=generator))[0]
    values = torch.as_tensor(spectrum, dtype=F64)
    return q @ torch.diag(values) @ q.T, torch.randn(SIZE, dtype=F64, generator=generator)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    power=st.floats(0.0, 3.0),
    scale=st.floats(-6.0, 6.0),
    name=st.sampled_from(["cg", "direct"]),
)
def test_exact_whatever_the_condition_and_scale(seed, power, scale, name):
    solve = {"cg": fmeta.cg(4 * SIZE, 1e-14), "direct": fmeta.direct()}[name]
    a, b = with_spectrum(10.0**scale * torch.logspace(-power, 0, SIZE, dtype=F64), seed)
    assert distance(solved(solve, a, b), torch.linalg.solve(a, b)) < 1e-9


def test_neumann_converges_to_the_solution():
    a, b = with_spectrum(torch.linspace(0.5, 4.0, SIZE))
    assert distance(solved(fmeta.neumann(200, 0.45), a, b), torch.linalg.solve(a, b)) < 1e-12


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_neumann_is_the_truncated_series(iterations):
    """Beyond its radius of convergence too."""
    a, b = with_spectrum(torch.linspace(0.5, 4.0, SIZE))
    step = torch.eye(SIZE, dtype=F64) - 0.7 * a
    series = sum(0.7 * torch.linalg.matrix_power(step, i) @ b for i in range(iterations + 1))
    assert distance(solved(fmeta.neumann(iterations, 0.7), a, b), series) < 1e-12


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_cg_is_the_best_point_of_its_krylov_space(iterations):
    """After k iterations the error is the smallest, in the norm of A, over the span of b, Ab … Aᵏ⁻¹b."""
    a, b = with_spectrum(torch.linspace(0.5, 8.0, SIZE))
    powers = torch.stack([torch.linalg.matrix_power(a, i) @ b for i in range(iterations)], 1)
    basis = torch.linalg.qr(powers)[0]
    best = basis @ torch.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    assert distance(solved(fmeta.cg(iterations), a, b), best) < 1e-10


def test_cg_is_exact_after_as_many_iterations_as_there_are_different_eigenvalues():
    a, b = with_spectrum([1.0] * 5 + [3.0] * 4 + [7.0] * 2)
    expected = torch.linalg.solve(a, b)
    assert distance(solved(fmeta.cg(3), a, b), expected) < 1e-12
    assert distance(solved(fmeta.cg(2), a, b), expected) > 1e-3


@pytest.mark.parametrize("tolerance", [1e-10, 0.0])
def test_cg_over_tasks_stays_exact_long_after_some_have_converged(tolerance):
    """One eigenvalue, three, all different, nearly none, b = 0, b tiny and b huge: in one batch, far beyond the end."""
    spectra = [[2.0] * SIZE, [1.0] * 5 + [3.0] * 4 + [7.0] * 2, torch.logspace(-2, 2, SIZE), torch.linspace(1, 2, SIZE)]
    systems = [with_spectrum(s, i) for i, s in enumerate(spectra)] + [with_spectrum(spectra[2], 7)] * 3
    a, b = torch.stack([a for a, _ in systems]), torch.stack([b for _, b in systems])
    b = b * torch.tensor([1, 1, 1, 1, 0, 1e-60, 1e60], dtype=F64)[:, None]
    found = vmap(lambda a, b: solved(fmeta.cg(300, tolerance), a, b))(a, b)
    for x, m, right in zip(found, a, b, strict=True):
        assert distance(x, torch.linalg.solve(m, right)) < 1e-8 if right.any() else not x.any()


def test_neumann_and_direct_over_tasks_equal_linalg():
    systems = [with_spectrum(torch.linspace(low, 2.0, SIZE), i) for i, low in enumerate((0.5, 1.0, 2.0))]
    a, b = torch.stack([a for a, _ in systems]), torch.stack([b for _, b in systems])
    for solve in (fmeta.neumann(200, 0.5), fmeta.direct()):
        found = vmap(lambda a, b, solve=solve: solved(solve, a, b))(a, b)
        assert distance(found, torch.linalg.solve(a, b)) < 1e-12


def test_cg_rests_at_its_tolerance():
    a, b = with_spectrum(torch.logspace(-2, 1, SIZE))
    once, later = (solved(fmeta.cg(n, 1e-2), a, b) for n in (30, 60))
    assert torch.equal(once, later)
    assert 1e-8 < ((a @ once - b).norm() / b.norm()).item() <= 1e-2


def test_cg_solves_a_singular_system_that_has_a_solution():
    a, z = with_spectrum([0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    x = solved(fmeta.cg(200), a, a @ z)
    assert distance(a @ x, a @ z) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "spectrum",
    [
        [0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0],
        [-1.0] * SIZE,
        [0.0] * SIZE,
    ],
    ids=["singular", "indefinite", "negative", "zero"],
)
def test_cg_stays_finite_where_there_is_no_solution_to_find(spectrum, dtype):
    """Alone and beside other tasks, in as many iterations as one likes."""
    systems = [with_spectrum(spectrum, seed) for seed in range(20)]
    a, b = torch.stack([a for a, _ in systems]).to(dtype), torch.stack([b for _, b in systems]).to(dtype)
    x = vmap(lambda a, b: fmeta.cg(1000)(lambda u: a @ u, b))(a, b)
    assert x.isfinite().all()


def test_cg_rests_where_a_direction_has_no_positive_curvature():
    """Having met one it moves no more, as its docstring says."""
    for seed in range(10):
        a, b = with_spectrum([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0], seed)
        # plain conjugate gradients, up to the first direction without positive curvature
        x, r, p = torch.zeros_like(b), b, b
        while p @ a @ p > 0:
            alpha = (r @ r) / (p @ a @ p)
            x, after = x + alpha * p, r - alpha * (a @ p)
            r, p = after, after + (after @ after) / (r @ r) * p
        torch.testing.assert_close(solved(fmeta.cg(100), a, b), x, rtol=1e-9, atol=1e-9)


def test_solvers_keep_the_dtype_and_the_shapes():
    b = {"a": torch.ones(2, 3), "b": torch.ones(())}
    for solve in (fmeta.cg(3), fmeta.neumann(3, 0.1), fmeta.direct()):
        x = solve(lambda u: {n: 2.0 * v for n, v in u.items()}, b)
        assert {n: (v.dtype, v.shape) for n, v in x.items()} == {n: (torch.float32, v.shape) for n, v in b.items()}


def test_direct_solves_an_indefinite_system_exactly():
    a, b = with_spectrum([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0])
    assert distance(solved(fmeta.direct(), a, b), torch.linalg.solve(a, b)) < 1e-12


def test_direct_refuses_more_unknowns_than_its_limit():
    a, b = with_spectrum(torch.linspace(1.0, 2.0, SIZE))
    assert distance(solved(fmeta.direct(limit=11), a, b), torch.linalg.solve(a, b)) < 1e-12
    with pytest.raises(fmeta.InputError, match=r"direct\(limit=10\): the system has 11 unknowns.*cg.*raise the limit"):
        solved(fmeta.direct(limit=10), a, b)


def test_residual_is_relative_and_per_task():
    systems = [with_spectrum(torch.linspace(1.0, 2.0, SIZE), i) for i in range(3)]
    a, b = torch.stack([a for a, _ in systems]), torch.stack([1e3 * b for _, b in systems])
    x = torch.randn(3, SIZE, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = vmap(lambda a, x, b: residual(product_with(a), as_tree(x), as_tree(b)))(a, x, b)
    expected = torch.stack([(m @ u - r).norm() / r.norm() for m, u, r in zip(a, x, b, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_residual_of_nothing_is_zero():
    a, _ = with_spectrum(torch.linspace(1.0, 2.0, SIZE))
    assert residual(product_with(a), as_tree(torch.zeros(SIZE, dtype=F64)), as_tree(torch.zeros(SIZE, dtype=F64))) == 0


@pytest.mark.parametrize("bad", ["solution", "right side"])
def test_residual_of_what_is_not_a_number_is_not_a_number(bad):
    """And not 0, which would read as solved."""
    a, b = with_spectrum(torch.linspace(1.0, 2.0, SIZE))
    x, b = (b * math.nan, b) if bad == "solution" else (b, b * math.nan)
    assert residual(product_with(a), as_tree(x), as_tree(b)).isnan()


@pytest.mark.parametrize(
    "call",
    [
        lambda: fmeta.cg(0),
        lambda: fmeta.cg(-1),
        lambda: fmeta.cg(5, -1e-3),
        lambda: fmeta.cg(5, math.nan),
        lambda: fmeta.neumann(0, 0.1),
        lambda: fmeta.neumann(5, 0.0),
        lambda: fmeta.neumann(5, -0.1),
        lambda: fmeta.neumann(5, math.nan),
        lambda: fmeta.neumann(5, math.inf),
    ],
)
def test_bad_settings_are_refused(call):
    with pytest.raises(fmeta.InputError, match="expected"):
        call()
