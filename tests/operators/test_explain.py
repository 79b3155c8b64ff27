"""What torch.func says in its own words ends as an InputError with the layer, the caller's line and a cure."""

import re

import pytest
import torch
from helpers import F64
from torch import nn
from torch.nn import functional as F

import fmeta

KEY = fmeta.key(0)


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class NoRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


def into_zeros(layer, x):
    table = torch.zeros(len(x), 4, dtype=x.dtype)
    table[:, :2] = x[:, :2]
    return layer(table)


def checkpointed(layer, x):
    return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)


KINDS = {  # what forward does with its layer and input; words of the cure; a part of the line that is at fault
    "branch": (lambda layer, x: layer(x) if x.sum() > 0 else -layer(x), "torch.where", "x.sum() > 0"),
    "item": (lambda layer, x: layer(x) * x.max().item(), "torch.where", "x.max().item()"),
    "boolean mask": (lambda layer, x: layer(x) + x[x > 0].sum(), "torch.where", "x[x > 0]"),
    "nonzero": (lambda layer, x: layer(x) + x.nonzero().sum(), "torch.where", "x.nonzero()"),
    "unique": (lambda layer, x: layer(x) + x.unique().sum(), "torch.where", "x.unique()"),
    "one_hot": (lambda layer, x: layer(x) + F.one_hot(x.long().abs())[..., 0], "num_classes", "F.one_hot"),
    "into zeros": (into_zeros, "new_zeros", "table[:, :2]"),
    "random": (lambda layer, x: layer(x) + torch.rand(3), "self.training", "torch.rand"),
    "checkpoint": (checkpointed, "adjoint", "use_reentrant"),
    "old function": (lambda layer, x: Old.apply(layer(x)), "setup_context", "Old.apply"),
    "function without rule": (lambda layer, x: NoRule.apply(layer(x)), "generate_vmap_rule", "NoRule.apply"),
    "tolist": (lambda layer, x: layer(x) * x.tolist()[0][0], "torch.where", "x.tolist()"),
    "numpy": (lambda layer, x: layer(x) + x.numpy().sum(), "torch.where", "x.numpy()"),
    "data": (lambda layer, x: layer(x.data), "detach", "x.data"),
    "dtype": (lambda layer, x: layer(x.float()), "dtype", "x.float()"),
}


class Net(nn.Module):
    class Block(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.layer, self.kind = nn.Linear(4, 3, dtype=F64), kind

        def forward(self, x):
            return self.kind(self.layer, x)

    def __init__(self, kind):
        super().__init__()
        self.block = self.Block(kind)

    def forward(self, x):
        return self.block(x)


def tasks_of(x):
    y = (torch.arange(x.shape[1]) % 3).expand(len(x), -1).contiguous()
    return fmeta.Task(fmeta.Examples(x, y), fmeta.Examples(x, y), fmeta.split(KEY, len(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_the_line_and_a_cure_are_named(kind):
    forward, cure, line = KINDS[kind]
    learner = fmeta.maml(fmeta.from_module(Net(forward)), fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)
    with pytest.raises(fmeta.InputError) as caught:
        fmeta.meta_grad(learner)(learner.init(KEY), tasks_of(torch.randn(2, 6, 4, dtype=F64)))
    said = str(caught.value)
    assert cure in said
    assert "block" in said
    assert line in said
    assert "expected" in said


def test_what_has_no_second_derivative_is_refused_by_second_order_alone():
    class Once(nn.Module):
        def forward(self, x):
            return torch.cdist(x[:, :3], torch.eye(3, dtype=F64), p=3.0)

    net = fmeta.from_module(nn.Sequential(nn.Linear(4, 4, dtype=F64), Once()))
    learner = fmeta.maml(net, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)
    meta, tasks = learner.init(KEY), tasks_of(torch.randn(2, 6, 4, dtype=F64))
    try:
        fmeta.meta_grad(learner)(meta, tasks)
    except fmeta.InputError as error:
        said = str(error)
    else:
        pytest.skip("this torch differentiates cdist twice, as 2.14 does")
    assert re.search(r"maml.*cdist.*twice.*first_order\(\)", said)
    fmeta.meta_grad(learner, fmeta.first_order())(meta, tasks)


def test_an_error_of_the_callers_own_passes_as_it_is():
    def faulty(x):
        raise RuntimeError("the weather")

    with pytest.raises(RuntimeError, match="the weather"):
        fmeta.over_tasks(faulty, shared=())(torch.zeros(2, 3))


@pytest.mark.parametrize("said", ["support and query should be the same dtype", "mask must be a boolean mask"])
def test_so_does_one_that_speaks_as_torch_does(said):
    def faulty(x):
        raise ValueError(said)

    with pytest.raises(ValueError, match=said):
        fmeta.over_tasks(faulty, shared=())(torch.zeros(2, 3))
