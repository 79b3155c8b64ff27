"""The law "a module is itself": over tasks, differentiated twice and with its noise, from_module gives the module."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from helpers import F64, distance, loop_meta_grad
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fmeta
from fmeta.core import fold, normal, randint
from fmeta.core.tree import tree_leaves, tree_map

KEY = fmeta.key(17)
TASKS, RATE, DRAWS = 3, 0.3, 300
EXACT = {"unrolled": fmeta.unrolled(), "adjoint": fmeta.adjoint()}

Draw = Callable[[torch.Tensor, int, int], object]  # key, tasks, examples -> x, leaves [task, example, ...]


class Row(NamedTuple):
    """A module, what it is given, and what may be expected of it."""

    build: Callable[..., nn.Module]  # () -> module; rate -> module, where it draws random numbers
    draw: Draw
    norm: str | None = None  # the policy
    twin: Callable[[], nn.Module] | None = None  # the same in layers that torch differentiates twice, where it cannot
    refused: tuple[str, ...] = ()  # words of its InputError
    or_refused: tuple[str, ...] = ()  # words of its InputError, where it is not right
    random: bool = False


def reals(*shape):
    return lambda key, tasks, examples: normal(key, (tasks, examples, *shape), F64)


def positive(*shape):
    return lambda key, tasks, examples: normal(key, (tasks, examples, *shape), F64).abs() + 0.1


def ids(count, *shape):
    return lambda key, tasks, examples: randint(key, count, (tasks, examples, *shape))


def padding(length):
    """True where there is nothing; the first place is always there."""
    return lambda key, tasks, examples: torch.arange(length) > randint(key, length, (tasks, examples, 1))


def both(*draws):
    return lambda key, tasks, examples: tuple(d(fold(key, i), tasks, examples) for i, d in enumerate(draws))


def named(**draws):
    return lambda key, tasks, examples: {n: d(fold(key, n), tasks, examples) for n, d in draws.items()}


class Call(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs, **keywords):
        return self.function(self, *inputs, **keywords)


# ---- torch's own -------------------------------------------------------------------------------------


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


# ---- the law, part by part -------------------------------------------------------------------------


def over_tasks_it_gives_what_the_module_gives_in_eval(row):
    x = examples(row, 4, "support").x
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        params = moved(model.init(KEY))
        close(fmeta.over_tasks(model.apply, shared=())(params, x), each(itself(row).apply, params, x))


def meta_gradients_are_those_of_a_loop_over_the_module(row):
    keys = fmeta.split(KEY, TASKS) if row.random else ()
    tasks = fmeta.Task(examples(row, 4, "support"), examples(row, 3, "query"), keys)
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        learner = fmeta.maml(model, loss, optimizer=fmeta.sgd(0.02), steps=2)
        meta = learner.init(KEY)
        found = {n: fmeta.meta_grad(learner, gradient)(meta, tasks)[0] for n, gradient in EXACT.items()}
        expected = loop_meta_grad(itself(row), loss, tasks, meta, lr=0.02, steps=2)
        assert max(float(g.abs().max()) for g in expected.values() if g.numel()) > 1e-6
        assert {n: d for n, g in found.items() if (d := distance(g, expected)) > 1e-8} == {}


def without_rates_its_noise_is_the_module_in_training(row):
    x = examples(row, 4, "support").x
    with refused_by_name(row):
        model = fmeta.from_module(built(row), norm=row.norm)
        noisy = model.noisy or (lambda params, x, key: model.apply(params, x))
        params = moved(model.init(KEY))
        found = fmeta.over_tasks(noisy, shared=())(params, x, fmeta.split(KEY, TASKS))
        close(found, each(itself(row, train=True).apply, params, x))


def its_noise_comes_from_the_key(row):
    model, x = fmeta.from_module(built(row, RATE), norm=row.norm), examples(row, 4, "support").x
    params, keys = moved(model.init(KEY)), fmeta.split(KEY, TASKS)
    before = torch.random.get_rng_state()
    together = fmeta.over_tasks(model.noisy, shared=())(params, x, keys)
    close(together, each(model.noisy, params, x, keys))
    assert torch.equal(torch.random.get_rng_state(), before)
    one, *others = (flat(model.noisy(model.init(KEY), tree_map(lambda t: t[0], x), key)) for key in keys)
    assert all(not torch.equal(one, other) for other in others)
    close(fmeta.over_tasks(model.apply, shared=())(params, x), each(itself(row, RATE).apply, params, x))


def its_noise_is_distributed_as_the_modules(row):
    """Means, mean squares and products of outputs, ours by keys and torch's by its generator: within 5 deviations."""
    model = fmeta.from_module(built(row, RATE), norm=row.norm)
    params, x = model.init(KEY), tree_map(lambda t: t[0], examples(row, 4, "support").x)
    same = tree_map(lambda t: t.expand(DRAWS, *t.shape), x)
    found = fmeta.over_tasks(lambda *args: flat(model.noisy(*args)))(params, same, fmeta.split(KEY, DRAWS))
    theirs = itself(row, RATE, train=True).apply
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        drawn = torch.stack([flat(theirs(params, x)).detach() for _ in range(DRAWS)])
    for a, b in ((found, drawn), (found.square(), drawn.square()), (products(found), products(drawn))):
        error = ((a.var(0) + b.var(0)) / DRAWS).sqrt() + 1e-9
        assert float(((a.mean(0) - b.mean(0)).abs() / error).max()) < 5.0


def flat(outputs):
    return torch.cat([leaf.flatten() for leaf in tree_leaves(outputs)])


def products(outputs):
    """Of neighbours, each less its mean: what whole channels and whole examples have in common."""
    centred = outputs - outputs.mean(0)
    return centred * centred.roll(1, 1)
