"""Meta-gradients equal a plain torch.autograd loop with create_graph, on the models of the field."""

import pytest
import torch
from helpers import F64, distance, labelled, loop_meta_grad, vectors
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fmeta
from fmeta.core import fold
from fmeta.execution._compile import plan

KEY = fmeta.key(2)


class Tied(nn.Module):
    """Tied weights, a buffer and LayerNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inside, self.outside = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.outside.weight = self.inside.weight
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 6))

    def forward(self, x):
        h = torch.tanh(self.inside(self.embed(x) + self.shift))
        return self.head(torch.tanh(self.outside(self.norm(h))))


def images(size):
    return lambda key: labelled(key, tasks=2, shots=1, query=2, ways=3, shape=(1, size, size))


def small_conv(form):
    return fmeta.models.conv4(3, form=form, width=4, size=16, norm="batch", dtype=F64)


CASES = {
    "mlp": (lambda: fmeta.models.mlp([2, 8, 8, 1], torch.tanh, F64), vectors, fmeta.mse),
    "conv4-stride": (lambda: small_conv("stride"), images(16), fmeta.cross_entropy),
    "conv4-pool": (lambda: small_conv("pool"), images(16), fmeta.cross_entropy),
    "from_module": (lambda: fmeta.from_module(Tied().double()), labelled, fmeta.cross_entropy),
}
LR, STEPS = 0.2, 3


def case(name):
    model, sample, loss = CASES[name]
    model = model()
    learner = fmeta.maml(model, loss, optimizer=fmeta.sgd(LR), steps=STEPS)
    meta, tasks = learner.init(KEY), sample(fold(KEY, 1))
    return learner, meta, tasks, loop_meta_grad(model, loss, tasks, meta, lr=LR, steps=STEPS)


def eager_stage(function):
    return fmeta.compile(function, backend="aot_eager")


WAYS = {
    "unrolled eager": lambda learner: fmeta.meta_grad(learner, fmeta.unrolled()),
    "adjoint eager": lambda learner: fmeta.meta_grad(learner, fmeta.adjoint()),
    "unrolled whole": lambda learner: eager_stage(fmeta.meta_grad(learner, fmeta.unrolled())),
    "unrolled step": lambda learner: fmeta.meta_grad(learner, fmeta.unrolled(), eager_stage),
    "adjoint whole": lambda learner: eager_stage(fmeta.meta_grad(learner, fmeta.adjoint())),
    "adjoint step": lambda learner: fmeta.meta_grad(learner, fmeta.adjoint(), eager_stage),
}
COVERING = {  # every model and every way at least once
    ("mlp", "unrolled whole"),
    ("mlp", "adjoint whole"),
    ("conv4-stride", "adjoint step"),
    ("conv4-pool", "unrolled step"),
    ("from_module", "adjoint step"),
    ("from_module", "unrolled whole"),
}


def pairs():
    for name in CASES:
        for way in WAYS:
            quick = way.endswith("eager") or (name, way) in COVERING
            yield pytest.param(name, way, marks=[] if quick else pytest.mark.thorough)


@pytest.mark.parametrize(("name", "way"), list(pairs()))
def test_equals_a_create_graph_loop(name, way):
    learner, meta, tasks, expected = case(name)
    assert distance(WAYS[way](learner)(meta, tasks)[0], expected) < 1e-8


@pytest.mark.parametrize("scope", ["whole", pytest.param("step", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", ["mlp", pytest.param("from_module", marks=pytest.mark.thorough)])
def test_equals_a_create_graph_loop_in_inductor(name, scope):
    """The backend people use, in float64 like the rest."""
    learner, meta, tasks, expected = case(name)
    run = plan(scope)
    gradient = fmeta.unrolled() if scope == "whole" else fmeta.adjoint()
    f = run.whole(fmeta.meta_grad(learner, gradient, run.stage))
    assert distance(f(meta, tasks)[0], expected) < 1e-8


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["conv4-stride", "conv4-pool"])
def test_conv_equals_a_create_graph_loop_in_inductor(name):
    learner, meta, tasks, expected = case(name)
    f = fmeta.meta_grad(learner, fmeta.adjoint(), fmeta.compile)
    assert distance(f(meta, tasks)[0], expected) < 1e-8


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x.reshape(-1, 3, 4)
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def block(*layers, shape=(12,)):
    return nn.Sequential(nn.Unflatten(1, shape), *layers, nn.Flatten(), nn.LazyLinear(3))


IMAGE = (1, 3, 4)
LAYERS = {
    "layer norm": lambda: block(nn.Linear(12, 5), nn.Tanh(), nn.LayerNorm(5)),
    "layer norm without affine": lambda: block(nn.Linear(12, 5), nn.Tanh(), nn.LayerNorm(5, elementwise_affine=False)),
    "rms norm": lambda: block(nn.Linear(12, 5), nn.Tanh(), nn.RMSNorm(5)),
    "batch norm": lambda: block(nn.Linear(12, 5), nn.Tanh(), nn.BatchNorm1d(5, track_running_stats=False)),
    "batch norm policy": lambda: block(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.BatchNorm2d(3), shape=IMAGE),
    "instance norm": lambda: block(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.InstanceNorm2d(3, affine=True), shape=IMAGE),
    "group norm": lambda: block(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.GroupNorm(2, 4), shape=IMAGE),
    "attention": Attention,
    "softmax": lambda: block(nn.Linear(12, 5), nn.Softmax(-1)),
    "pooling": lambda: block(nn.Conv2d(1, 3, 2), nn.GELU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), shape=IMAGE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_of_layers_are_right_over_tasks(name):
    """torch's own formulas for layer, batch and instance norm are wrong under grad of vmap; fmeta replaces them."""
    torch.manual_seed(0)
    net = LAYERS[name]()
    tasks = labelled(fold(KEY, 1), shape=(12,))
    net.double()(tasks.support.x[0])
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    model = fmeta.from_module(net, norm="batch")
    learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(LR), steps=STEPS)
    meta = learner.init(KEY)
    with sdpa_kernel(SDPBackend.MATH):  # the loop needs it: fused attention has no second derivative
        expected = loop_meta_grad(model, fmeta.cross_entropy, tasks, meta, lr=LR, steps=STEPS)
    for gradient in (fmeta.unrolled(), fmeta.adjoint()):
        assert distance(fmeta.meta_grad(learner, gradient)(meta, tasks)[0], expected) < 1e-8
