"""Sine waves: the published ranges, one wave per task, everything from the key."""

import math

import pytest
import torch

import fmeta
from fmeta.core.tree import tree_leaves
from fmeta.tasks import sinusoid

F64 = torch.float64


def waves(tasks):
    """Amplitude and phase of each task by least squares on A·cos(φ)·sin x − A·sin(φ)·cos x, and its residual."""
    x, y = (torch.cat([tasks.support[i], tasks.query[i]], 1) for i in (0, 1))
    basis = torch.cat([x.sin(), -x.cos()], -1)
    solution = torch.linalg.lstsq(basis, y).solution
    amplitude, phase = solution[:, :, 0].norm(dim=1), torch.atan2(solution[:, 1, 0], solution[:, 0, 0])
    return amplitude, phase, (basis @ solution - y).abs().max()


def test_shapes_and_dtypes():
    """[task, example, 1] with support and query sizes apart, and a key per task."""
    for dtype in (torch.float32, F64):
        tasks = sinusoid(shots=5, query=7, dtype=dtype)(fmeta.key(0), 4)
        assert [t.shape for t in (tasks.support.x, tasks.support.y)] == [(4, 5, 1)] * 2
        assert [t.shape for t in (tasks.query.x, tasks.query.y)] == [(4, 7, 1)] * 2
        assert {t.dtype for t in (*tasks.support[:2], *tasks.query[:2])} == {dtype}
        assert tasks.key.shape == (4,)
        assert tasks.key.unique().numel() == 4


def test_one_wave_goes_through_support_and_query():
    """y is a sine of x exactly, with one amplitude and phase for the whole task."""
    tasks = sinusoid(shots=6, query=9, dtype=F64)(fmeta.key(1), 200)
    amplitude, phase, residual = waves(tasks)
    assert residual < 1e-12
    for examples in (tasks.support, tasks.query):
        again = amplitude[:, None, None] * torch.sin(examples.x - phase[:, None, None])
        torch.testing.assert_close(examples.y, again, rtol=0, atol=1e-12)


def test_amplitude_and_phase_fill_the_published_ranges():
    """A ~ U[0.1, 5] and φ ~ U[0, π] (Finn et al. 2017): range, mean, spread, and no relation between the two."""
    n = 4000
    amplitude, phase, _ = waves(sinusoid(shots=5, query=5, dtype=F64)(fmeta.key(2), n))
    for value, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        width = high - low
        assert low <= value.min() < low + 0.005 * width
        assert high - 0.005 * width < value.max() <= high
        assert abs(value.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * n)
        assert abs(value.var() - width**2 / 12) < 4 * width**2 * math.sqrt((1 / 80 - 1 / 144) / n)
    assert abs(torch.corrcoef(torch.stack([amplitude, phase]))[0, 1]) < 4 / math.sqrt(n)


def test_inputs_are_uniform_in_support_and_query():
    """x ~ U[−5, 5] in both, and none is related to the task's wave."""
    tasks = sinusoid(shots=10, query=10, dtype=F64)(fmeta.key(3), 2000)
    amplitude, _, _ = waves(tasks)
    for x in (tasks.support.x, tasks.query.x):
        assert -5.0 <= x.min() < -4.99
        assert 4.99 < x.max() <= 5.0
        assert abs(x.mean()) < 4 * 10 / math.sqrt(12 * x.numel())
        assert abs(x.var() - 100 / 12) < 4 * 100 * math.sqrt((1 / 80 - 1 / 144) / x.numel())
        assert abs(torch.corrcoef(torch.stack([amplitude, x.mean((1, 2))]))[0, 1]) < 4 / math.sqrt(2000)


def test_support_and_query_are_different_examples():
    """Query examples are new: no input occurs twice in a task."""
    tasks = sinusoid(shots=10, query=10, dtype=F64)(fmeta.key(4), 50)
    for support, query in zip(tasks.support.x, tasks.query.x, strict=True):
        assert torch.cat([support, query]).unique().numel() == 20


def test_same_key_same_tasks():
    """Tasks are a function of the key: again the same, with another key all different."""
    draw = sinusoid(shots=4, query=4)
    first, again, other = (tree_leaves(draw(fmeta.key(seed), 8)) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not (a == c).any()


def test_a_larger_batch_begins_with_the_smaller_one():
    """Task i depends on the key and i alone."""
    draw = sinusoid(shots=4, query=4)
    few, many = draw(fmeta.key(7), 3), draw(fmeta.key(7), 10)
    assert torch.equal(few.query.y, many.query.y[:3])
    assert torch.equal(few.key, many.key[:3])
    assert many.query.x.unique().numel() == many.query.x.numel()


@pytest.mark.parametrize("sizes", [{"shots": 0}, {"query": 0}, {"shots": -3}])
def test_sizes_below_one_are_errors(sizes):
    """The message names the call, the argument and what came."""
    (name, size) = next(iter(sizes.items()))
    with pytest.raises(fmeta.InputError, match=rf"sinusoid\({name}={size}\)"):
        sinusoid(**sizes)
