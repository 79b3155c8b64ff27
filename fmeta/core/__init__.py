"""The vocabulary and the parts every algorithm is made of."""

from fmeta.core import tree
from fmeta.core._checks import InputError
from fmeta.core._inner import trajectory
from fmeta.core._losses import accuracy, cross_entropy, mse
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
    Output,
    PartialSampler,
    Stage,
    Staged,
    Task,
    Tree,
    WeighingSteps,
    eager,
    loss_weights_of,
)

__all__ = [
    "At", "Examples", "GradFn", "InContext", "Info", "Inner", "InputError", "Learner", "MetaGradient", "Model",
    "Optimizer", "Output", "PartialSampler", "Precision", "Solver", "Stage", "Staged", "Task", "Tree",
    "WeighingSteps", "accuracy", "adam", "adamw", "cg", "chain", "choice", "clip_by_global_norm", "cosine_decay",
    "cross_entropy", "direct", "eager", "fold", "key", "linear_decay", "loss_weights_of", "masked", "momentum",
    "mse", "neumann", "normal", "per_step", "permutation", "randint", "rmsprop", "sgd", "split", "step_decay",
    "trajectory", "tree", "uniform", "with_precision",
]  # fmt: skip
