"""Linear regression: the distribution, and the closed-form meta-gradient against the one of the library."""

import math

import pytest
import torch
from helpers import F64, distance, loop_meta_grad, vectors

import fmeta
from fmeta.tasks import linear, linear_meta_grad


def weights(tasks):
    """Least-squares weights and bias of each task, [task, features + 1], and the largest residual."""
    x, y = (torch.cat([tasks.support[i], tasks.query[i]], 1) for i in (0, 1))
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    solution = torch.linalg.lstsq(x, y).solution
    return solution[..., 0], x @ solution - y


def test_shapes_and_dtypes():
    """x [task, example, features] and y [task, example, 1], with support and query sizes apart."""
    for dtype in (torch.float32, F64):
        tasks = linear(features=3, shots=5, query=7, dtype=dtype)(fmeta.key(0), 4)
        assert [t.shape for t in (*tasks.support[:2], *tasks.query[:2])] == [(4, 5, 3), (4, 5, 1), (4, 7, 3), (4, 7, 1)]
        assert {t.dtype for t in (*tasks.support[:2], *tasks.query[:2])} == {dtype}
        assert tasks.key.unique().numel() == 4


def test_one_line_goes_through_support_and_query():
    """Without noise all examples of a task lie on one plane."""
    _, residual = weights(linear(features=3, shots=6, query=6, noise=0.0, dtype=F64)(fmeta.key(1), 100))
    assert residual.abs().max() < 1e-12


def test_weights_and_inputs_are_standard_normal():
    """w, b and x: mean 0 and covariance the identity, each entry within 4.5 standard errors."""
    n = 4000
    tasks = linear(features=3, shots=4, query=4, noise=0.0, dtype=F64)(fmeta.key(2), n)
    solution, _ = weights(tasks)
    for value in (solution, tasks.support.x[:, 0], tasks.query.x[:, 0]):
        assert value.mean(0).abs().max() < 4.5 / math.sqrt(n)
        error = value.T @ value / n - torch.eye(value.shape[1], dtype=F64)
        assert error.abs().max() < 4.5 * math.sqrt(2 / n)


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_noise_has_the_asked_size(noise):
    """The residual variance is noise² (examples − parameters)/examples, and differs between support and query."""
    tasks = linear(features=2, shots=30, query=30, noise=noise, dtype=F64)(fmeta.key(3), 500)
    _, residual = weights(tasks)
    variance = (residual**2).sum() / (500 * (60 - 3))
    assert abs(variance / noise**2 - 1) < 4 * math.sqrt(2 / (500 * 57))
    together = (residual[:, :30] * residual[:, 30:]).mean() / noise**2
    assert abs(together) < 0.05  # 1 if both had the same noise


def test_support_and_query_are_different_examples():
    """Query examples are new: no input occurs twice in a task."""
    tasks = linear(features=2, shots=8, query=8, dtype=F64)(fmeta.key(4), 50)
    for support, query in zip(tasks.support.x, tasks.query.x, strict=True):
        assert torch.cat([support, query]).unique().numel() == 32


def test_same_key_same_tasks():
    """Tasks are a function of the key, and task i of the key and i alone."""
    draw = linear(features=2, shots=4, query=4)
    first, again, other, more = (
        draw(fmeta.key(5), 6),
        draw(fmeta.key(5), 6),
        draw(fmeta.key(6), 6),
        draw(fmeta.key(5), 9),
    )
    assert torch.equal(first.support.y, again.support.y)
    assert torch.equal(first.query.x, again.query.x)
    assert torch.equal(first.key, again.key)
    assert not (first.support.y == other.support.y).any()
    torch.testing.assert_close(more.query.y[:6], first.query.y, rtol=1e-5, atol=1e-5)  # a product of another batch size
    assert torch.equal(more.query.x[:6], first.query.x)


@pytest.mark.parametrize("sizes", [{"features": 0}, {"shots": 0}, {"query": -1}])
def test_sizes_below_one_are_errors(sizes):
    """The message names the call, the argument and what came."""
    (name, size) = next(iter(sizes.items()))
    with pytest.raises(fmeta.InputError, match=rf"linear\({name}={size}\)"):
        linear(**sizes)


# --- the closed form


def start(features, seed=9):
    """Meta-parameters with a bias that is not zero."""
    meta = fmeta.models.mlp([features, 1], dtype=F64).init(fmeta.key(seed))
    return meta | {"head.bias": torch.full((1,), 0.7, dtype=F64)}


@pytest.mark.parametrize("steps", range(1, 21))
@pytest.mark.parametrize(("features", "shots"), [(3, 10), (6, 4), (2, 1)])
def test_closed_form_is_the_meta_gradient(features, shots, steps):
    """Exact for every number of steps, also with fewer shots than features, where many solutions fit."""
    lr = 0.05
    tasks = linear(features=features, shots=shots, query=7, dtype=F64)(fmeta.key(7), 3)
    learner = fmeta.maml(fmeta.models.mlp([features, 1], dtype=F64), fmeta.mse, optimizer=fmeta.sgd(lr), steps=steps)
    meta = start(features)
    grads, _ = fmeta.meta_grad(learner)(meta, tasks)
    closed = linear_meta_grad(meta, tasks, lr=lr, steps=steps)
    assert {n: g.shape for n, g in closed.items()} == {n: g.shape for n, g in grads.items()}
    assert distance(closed, grads) < 1e-10
    assert max(g.abs().max() for g in closed.values()) > 1e-3  # not equal for being zero


def test_closed_form_is_the_meta_gradient_of_the_plain_loop():
    """The same by torch.autograd with create_graph, which shares no code with the library."""
    tasks = linear(features=4, shots=3, query=5, dtype=F64)(fmeta.key(8), 4)
    model, meta = fmeta.models.mlp([4, 1], dtype=F64), start(4)
    expected = loop_meta_grad(model, fmeta.mse, tasks, meta, lr=0.1, steps=6)
    assert distance(linear_meta_grad(meta, tasks, lr=0.1, steps=6), expected) < 1e-12


def test_no_steps_is_the_plain_gradient():
    """K = 0: the gradient of the query loss, without adaptation."""
    tasks = linear(features=4, shots=3, query=5, dtype=F64)(fmeta.key(8), 4)
    model, meta = fmeta.models.mlp([4, 1], dtype=F64), start(4)
    expected = loop_meta_grad(model, fmeta.mse, tasks, meta, lr=0.1, steps=0)
    assert distance(linear_meta_grad(meta, tasks, lr=0.1, steps=0), expected) < 1e-12


def test_many_steps_reach_the_least_squares_solution():
    """Adaptation forgets where it began: with more shots than parameters the meta-gradient vanishes."""
    tasks = linear(features=2, shots=40, query=5, dtype=F64)(fmeta.key(10), 3)
    early, late = (linear_meta_grad(start(2), tasks, lr=0.2, steps=k) for k in (1, 500))
    assert max(g.abs().max() for g in early.values()) > 1e-2
    assert max(g.abs().max() for g in late.values()) < 1e-12


def test_negative_steps_are_an_error():
    """The message names the call and what came."""
    with pytest.raises(fmeta.InputError, match=r"linear_meta_grad\(steps=-1\)"):
        linear_meta_grad(start(2), vectors(fmeta.key(0)), lr=0.1, steps=-1)
