"""The vocabulary and the parts every algorithm is made of."""

from fmeta.core._checks import (
    InputError,
    check_meta,
    check_model,
    check_optimizer,
    check_tasks,
    nearest,
    refuse_compiled,
)
from fmeta.core._inner import trajectory
from fmeta.core._losses import accuracy, cross_entropy, mse
from fmeta.core._model import from_module
from fmeta.core._optim import (
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    cosine_decay,
    linear_decay,
    momentum,
    sgd,
    step_decay,
)
from fmeta.core._random import choice, fold, key, normal, permutation, randint, split, uniform
from fmeta.core._types import (
    At,
    Examples,
    GradFn,
    Info,
    Inner,
    Learner,
    MetaGradient,
    Model,
    Optimizer,
    Stage,
    Task,
    Tree,
    eager,
)

__all__ = [
    "At", "Examples", "GradFn", "Info", "Inner", "InputError", "Learner", "MetaGradient", "Model", "Optimizer",
    "Stage", "Task", "Tree", "accuracy", "adam", "adamw", "chain", "check_meta", "check_model", "check_optimizer",
    "check_tasks", "choice", "clip_by_global_norm", "cosine_decay", "cross_entropy", "eager", "fold", "from_module",
    "key", "linear_decay", "momentum", "mse", "nearest", "normal", "permutation", "randint", "refuse_compiled",
    "sgd", "split", "step_decay", "trajectory", "uniform",
]  # fmt: skip
