"""The law "a module is itself": over tasks, differentiated twice and with its noise, from_module gives the module."""

import contextlib
import warnings

import pytest
import torch
from helpers import F64, distance, loop_meta_grad
from models.zoo import ROWS
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fmeta
from fmeta.core import fold, normal
from fmeta.core.tree import tree_leaves, tree_map

KEY = fmeta.key(17)
TASKS, RATE, DRAWS = 3, 0.3, 300
EXACT = {"unrolled": fmeta.unrolled(), "adjoint": fmeta.adjoint()}
RANDOM = [name for name, row in ROWS.items() if row.random and not row.refused]
RIGHT = [name for name, row in ROWS.items() if not row.refused]
TRAINED = [name for name in RIGHT if ROWS[name].norm in (None, "batch")]  # in training as the policy has them


def built(row, rate=0.0, twin=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = row.build(rate) if row.random else row.build()
        if twin and row.twin is not None:
            other = row.twin()
            other.load_state_dict(module.state_dict(), strict=False)
            module = other
    return module.double()


def prepared(row, module, train=False):
    """The module as the policy says, by torch's own means: batch statistics are those of a norm that trains."""
    module.train(train)
    for layer in module.modules():
        if row.norm == "batch" and isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.train()
        elif row.norm == "frozen" and isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.eval()
    return module


def itself(row, rate=0.0, train=False):
    """The module as a function of its weights, by functional_call alone."""
    module = prepared(row, built(row, rate, twin=True), train)
    buffers = dict(module.named_buffers())

    def apply(params, x):
        args, keywords = ((), x) if isinstance(x, dict) else ((x if isinstance(x, tuple) else (x,)), {})
        state = {n: b.clone() for n, b in buffers.items()}
        params = {n: p if p.requires_grad else p.detach().requires_grad_() for n, p in params.items()}
        with sdpa_kernel(SDPBackend.MATH):  # torch's others have no second derivative
            return functional_call(module, {**params, **state}, args, keywords)

    return fmeta.Model(lambda key: {n: p for n, p in module.named_parameters() if p.requires_grad}, apply)


def moved(params, count=TASKS):
    """Other weights for every task, near the module's own."""
    near = {n: fold(KEY, i) for i, n in enumerate(params)}
    return {n: p + 0.05 * normal(near[n], (count, *p.shape), F64) for n, p in params.items()}


def examples(row, count, name):
    x = row.draw(fold(KEY, name), TASKS, count)
    return fmeta.Examples(x, normal(fold(KEY, f"{name} targets"), (TASKS, count), F64))


def loss(prediction, y):
    """Smooth, and another weight and target for every output."""
    total = y.mean() * 0.0
    for leaf in tree_leaves(prediction):
        at = torch.arange(leaf.numel(), dtype=F64).view(leaf.shape)
        total = total + ((1.5 + at.sin()) * (leaf - 0.3 * (2.0 * at).cos() - y.mean()) ** 2).mean()
    return total


def close(found, expected, tolerance=1e-10):
    a, b = tree_leaves(found), tree_leaves(expected)
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)


def each(function, *trees):
    """Task by task, stacked."""
    found = [function(*(tree_map(lambda t, i=i: t[i], tree) for tree in trees)) for i in range(TASKS)]
    return tree_map(lambda *leaves: torch.stack([leaf.detach() for leaf in leaves]), *found)


@contextlib.contextmanager
def refused_by_name(row):
    """An error in place of the right value has the row's words."""
    try:
        yield
    except fmeta.InputError as error:
        words = row.refused or row.or_refused
        if not (words and all(word in str(error) for word in words)):
            raise
    else:
        assert not row.refused


@pytest.fixture(autouse=True)
def _torchs_own_warnings():
    with warnings.catch_warnings(action="ignore"):  # torch has slow paths under vmap
        yield


@pytest.mark.parametrize("name", RIGHT)
def test_over_tasks_it_gives_what_the_module_gives_in_eval(name):
    row = ROWS[name]
    x = examples(row, 4, "support").x
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        params = moved(model.init(KEY))
        close(fmeta.over_tasks(model.apply, shared=())(params, x), each(itself(row).apply, params, x))


@pytest.mark.parametrize("name", ROWS)
def test_meta_gradients_are_those_of_a_loop_over_the_module(name):
    row = ROWS[name]
    tasks = fmeta.Task(examples(row, 4, "support"), examples(row, 3, "query"))
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        learner = fmeta.maml(model, loss, optimizer=fmeta.sgd(0.02), steps=2)
        meta = learner.init(KEY)
        found = {n: fmeta.meta_grad(learner, gradient)(meta, tasks)[0] for n, gradient in EXACT.items()}
        expected = loop_meta_grad(itself(row), loss, tasks, meta, lr=0.02, steps=2)
        assert max(float(g.abs().max()) for g in expected.values()) > 1e-6
        assert {n: d for n, g in found.items() if (d := distance(g, expected)) > 1e-8} == {}


@pytest.mark.parametrize("name", TRAINED)
def test_without_rates_its_noise_is_the_module_in_training(name):
    row = ROWS[name]
    x = examples(row, 4, "support").x
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        noisy = model.noisy or (lambda params, x, key: model.apply(params, x))
        params = moved(model.init(KEY))
        found = fmeta.over_tasks(noisy, shared=())(params, x, fmeta.split(KEY, TASKS))
        close(found, each(itself(row, train=True).apply, params, x))


@pytest.mark.parametrize("name", RANDOM)
def test_its_noise_comes_from_the_key(name):
    row = ROWS[name]
    model, x = fmeta.from_module(built(row, RATE), norm=row.norm), examples(row, 4, "support").x
    params, keys = moved(model.init(KEY)), fmeta.split(KEY, TASKS)
    before = torch.random.get_rng_state()
    together = fmeta.over_tasks(model.noisy, shared=())(params, x, keys)
    close(together, each(model.noisy, params, x, keys))
    close(model.noisy(*tree_map(lambda t: t[0], (params, x, keys))), tree_map(lambda t: t[0], together))
    assert torch.equal(torch.random.get_rng_state(), before)
    one, *others = (tree_leaves(model.noisy(model.init(KEY), tree_map(lambda t: t[0], x), key)) for key in keys)
    assert all(not torch.equal(torch.cat(list(map(torch.flatten, one))), torch.cat(list(map(torch.flatten, other))))
               for other in others)  # fmt: skip
    close(fmeta.over_tasks(model.apply, shared=())(params, x), each(itself(row, RATE).apply, params, x))


@pytest.mark.parametrize("name", RANDOM)
def test_its_noise_is_distributed_as_the_modules(name):
    """Means and mean squares of every output, ours over keys and torch's over its generator: within 5 deviations."""
    row = ROWS[name]
    model = fmeta.from_module(built(row, RATE), norm=row.norm)
    params, x = model.init(KEY), tree_map(lambda t: t[0], examples(row, 4, "support").x)
    ours = fmeta.over_tasks(model.noisy, shared=(0, 1))(params, x, fmeta.split(KEY, DRAWS))
    theirs = itself(row, RATE, train=True).apply
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        drawn = [[leaf.detach() for leaf in tree_leaves(theirs(params, x))] for _ in range(DRAWS)]
    for one, other in zip(tree_leaves(ours), map(torch.stack, zip(*drawn, strict=True)), strict=True):
        for a, b in ((one, other), (one.square(), other.square()), (shared(one), shared(other))):
            error = ((a.var(0) + b.var(0)) / DRAWS).sqrt() + 1e-9
            assert float(((a.mean(0) - b.mean(0)).abs() / error).max()) < 5.0


def shared(outputs):
    """How far outputs of one draw go together: what whole channels and whole examples have in common."""
    centred = (outputs - outputs.mean(0)).flatten(1)
    return centred * centred.roll(1, 1)
