"""The table of learners that every law runs over, and the oracle they are held against."""

import contextlib
import itertools
import json
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch._functorch.eager_transforms import grad_increment_nesting
from torch._functorch.vmap import vmap_increment_nesting

import fmeta
from fmeta import Learner
from fmeta.core import fold, normal, permutation
from fmeta.core._losses import weighted_mean
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from fmeta.testing import distance, random_classification, random_regression

__all__ = [
    "F64",
    "LEARNERS",
    "STEPPING",
    "Row",
    "distance",
    "drawn",
    "labelled",
    "lines_of",
    "loop_meta_grad",
    "options_of",
    "regressor",
    "striking",
    "untimed",
    "vectors",
]

F64 = torch.float64
vectors, labelled = random_regression, random_classification


def lines_of(run):
    """The lines of a run's metrics.jsonl, without what the clock says: the same for every run of the recipe."""
    return [untimed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


class _Strikes:
    """A generator that is left by an error after its first value, before who asked for it goes on."""

    def __init__(self, generator, error):
        self.generator, self.error = generator, error

    def __next__(self):
        next(self.generator)
        raise self.error

    def close(self):
        self.generator.close()


@contextlib.contextmanager
def striking(at, error):
    """Ctrl-C at the worst moment: torch.func has pushed its level number `at`, and has not entered the `with`."""
    base, pushed = contextlib._GeneratorContextManagerBase, itertools.count(1)

    def made(self, *given):
        real(self, *given)
        if self.gen.gi_code in levels and next(pushed) == at:
            self.gen = _Strikes(self.gen, error)

    levels = [f.__wrapped__.__code__ for f in (vmap_increment_nesting, grad_increment_nesting)]
    real, base.__init__ = base.__init__, made
    try:
        yield
    finally:
        base.__init__ = real


def grouped(*, log_every=100, save_every=1000, loggers=(), validate=None, validate_every=None, facts=None, **rest):
    """Options of `fit`, those that it takes in groups given by names of their own."""
    if callable(validate):
        judged = {name: rest.pop(name) for name in ("monitor", "mode", "patience") if name in rest}
        validate = fmeta.Validation(validate, validate_every, **judged)
    saving, logging = fmeta.Saving(save_every, facts or {}), fmeta.Logging(log_every, loggers)
    return {"validate": validate, "saving": saving, "logging": logging, **rest}


def untimed(values):
    assert all(value >= 0 for name, value in values.items() if name.startswith("time/"))
    return {name: value for name, value in values.items() if not name.startswith("time/")}


def drawn(key, counts, shape=(4,)):
    """Examples of one task with so many of each class, in random order."""
    y = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])
    return fmeta.Examples(normal(fold(key, 1), (len(y), *shape), F64), y[permutation(fold(key, 2), len(y))])


def regressor(inputs=2, width=8, outputs=1):
    return fmeta.models.mlp([inputs, width, width, outputs], torch.tanh, F64)


class Row(NamedTuple):
    learner: Learner
    tasks: object  # key -> a batch of tasks
    broken: tuple = ()  # laws that it does not promise


def beside(outputs):
    """A perceptron on inputs from which the support set's weighted mean is taken."""
    net = fmeta.models.mlp([4, 8, outputs], torch.tanh, F64)

    def apply(params, x):
        weight = x.weight if isinstance(x.weight, torch.Tensor) else torch.ones_like(x.support[:, 0])
        return net.apply(params, x.x - (weight @ x.support) / weight.sum())

    return fmeta.Model(net.init, apply)


PADDING = ("padding changes nothing",)  # broken where dropout draws for all examples, or batch norm sees all


def anil(model, **settings):
    return fmeta.anil(model, fmeta.cross_entropy, optimizer=fmeta.momentum(0.3), steps=3, **settings)


def encoded(noisy=False):
    """An encoder with a head, for ANIL."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3 * noisy), torch.nn.Linear(6, 5)]
    encoder = fmeta.from_module(torch.nn.Sequential(*layers).double())
    return fmeta.models.with_head(encoder, 3, features=5, head="linear" if noisy else "cosine")


def small_conv4(**settings):
    return fmeta.models.conv4(3, width=4, size=16, activation=torch.tanh, dtype=F64, **settings)


def pictures(key):
    return labelled(key, tasks=2, shots=1, query=1, shape=(1, 16, 16))


def proximal_head():
    """A head held near the meta-learned one, on features computed once: strongly convex whatever the trunk."""
    trunk = fmeta.models.mlp([2, 8, 5], torch.tanh, F64)

    def init(key):
        return {"trunk": trunk.init(key), "head": normal(fold(key, "head"), (5,), F64)}

    def prepare(meta, support, key):
        return support._replace(x=trunk.apply(meta["trunk"], support.x))

    def loss(fast, meta, batch, at):
        error = weighted_mean(fmeta.mse((batch.x @ fast)[:, None], batch.y), batch.weight)
        return error + 0.5 * ((fast - meta["head"]) ** 2).sum()

    def predict(fast, meta, x):
        return (trunk.apply(meta["trunk"], x) @ fast)[:, None]

    inner = fmeta.Inner(
        lambda meta, support, key: meta["head"],
        loss,
        lambda meta: fmeta.sgd(0.2),
        3,
        strongly_convex=True,
        prepare=prepare,
    )
    return fmeta.gradient_based("proximal_head", init, inner, predict, fmeta.mse, None, fmeta.implicit())


def with_dropout():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    return fmeta.from_module(net.double())


def frozen(*sizes):
    """An encoder whose parameters are all constants."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return fmeta.from_module(torch.nn.Sequential(*layers, torch.nn.Tanh()).double().requires_grad_(False))


def normed():
    """A classifier with batch norm in the middle."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        OrderedDict(
            body=torch.nn.Linear(2, 6),
            norm1=torch.nn.BatchNorm1d(6),
            squash=torch.nn.Tanh(),
            head=torch.nn.Linear(6, 3),
        )
    )
    return fmeta.from_module(net.double(), norm="batch")


def drawn_head():
    """A head drawn from the task's key on features that are meta-learned, as in continual learning."""
    trunk = fmeta.models.mlp([2, 8, 5], torch.tanh, F64)

    def start(meta, support, key):
        return normal(fold(key, "head"), (5,), meta["center"].dtype) + meta["center"]

    def predict(fast, meta, x):
        return trunk.apply(meta["trunk"], x) @ fast[:, None]

    def loss(fast, meta, batch, at):
        return weighted_mean(fmeta.mse(predict(fast, meta, batch.x), batch.y), batch.weight)

    def init(key):
        return {"trunk": trunk.init(key), "center": normal(fold(key, "center"), (5,), F64)}

    inner = fmeta.Inner(start, loss, lambda meta: fmeta.sgd(0.1), 3)
    return fmeta.gradient_based("drawn_head", init, inner, predict, fmeta.mse, None, fmeta.unrolled())


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
        "maml-dropout": Row(fmeta.maml(with_dropout(), fmeta.mse, optimizer=sgd, steps=3), vectors, PADDING),
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
        "anil-encoder": Row(anil(encoded()), labelled),
        "anil-dropout": Row(anil(encoded(noisy=True)), labelled, PADDING),
        "anil-conv4": Row(anil(small_conv4()), pictures, PADDING),
        "anil-in-context": Row(fmeta.in_context(anil(small_conv4(norm="support"))), pictures),
        "proximal_head": Row(proximal_head(), vectors),
        "maml-rmsprop-masked": Row(
            fmeta.maml(net, fmeta.mse, optimizer=fmeta.masked(fmeta.rmsprop(0.02, eps=1e-2), "!hidden1.*"), steps=3),
            vectors,
        ),
        "boil": Row(fmeta.boil(net, fmeta.mse, optimizer=sgd, steps=3), vectors),
        "cavia": Row(fmeta.cavia(regressor(2 + 3), fmeta.mse, context=3, optimizer=fmeta.sgd(0.5), steps=3), vectors),
        "meta_curvature": Row(fmeta.meta_curvature(net, fmeta.mse, optimizer=sgd, steps=3), vectors),
        "protomaml": Row(
            fmeta.protomaml(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, optimizer=fmeta.sgd(0.1), steps=3),
            labelled,
        ),
        "maml_plus_plus": Row(
            fmeta.maml_plus_plus(normed(), fmeta.cross_entropy, lr=0.2, steps=3),
            lambda key: labelled(key, shape=(2,)),
            PADDING,
        ),
        "imaml": Row(fmeta.imaml(net, fmeta.mse, damping=2.0, optimizer=fmeta.sgd(0.2), steps=4), vectors),
        "protonet": Row(fmeta.protonet(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3), labelled),
        "protonet-cosine": Row(
            fmeta.protonet(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, distance="cosine"), labelled
        ),
        "matching": Row(fmeta.matching(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, scale=3.0), labelled),
        "matching-context": Row(
            fmeta.matching(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, full_context=5, reads=2), labelled
        ),
        "relation": Row(
            fmeta.relation(
                fmeta.models.mlp([4, 8, 5], torch.tanh, F64), fmeta.models.mlp([10, 6, 1], torch.tanh, F64), ways=3
            ),
            labelled,
        ),
        "ridge": Row(fmeta.ridge(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, damping=1.0), labelled),
        "maml-in-context": Row(
            fmeta.in_context(fmeta.maml(beside(3), fmeta.cross_entropy, optimizer=fmeta.momentum(0.1), steps=2)),
            labelled,
        ),
        "protonet-in-context": Row(fmeta.in_context(fmeta.protonet(beside(5), ways=3)), labelled),
        "fine_tune": Row(
            fmeta.fine_tune(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, optimizer=fmeta.sgd(0.5), steps=3),
            labelled,
        ),
        "fine_tune-all-cosine": Row(
            fmeta.fine_tune(
                fmeta.models.mlp([4, 8, 5], torch.tanh, F64),
                ways=3,
                adapt="all",
                head="cosine",
                optimizer=fmeta.sgd(0.1),
                steps=3,
            ),
            labelled,
        ),
        "supervised": Row(
            fmeta.supervised(fmeta.models.mlp([4, 8, 3], torch.tanh, F64)),
            lambda key: labelled(key)._replace(support=fmeta.Examples((), ())),
        ),
        "transfer": Row(
            fmeta.transfer(
                fmeta.models.with_head(fmeta.models.mlp([4, 8, 5], torch.tanh, F64), 3, features=5),
                fmeta.fine_tune(
                    fmeta.models.mlp([4, 8, 5], torch.tanh, F64), ways=3, optimizer=fmeta.sgd(0.5), steps=3
                ),
            ),
            lambda key: labelled(key)._replace(support=fmeta.Examples((), ())),
        ),
        "mann": Row(
            fmeta.mann(
                fmeta.models.mlp([4, 8, 5], torch.tanh, F64),
                ways=3,
                features=5,
                hidden=6,
                slots=5,
                cell=3,
                heads=2,
                instances=2,
            ),
            lambda key: fmeta.tasks.stream(lambda k, count: labelled(k, tasks=count), ways=3)(key, 3),
            PADDING,
        ),
        "task_encoder": Row(
            fmeta.task_encoder(
                fmeta.models.mlp([3, 8, 4], torch.tanh, F64),
                fmeta.models.mlp([2, 8, 8, 1], torch.tanh, F64, film=4),
                fmeta.mse,
            ),
            vectors,
        ),
        "task_encoder-classes": Row(
            fmeta.task_encoder(
                fmeta.models.mlp([4, 8, 2], torch.tanh, F64),
                fmeta.models.mlp([4, 8, 5], torch.tanh, F64, film=2),
                ways=3,
            ),
            labelled,
        ),
        "protonet-frozen": Row(fmeta.protonet(frozen(4, 8, 5), ways=3), labelled),
        "ridge-frozen": Row(fmeta.ridge(frozen(4, 5), ways=3, damping=1.0), labelled),
        "anil-frozen": Row(
            fmeta.anil(
                fmeta.models.with_head(frozen(4, 5), 3, features=5, dtype=F64),
                fmeta.cross_entropy,
                optimizer=fmeta.adam(0.1, eps=1e-3),
                steps=2,
            ),
            labelled,
        ),
        "cavia-frozen": Row(
            fmeta.cavia(frozen(2 + 3, 1), fmeta.mse, context=3, optimizer=fmeta.sgd(0.5), steps=2), vectors
        ),
        "drawn_head": Row(drawn_head(), vectors),
        "reptile": Row(fmeta.reptile(net, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3, batch=4), vectors),
    }


LEARNERS = learners()
STEPPING = {name: row.learner.inner.steps for name, row in LEARNERS.items() if row.learner.inner is not None}
EXACT = {"unrolled": fmeta.unrolled, "adjoint": fmeta.adjoint}


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
            grads = torch.autograd.grad(value, fast, create_graph=True, materialize_grads=True)
            fast = [w - lr * g for w, g in zip(fast, grads, strict=True)]
        total = total + loss(model.apply(tree_unflatten(fast, structure), task.query.x), task.query.y).mean()
    return tree_unflatten(list(torch.autograd.grad(total / count, leaves, materialize_grads=True)), structure)


def options_of(file):
    """Every option that a recipe.json, best.json or study.json holds, whichever part has it."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    parts = {name: stored[name] for name in ("recipe", "learner", "gradient", "run") if name in stored}
    chosen = {name: parts[name]["name"] for name in ("learner", "gradient") if name in parts}
    return chosen | {name: value for part in parts.values() for name, value in part["options"].items()}
