"""`meta_grad`: the one way to ask for a meta-gradient."""

from __future__ import annotations

from inspect import signature
from types import FunctionType

import torch

from fmeta.core._checks import InputError, check_meta, check_tasks
from fmeta.core._types import Info, Learner, MetaGradient, Stage, Staged, Task, Tree, eager


def meta_grad(learner: Learner, gradient: MetaGradient | None = None, stage: Stage = eager) -> Staged:
    """`(meta, tasks) -> (meta-gradient, Info)` for a batch of tasks.

    Args:
        learner: what adapts.
        gradient: how to differentiate through the adaptation; None is the learner's own (its paper's).
        stage: wraps each piece of the work; `fmeta.compile` compiles the pieces and leaves the loop to Python. To
            compile everything as one graph leave it alone and compile the returned function.

    Raises:
        InputError: a meta-gradient that does not fit the learner, parameters that require grad or are not floating,
            tasks without a common task axis.
    """
    chosen = gradient or learner.gradient
    if isinstance(chosen, FunctionType) and signature(chosen).return_annotation in ("MetaGradient", MetaGradient):
        name = chosen.__name__
        raise InputError(f"meta_grad(gradient={name}): got the factory; expected a meta-gradient; call it: {name}(…)")
    grads = chosen(learner, stage)

    def check(meta: Tree, tasks: Task) -> None:
        check_meta("meta_grad", meta)
        check_tasks("meta_grad", tasks)

    def checked(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
        if not torch.compiler.is_compiling():
            check(meta, tasks)
        with torch.no_grad():
            return grads(meta, tasks)

    return Staged(checked, check, lambda stage: meta_grad(learner, gradient, stage))
