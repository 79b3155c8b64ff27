"""Hypothesis strategies: seeds, shapes and settings are drawn, tensor values come from keys (needs hypothesis).

from fmeta.testing import check_learner, strategies

@settings(deadline=None, max_examples=5)
@given(strategies.regression_tasks(inputs=3))
def test_my_learner(tasks):
    check_learner(my_learner, tasks, skip=["compiled equals eager"])  # every example would compile anew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from fmeta import core, models
from fmeta.core import Learner, Optimizer, Task
from fmeta.learners import (
    anil,
    boil,
    cavia,
    imaml,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    protomaml,
    reptile,
)
from fmeta.testing._random_tasks import random_classification, random_regression

Draw = Callable[[st.SearchStrategy[Any]], Any]
F64 = torch.float64


@st.composite
def regression_tasks(draw: Draw, inputs: int = 2, outputs: int = 1, max_tasks: int = 4, max_examples: int = 7) -> Task:
    """Batches of 2 to `max_tasks` random regression tasks."""
    shots, query = draw(st.integers(1, max_examples)), draw(st.integers(1, max_examples))
    return random_regression(_key(draw), draw(st.integers(2, max_tasks)), shots, query, inputs, outputs)


@st.composite
def classification_tasks(
    draw: Draw, ways: int = 3, shape: Sequence[int] = (4,), max_tasks: int = 3, max_shots: int = 3
) -> Task:
    """Batches of 2 to `max_tasks` random tasks of `ways` classes."""
    shots, query = draw(st.integers(1, max_shots)), draw(st.integers(1, max_shots))
    return random_classification(_key(draw), draw(st.integers(2, max_tasks)), shots, query, ways, shape)


@st.composite
def optimizers(draw: Draw, max_lr: float = 0.3) -> Optimizer:
    """Inner optimizers of every kind, with a bounded slope where the gradient is 0."""
    lr = draw(st.floats(1e-3, max_lr))
    kinds: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: core.sgd(lr),
        "momentum": lambda: core.momentum(lr, 0.7, nesterov=draw(st.booleans())),
        "adam": lambda: core.adam(lr, eps=1e-3),
        "adamw": lambda: core.adamw(lr, eps=1e-3),
        "rmsprop": lambda: core.rmsprop(lr, eps=1e-2),
        "clipped": lambda: core.chain(core.clip_by_global_norm(0.3), core.sgd(lr)),
        "decaying": lambda: core.sgd(core.cosine_decay(lr, 3)),
        "per step": lambda: core.momentum(core.per_step(torch.tensor([lr, 0.5 * lr], dtype=F64))),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


@st.composite
def learners(draw: Draw, kinds: Sequence[str] | None = None) -> tuple[Learner, Task]:
    """A learner of fmeta's in any setting, with tasks that fit it. `kinds` are names out of `KINDS`; None is all."""
    return _LEARNERS[draw(st.sampled_from(list(kinds or KINDS)))](draw)


def _key(draw: Draw) -> torch.Tensor:
    return core.key(draw(st.integers(0, 2**31)))


def _steps(draw: Draw) -> int:
    return draw(st.integers(1, 4))


def _adapting(make: Callable[..., Learner], *, extra: int = 0, **settings: Any) -> Callable[[Draw], Any]:
    """Draws a regression learner with an inner optimizer."""

    def build(draw: Draw) -> tuple[Learner, Task]:
        inputs, width = draw(st.integers(1, 3)), draw(st.integers(1, 8))
        model = models.mlp([inputs + extra, width, 1], torch.tanh, F64)
        learner = make(model, core.mse, optimizer=draw(optimizers()), steps=_steps(draw), **settings)
        return learner, draw(regression_tasks(inputs))

    return build


def _masked(draw: Draw) -> tuple[Learner, Task]:
    model = models.mlp([2, 5, 1], torch.tanh, F64)
    pattern = draw(st.sampled_from(["head.*", "!head.*", "*.weight", "hidden1.*, head.bias"]))
    optimizer = core.masked(draw(optimizers()), pattern)
    return maml(model, core.mse, optimizer=optimizer, steps=_steps(draw)), draw(regression_tasks())


def _reptile(draw: Draw) -> tuple[Learner, Task]:
    model, tasks = models.mlp([2, 5, 1], torch.tanh, F64), draw(regression_tasks())
    batch = draw(st.integers(1, tasks.support.x.shape[1]))
    return reptile(model, core.mse, optimizer=draw(optimizers()), steps=_steps(draw), batch=batch), tasks


def _meta_sgd(draw: Draw) -> tuple[Learner, Task]:
    model = models.mlp([2, draw(st.integers(1, 8)), 1], torch.tanh, F64)
    return meta_sgd(model, core.mse, lr=draw(st.floats(1e-3, 0.3)), steps=_steps(draw)), draw(regression_tasks())


def _imaml(draw: Draw) -> tuple[Learner, Task]:
    model = models.mlp([2, draw(st.integers(1, 5)), 1], torch.tanh, F64)
    damping = draw(st.floats(3.0, 6.0))  # above the negative curvature of such a net, so there is one optimum
    learner = imaml(model, core.mse, damping=damping, optimizer=core.sgd(0.05), steps=_steps(draw))
    return learner, draw(regression_tasks())


def _protomaml(draw: Draw) -> tuple[Learner, Task]:
    ways = draw(st.integers(2, 4))
    encoder = models.mlp([4, 6, draw(st.integers(1, 5))], torch.tanh, F64)
    learner = protomaml(encoder, ways=ways, optimizer=draw(optimizers()), steps=_steps(draw))
    return learner, draw(classification_tasks(ways))


def _anil_encoder(draw: Draw) -> tuple[Learner, Task]:
    ways, features = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    head = draw(st.sampled_from(["linear", "cosine"]))
    model = models.with_head(models.mlp([4, 6, features], torch.tanh, F64), ways, features=features, head=head)
    adapt = draw(st.sampled_from(["head.*", "head.weight", "*.weight"]))
    learner = anil(model, core.cross_entropy, adapt=adapt, optimizer=draw(optimizers()), steps=_steps(draw))
    return learner, draw(classification_tasks(ways))


def _maml_plus_plus(draw: Draw) -> tuple[Learner, Task]:
    model = models.mlp([4, draw(st.integers(1, 8)), 3], torch.tanh, F64)
    each_step = draw(st.sampled_from(["", "*.bias", "hidden1.*"]))
    rate = draw(st.floats(1e-3, 0.3))
    learner = maml_plus_plus(model, core.cross_entropy, lr=rate, steps=_steps(draw), each_step=each_step)
    return learner, draw(classification_tasks())


_LEARNERS: dict[str, Callable[[Draw], tuple[Learner, Task]]] = {
    "maml": _adapting(maml),
    "maml-masked": _masked,
    "anil": _adapting(anil),
    "anil-encoder": _anil_encoder,
    "boil": _adapting(boil),
    "cavia": _adapting(cavia, extra=2, context=2),
    "meta_curvature": _adapting(meta_curvature),
    "meta_sgd": _meta_sgd,
    "imaml": _imaml,
    "reptile": _reptile,
    "protomaml": _protomaml,
    "maml_plus_plus": _maml_plus_plus,
}
KINDS = tuple(_LEARNERS)
