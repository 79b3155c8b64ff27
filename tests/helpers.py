"""The table of learners that every law runs over, and the oracle they are held against."""

from typing import NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import fmeta
from fmeta import Examples, Learner, Task
from fmeta.core import fold, normal, randint, split

F64 = torch.float64


def distance(a, b):
    """The largest difference of two trees, relative to the largest entry of the second."""
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    scale = max(v.abs().max().item() for _, v in pairs)
    return max((u - v).abs().max().item() for u, v in pairs) / max(scale, 1e-300)


def vectors(key, tasks=4, shots=6, query=5, inputs=2, outputs=1):
    """Random regression tasks in float64."""

    def one(number, count):
        x = normal(fold(key, 2 * number), (tasks, count, inputs), F64)
        return Examples(x, normal(fold(key, 2 * number + 1), (tasks, count, outputs), F64))

    return Task(one(1, shots), one(2, query), split(fold(key, 9), tasks))


def labelled(key, tasks=3, shots=2, query=2, ways=3, shape=(4,)):
    """Random classification tasks in float64, labels shuffled."""

    def one(number, count):
        x = normal(fold(key, 2 * number), (tasks, ways * count, *shape), F64)
        return Examples(x, randint(fold(key, 2 * number + 1), ways, (tasks, ways * count)))

    return Task(one(1, shots), one(2, query), split(fold(key, 9), tasks))


def regressor(inputs=2, width=8, outputs=1):
    return fmeta.models.mlp([inputs, width, width, outputs], torch.tanh, F64)


class Row(NamedTuple):
    learner: Learner
    tasks: object  # key -> a batch of tasks
    stochastic: bool = False


def with_dropout():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    return fmeta.from_module(net.double())


def learners():
    """One row per algorithm and per inner optimizer that differs in kind."""
    net, sgd = regressor(), fmeta.sgd(0.1)
    return {
        "maml": Row(fmeta.maml(net, fmeta.mse, optimizer=sgd, steps=3), vectors),
        "maml-adam": Row(fmeta.maml(net, fmeta.mse, optimizer=fmeta.adam(0.02, eps=1e-3), steps=3), vectors),
        "maml-clip-momentum": Row(
            fmeta.maml(
                net,
                fmeta.mse,
                optimizer=fmeta.chain(fmeta.clip_by_global_norm(0.5), fmeta.momentum(fmeta.step_decay(0.1, 2))),
                steps=3,
            ),
            vectors,
        ),
        "maml-dropout": Row(fmeta.maml(with_dropout(), fmeta.mse, optimizer=sgd, steps=3), vectors, True),
        "maml-classes": Row(
            fmeta.maml(
                fmeta.models.mlp([4, 8, 3], torch.tanh, F64),
                fmeta.cross_entropy,
                optimizer=fmeta.sgd(0.5),
                steps=2,
                metrics={"accuracy": fmeta.accuracy},
            ),
            labelled,
        ),
        "meta_sgd": Row(fmeta.meta_sgd(net, fmeta.mse, lr=0.1, steps=2), vectors),
        "anil": Row(fmeta.anil(net, fmeta.mse, optimizer=sgd, steps=3), vectors),
        "reptile": Row(fmeta.reptile(net, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3, batch=4), vectors, True),
    }


LEARNERS = learners()
EXACT = {"unrolled": fmeta.unrolled, "adjoint": fmeta.adjoint}


def batched_init(learner, seed=0):
    return learner.init(fmeta.key(seed))


def loop_meta_grad(model, loss, tasks, meta, *, lr, steps):
    """MAML with gradient descent, written the plain way: torch.autograd with create_graph, one task after another."""
    leaves, structure = tree_flatten(meta)
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    count = tree_leaves(tasks.support.x)[0].shape[0]
    total = 0.0
    for i in range(count):
        task = tree_map(lambda t, i=i: t[i], tasks)
        fast = leaves
        for _ in range(steps):
            value = loss(model.apply(tree_unflatten(fast, structure), task.support.x), task.support.y).mean()
            grads = torch.autograd.grad(value, fast, create_graph=True)
            fast = [w - lr * g for w, g in zip(fast, grads, strict=True)]
        total = total + loss(model.apply(tree_unflatten(fast, structure), task.query.x), task.query.y).mean()
    return tree_unflatten(list(torch.autograd.grad(total / count, leaves)), structure)
