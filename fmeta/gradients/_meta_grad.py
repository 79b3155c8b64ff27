"""`meta_grad`: the one way to ask for a meta-gradient."""

from __future__ import annotations

from inspect import signature
from types import FunctionType

import torch

from fmeta.core._checks import InputError, check_meta, check_tasks, nearest
from fmeta.core._torch import watched
from fmeta.core._types import Info, Learner, MetaGradient, Stage, Staged, Task, Tree, eager
from fmeta.core.tree import tree_map
from fmeta.gradients._first_look import first_look
from fmeta.operators._explain import explained

_NAMES = (
    "adjoint",
    "chunked",
    "difference",
    "evolution",
    "first_order",
    "implicit",
    "skipping",
    "truncated",
    "unrolled",
)


def meta_grad(learner: Learner, gradient: MetaGradient | None = None, stage: Stage = eager) -> Staged:
    """`(meta, tasks) -> (meta-gradient, Info)` for a batch of tasks.

    Args:
        learner: what adapts.
        gradient: how to differentiate through the adaptation; None is the learner's own (its paper's).
        stage: wraps each piece of the work; `fmeta.compile` compiles the pieces and leaves the loop to Python. To
            compile everything as one graph leave it alone and compile the returned function.

    Raises:
        InputError: a meta-gradient that does not fit the learner, parameters that require grad or are not floating,
            tasks without a common task axis, a network that torch cannot differentiate as often as it must.
    """
    chosen = gradient or learner.gradient
    if isinstance(chosen, FunctionType) and signature(chosen).return_annotation in ("MetaGradient", MetaGradient):
        name = chosen.__name__
        raise InputError(f"meta_grad(gradient={name}): got the factory; expected a meta-gradient; call it: {name}(…)")
    if not callable(chosen):
        raise InputError(
            f"meta_grad(gradient={chosen!r}): expected a meta-gradient, a value such as fmeta.adjoint(); "
            + nearest(str(chosen), _NAMES)
        )
    grads, looked = chosen(learner, stage), False

    def check(meta: Tree, tasks: Task) -> None:
        nonlocal looked
        check_meta("meta_grad", meta)
        check_tasks("meta_grad", tasks)
        if not looked and not watched():
            first_look("meta_grad", learner, meta, tree_map(lambda t: t[:1], tasks), finite=False)
            looked = True

    def checked(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
        try:
            if not torch.compiler.is_compiling():
                check(meta, tasks)
            with explained, torch.no_grad():
                return grads(meta, tasks)
        except (NotImplementedError, RuntimeError) as error:
            if "derivative for" not in str(error):
                raise
            said = str(error).splitlines()[0].rstrip(".")
            twice = "_backward" in said
            raise InputError(
                f"meta_grad({learner.name}): {said} in torch, so the network cannot be differentiated"
                + (" twice; expected operations that can; or take first_order()" if twice else "; expected others")
            ) from error

    return Staged(checked, check, lambda stage: meta_grad(learner, gradient, stage))
