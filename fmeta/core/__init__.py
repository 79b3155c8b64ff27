"""The vocabulary and the parts every algorithm is made of."""

from fmeta.core._checks import (
    InputError,
    check_counts,
    check_meta,
    check_model,
    check_optimizer,
    check_pattern,
    check_tasks,
    nearest,
    refuse_compiled,
)
from fmeta.core._choices import cache_folder, choices, fastest, machine, prefer
from fmeta.core._inner import trajectory
from fmeta.core._losses import accuracy, cross_entropy, mse
from fmeta.core._lowerings import convolution
from fmeta.core._model import from_module
from fmeta.core._optim import (
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    cosine_decay,
    linear_decay,
    masked,
    momentum,
    per_step,
    rmsprop,
    sgd,
    step_decay,
)
from fmeta.core._precision import Precision, with_precision
from fmeta.core._random import choice, fold, key, normal, permutation, randint, split, uniform
from fmeta.core._solve import Solver, cg, direct, neumann
from fmeta.core._types import (
    At,
    Examples,
    GradFn,
    InContext,
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
    "At", "Examples", "GradFn", "InContext", "Info", "Inner", "InputError", "Learner", "MetaGradient", "Model",
    "Optimizer", "Precision", "Solver", "Stage", "Task", "Tree", "accuracy", "adam", "adamw", "cache_folder", "cg",
    "chain", "check_counts", "check_meta", "check_model", "check_optimizer", "check_pattern", "check_tasks",
    "choice", "choices", "clip_by_global_norm", "convolution", "cosine_decay", "cross_entropy", "direct", "eager",
    "fastest", "fold", "from_module", "key", "linear_decay", "machine", "masked", "momentum", "mse", "nearest",
    "neumann", "normal", "per_step", "permutation", "prefer", "randint", "refuse_compiled", "rmsprop", "sgd",
    "split", "step_decay", "trajectory", "uniform", "with_precision",
]  # fmt: skip
