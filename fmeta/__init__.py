"""Meta-learning as pure functions: exact, batched and compiled meta-gradients on torch.func."""

from fmeta import execution, models, tasks
from fmeta.core import (
    At,
    Examples,
    GradFn,
    Info,
    Inner,
    InputError,
    Learner,
    MetaGradient,
    Model,
    Optimizer,
    Task,
    accuracy,
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    cosine_decay,
    cross_entropy,
    fold,
    from_module,
    key,
    linear_decay,
    momentum,
    mse,
    sgd,
    split,
    step_decay,
    trajectory,
)
from fmeta.evaluation import Evaluation, evaluate
from fmeta.execution import compile
from fmeta.gradients import (
    GradientReport,
    adjoint,
    check_meta_grad,
    difference,
    first_order,
    meta_grad,
    truncated,
    unrolled,
)
from fmeta.learners import anil, gradient_based, maml, meta_sgd, reptile, with_inner
from fmeta.training import NonFiniteError, Trainer, TrainState, fit, load_checkpoint, save_checkpoint, trainer

__version__ = "0.1.0"

__all__ = [
    "At", "Evaluation", "Examples", "GradFn", "GradientReport", "Info", "Inner", "InputError", "Learner",
    "MetaGradient", "Model", "NonFiniteError", "Optimizer", "Task", "TrainState", "Trainer", "accuracy", "adam",
    "adamw", "adjoint", "anil", "chain", "check_meta_grad", "clip_by_global_norm", "compile", "cosine_decay",
    "cross_entropy", "difference", "evaluate", "execution", "first_order", "fit", "fold", "from_module",
    "gradient_based", "key", "linear_decay", "load_checkpoint", "maml", "meta_grad", "meta_sgd", "models",
    "momentum", "mse", "reptile", "save_checkpoint", "sgd", "split", "step_decay", "tasks", "trainer", "trajectory",
    "truncated", "unrolled", "with_inner",
]  # fmt: skip
