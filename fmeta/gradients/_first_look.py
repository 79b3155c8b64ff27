"""One eager look at what the caller's own code gives, before anything is compiled or trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmeta.core._checks import InputError
from fmeta.core._random import fold, key, split
from fmeta.core._types import Learner, Task, Tree
from fmeta.core.tree import named_leaves, tree_leaves, tree_map
from fmeta.operators._over_tasks import over_tasks


def first_look(call: str, learner: Learner, meta: Tree, tasks: Task, *, finite: bool = True) -> None:
    """Adapts to copies of the tasks and judges them, once.

    Raises InputError for weights below 0 or all 0; for a loss that is not finite (where `finite`) because numbers of
    the tasks are not; for parameters or inputs that the network changes in place; for a loss or a metric that is not
    one real number for each task; and for whatever the learner itself, the loss and `over_tasks` refuse.
    """
    _check_weights(call, tasks)
    own, given = tree_map(torch.Tensor.clone, (meta, tasks))
    before = _versions(own, given)
    with torch.no_grad():
        try:
            fast = over_tasks(learner.adapt)(own, given.support, given.key)
            loss, metrics = over_tasks(learner.loss, (1,))(fast, own, given.query)
        except InputError as error:
            odd = _odd_dtypes(meta, tasks)
            if odd and "dtype" in str(error):
                raise InputError(f"{call}({learner.name}): {odd}; {error}") from error
            raise
    changed = [name for name, version in _versions(own, given).items() if before[name] != version]
    if changed:
        raise InputError(
            f"{call}({learner.name}): the network changes what it is given in place ({changed[0]}); expected a "
            "function of it; write x = x * 2 for x.mul_(2), and inplace=False at layers that see the input itself"
        )
    for name, value in {"loss": loss, **metrics}.items():
        _check_judgement(call, learner.name, name, value, len(loss))
    if finite:
        check_finite(call, loss, tasks)


def with_keys(tasks: Task, key: Tensor) -> Task:
    """The tasks with keys of their own, drawn from `key` where they have none."""
    if tree_leaves(tasks.key):
        return tasks
    return tasks._replace(key=split(fold(key, "task keys"), len(tree_leaves(tasks)[0])))


def some_key(tasks: Task) -> Tensor:
    """A key that is always the same, where the tasks are."""
    return key(0, tree_leaves(tasks)[0].device)


def check_finite(call: str, losses: Tensor, tasks: Task) -> None:
    """Raises InputError where losses are not finite and numbers of the tasks are not; a mask of −∞ that the network
    takes, or a missing target that the loss leaves out, are none of that."""
    if bool(losses.isfinite().all()):
        return
    for name, leaf in named_leaves(tasks._replace(key=())).items():
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            bad = ~leaf.isfinite()
            task = int(bad.flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"{call}: the loss is not finite, and tasks.{name} holds {int(bad.sum())} numbers that are not, the "
                f"first in task {task}; expected finite ones, in padding too, whose weight is 0; in training "
                "gradient=fmeta.skipping() leaves such tasks out"
            )


def _check_weights(call: str, tasks: Task) -> None:
    for name, weight in (("support", tasks.support.weight), ("query", tasks.query.weight)):
        if isinstance(weight, Tensor):
            low, least = float(weight.min()), float(weight.flatten(1).sum(1).min())
            if low < 0 or not least > 0:
                came = f"{low:g}" if low < 0 else "0 alone in a task"
                raise InputError(
                    f"{call}: tasks.{name}.weight holds {came}; expected weights >= 0, and one above 0 in each task"
                )


def _odd_dtypes(meta: Tree, tasks: Task) -> str:
    """Inputs that are in no dtype of the parameters."""
    dtypes = list(dict.fromkeys(leaf.dtype for leaf in tree_leaves(meta)))
    x = {f"{n}.x": part.x for n, part in (("support", tasks.support), ("query", tasks.query))}
    odd = {n: leaf.dtype for n, leaf in named_leaves(x).items() if leaf.dtype not in dtypes}
    if not odd or not dtypes:
        return ""
    name, dtype = next(iter(odd.items()))
    came, want = (str(each).removeprefix("torch.") for each in (dtype, dtypes[0]))
    return f"tasks.{name} is {came} and the parameters are {want}; expected x.to(torch.{want})"


def _check_judgement(call: str, learner: str, name: str, value: Any, count: int) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != (count,):
        came = f"{value.dtype} {list(value.shape[1:])}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{call}({learner}): {name} is {came} for each task; expected a real number, float []")


def _versions(meta: Tree, tasks: Task) -> dict[str, int]:
    return {name: leaf._version for name, leaf in named_leaves({"meta": meta, "tasks": tasks}).items()}
