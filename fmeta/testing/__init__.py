"""Laws that every learner and meta-gradient obeys, as functions: for fmeta's tests and for yours.

`check_learner` runs `LAWS` over a learner and every meta-gradient that fits it, and raises `LawError` with each that is
broken: exact meta-gradients equal a plain autograd loop (`plain_meta_grad`) and finite differences
(`finite_difference`), a batch equals its tasks one by one, padding and order change nothing, inputs stay untouched,
compiled equals eager, and more. Take small tasks (`random_regression`, `random_classification`) and smooth activations:
the kink of a ReLU spoils finite differences.

`fmeta.testing.strategies` draws learners, optimizers and tasks for hypothesis; it is imported by itself, because it
needs hypothesis. `python benchmarks/mutations.py` plants faults and shows which law catches each.

    >>> import torch
    >>> import fmeta
    >>> model = fmeta.models.mlp([2, 4, 1], torch.tanh)
    >>> learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    >>> tasks = fmeta.testing.random_regression(fmeta.key(0), tasks=2)
    >>> report = fmeta.testing.check_learner(learner, tasks, laws=["equals plain autograd", "batch equals loop"])
    >>> report.passed
    ['equals plain autograd', 'batch equals loop']
"""

from fmeta.testing._check_learner import LawError, LawReport, check_learner
from fmeta.testing._laws import LAWS
from fmeta.testing._oracles import distance, finite_difference, plain_meta_grad
from fmeta.testing._random_tasks import random_classification, random_regression

__all__ = [
    "LAWS", "LawError", "LawReport", "check_learner", "distance", "finite_difference", "plain_meta_grad",
    "random_classification", "random_regression",
]  # fmt: skip
