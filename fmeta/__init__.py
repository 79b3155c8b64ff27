"""Meta-learning as pure functions: exact, batched and compiled meta-gradients on torch.func."""

from fmeta import execution, models, tasks, testing
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
    Solver,
    Task,
    accuracy,
    adam,
    adamw,
    cg,
    chain,
    clip_by_global_norm,
    convolution,
    cosine_decay,
    cross_entropy,
    direct,
    fold,
    from_module,
    key,
    linear_decay,
    masked,
    momentum,
    mse,
    neumann,
    per_step,
    rmsprop,
    sgd,
    split,
    step_decay,
    trajectory,
    with_precision,
)
from fmeta.evaluation import Evaluation, evaluate
from fmeta.execution import capture, compile
from fmeta.gradients import (
    GradientReport,
    adjoint,
    check_meta_grad,
    chunked,
    difference,
    evolution,
    first_order,
    implicit,
    meta_grad,
    multi_step,
    truncated,
    unrolled,
)
from fmeta.learners import (
    anil,
    boil,
    cavia,
    gradient_based,
    imaml,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    protomaml,
    reptile,
    with_inner,
)
from fmeta.training import NonFiniteError, Trainer, TrainState, fit, load_checkpoint, save_checkpoint, trainer

__version__ = "0.1.0"

__all__ = [
    "At", "Evaluation", "Examples", "GradFn", "GradientReport", "Info", "Inner", "InputError", "Learner",
    "MetaGradient", "Model", "NonFiniteError", "Optimizer", "Solver", "Task", "TrainState", "Trainer", "accuracy",
    "adam", "adamw", "adjoint", "anil", "boil", "capture", "cavia", "cg", "chain", "check_meta_grad", "chunked",
    "clip_by_global_norm", "compile", "convolution", "cosine_decay", "cross_entropy", "difference", "direct",
    "evaluate", "evolution", "execution", "first_order", "fit", "fold", "from_module", "gradient_based", "imaml",
    "implicit", "key", "linear_decay", "load_checkpoint", "maml", "maml_plus_plus", "masked", "meta_curvature",
    "meta_grad", "meta_sgd", "models", "momentum", "mse", "multi_step", "neumann", "per_step", "protomaml", "reptile",
    "rmsprop", "save_checkpoint", "sgd", "split", "step_decay", "tasks", "testing", "trainer", "trajectory",
    "truncated", "unrolled", "with_inner", "with_precision",
]  # fmt: skip
