"""Max pooling as a choice of one in four."""

import pytest
import torch
from helpers import F64
from torch.func import grad, hessian, vmap
from torch.nn import functional as F

from fmeta.operators._pool import max_pool2x2


def images(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_value_and_gradient_are_those_of_torch(size):
    x = images(2, 3, *size)
    weigh = images(*F.max_pool2d(x, 2).shape)
    for ours, theirs in [(max_pool2x2, lambda x: F.max_pool2d(x, 2))]:
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        found, expected = (grad(lambda x, f=f: (f(x) ** 3 * weigh).sum())(x) for f in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_of_equal_values_the_first_is_chosen_as_torch_does():
    x = torch.tensor([[0.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]], dtype=F64)[None, None]
    for f in (max_pool2x2, lambda x: F.max_pool2d(x, 2)):
        assert grad(lambda x, f=f: f(x).sum())(x).tolist() == [[[[0, 1, 1, 0], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("place", range(4))
def test_nan_is_the_greatest(place):
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    x.view(-1)[place] = torch.nan
    assert max_pool2x2(x).isnan().all()


def test_the_second_derivative_of_a_batch_of_tasks():
    x = images(3, 1, 2, 4, 4)
    found = vmap(hessian(lambda x: (max_pool2x2(x) ** 3).sum()))(x)
    for i in range(3):
        expected = hessian(lambda x: (F.max_pool2d(x, 2) ** 3).sum())(x[i])
        torch.testing.assert_close(found[i], expected, rtol=0, atol=0)
