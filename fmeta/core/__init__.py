"""The vocabulary, and the parts of which every algorithm is made: pure values, no disk, no clock, no global state.

Read in this order:

1. `Task` and `Examples`: what a learner adapts to (support) and is judged on (query). A batch of tasks is a `Task`
   whose leaves have a leading `[task]` axis.
2. `Model`, `Optimizer`, `Inner`, `Learner`, `MetaGradient`: an algorithm is a named tuple of pure functions, each
   written for ONE task. `trajectory` runs an `Inner` and keeps every step.
3. `key`, `fold`, `split`, `uniform`, `normal`, `randint`, `permutation`, `choice`, `bits`: randomness is data. The same
   key gives the same numbers eager, compiled, recomputed and on any device, so that a run is a function of its key.
4. Optimizers, which serve the inner and the outer loop alike: `sgd`, `momentum`, `rmsprop`, `adam`, `adamw`; made of
   parts by `chain`, `clip_by_global_norm` and `masked`; their rates may be schedules, `cosine_decay`, `step_decay`,
   `linear_decay`, or learned, `per_step`. `adam` says when to raise `eps_root`: where inner gradients are
   exactly zero.
5. Losses `mse` and `cross_entropy`, the metric `accuracy`, `weighted_mean` over examples; `with_precision` for
   bfloat16; `cg`, `neumann` and `direct` for `fmeta.gradients.implicit`; `tree` for trees of tensors. Whatever does not
   fit raises `InputError`, which names the call, what came, what was expected, and the cure.

A step of gradient descent:

    >>> import torch
    >>> import fmeta
    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> optimizer = fmeta.sgd(0.1)
    >>> updates, state = optimizer.update({"w": torch.tensor([10.0, 0.0])}, optimizer.init(params), params)
    >>> fmeta.tree.add(params, updates)
    {'w': tensor([0., 2.])}

Numbers from a key:

    >>> key = fmeta.key(0)
    >>> first, second = fmeta.normal(fmeta.fold(key, 1), (3,)), fmeta.normal(fmeta.fold(key, 2), (3,))
    >>> torch.equal(first, second), torch.equal(first, fmeta.normal(fmeta.fold(key, 1), (3,)))
    (False, True)
"""

from fmeta.core import tree
from fmeta.core._checks import InputError
from fmeta.core._inner import trajectory
from fmeta.core._losses import accuracy, cross_entropy, mse, weighted_mean
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
from fmeta.core._random import bits, choice, fold, key, normal, permutation, randint, split, uniform
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
    Parts,
    Pictures,
    PythonSource,
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
    "Optimizer", "Output", "PartialSampler", "Parts", "Pictures", "Precision", "PythonSource", "Solver", "Stage",
    "Staged", "Task", "Tree", "WeighingSteps", "accuracy", "adam", "adamw", "bits", "cg", "chain", "choice",
    "clip_by_global_norm", "cosine_decay", "cross_entropy", "direct", "eager", "fold", "key", "linear_decay",
    "loss_weights_of", "masked", "momentum", "mse", "neumann", "normal", "per_step", "permutation", "randint",
    "rmsprop", "sgd", "split", "step_decay", "trajectory", "tree", "uniform", "weighted_mean", "with_precision",
]  # fmt: skip
