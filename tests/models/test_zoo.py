"""The law "a module is itself" over the zoo."""

import warnings

import pytest
import torch
from helpers import F64
from models import laws
from models.zoo import ROWS, used
from torch import nn

import fmeta

RIGHT = [name for name, row in ROWS.items() if not row.refused]
TRAINED = [name for name in RIGHT if ROWS[name].norm in (None, "batch")]  # in training as the policy has them
RANDOM = [name for name in RIGHT if ROWS[name].random]


@pytest.fixture(autouse=True)
def _torchs_own_warnings():
    with warnings.catch_warnings(action="ignore"):  # torch has slow paths under vmap
        yield


def test_the_zoo_is_large():
    assert len(ROWS) >= 60


@pytest.mark.parametrize("name", RIGHT)
def test_over_tasks_it_gives_what_the_module_gives_in_eval(name):
    laws.over_tasks_it_gives_what_the_module_gives_in_eval(ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_meta_gradients_are_those_of_a_loop_over_the_module(name):
    laws.meta_gradients_are_those_of_a_loop_over_the_module(ROWS[name])


@pytest.mark.parametrize("name", TRAINED)
def test_without_rates_its_noise_is_the_module_in_training(name):
    laws.without_rates_its_noise_is_the_module_in_training(ROWS[name])


@pytest.mark.parametrize("name", RANDOM)
def test_its_noise_comes_from_the_key(name):
    laws.its_noise_comes_from_the_key(ROWS[name])


@pytest.mark.parametrize("name", RANDOM)
def test_its_noise_is_distributed_as_the_modules(name):
    laws.its_noise_is_distributed_as_the_modules(ROWS[name])


def test_dropout_of_everything_leaves_nothing():
    model = fmeta.from_module(nn.Sequential(nn.Linear(4, 3), nn.Dropout(1.0)).double())
    params, x = model.init(laws.KEY), torch.ones(2, 4, dtype=F64)
    assert torch.equal(model.noisy(params, x, laws.KEY), torch.zeros(2, 3, dtype=F64))
    assert (model.apply(params, x) != 0).all()


def test_spectral_norm_at_rest_is_torchs():
    torch.manual_seed(0)
    module = used(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), 4, times=300).eval()
    model, x = fmeta.from_module(module), torch.randn(5, 4, dtype=F64)
    torch.testing.assert_close(model.apply(model.init(laws.KEY), x), module(x))
