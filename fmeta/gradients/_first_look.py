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

    Raises InputError for numbers that are not finite (where `finite`), weights below 0 or all 0, inputs that the
    network changes in place, predictions that the loss cannot take, a loss or a metric that is not one real number for
    each task; and for whatever the learner itself, the loss and `over_tasks` refuse.
    """
    check_numbers(call, tasks, finite)
    given = tree_map(torch.Tensor.clone, tasks)
    before = _versions(given)
    with torch.no_grad():
        try:
            fast = over_tasks(learner.adapt)(meta, given.support, given.key)
            prediction = over_tasks(learner.predict, (1,))(fast, meta, given.query.x)
        except InputError as error:
            odd = _odd_dtypes(meta, tasks)
            if odd and "dtype" in str(error):
                raise InputError(f"{call}({learner.name}): {odd}; {error}") from error
            raise
        try:
            loss, metrics = over_tasks(learner.loss, (1,))(fast, meta, given.query)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{call}({learner.name}): the loss cannot take what the model predicts, {_said(prediction)}, and "
                f"targets {_said(given.query.y)}, with a leading task axis ({type(error).__name__}: {error}); expected "
                "what the loss is made for; pick the right part of a tuple or dict at the end of forward"
            ) from error
    changed = [name for name, version in _versions(given).items() if before[name] != version]
    if changed:
        raise InputError(
            f"{call}({learner.name}): the network changes its input in place (tasks.{changed[0]}); expected a function "
            "of its input; write x = x * 2 for x.mul_(2), and inplace=False at layers that see the input itself"
        )
    for name, value in {"loss": loss, **metrics}.items():
        _check_judgement(call, learner.name, name, value, len(loss))


def with_keys(tasks: Task, key: Tensor) -> Task:
    """The tasks with keys of their own, drawn from `key` where they have none."""
    if tree_leaves(tasks.key):
        return tasks
    return tasks._replace(key=split(fold(key, "task keys"), len(tree_leaves(tasks)[0])))


def some_key(tasks: Task) -> Tensor:
    """A key that is always the same, where the tasks are."""
    return key(0, tree_leaves(tasks)[0].device)


def check_numbers(call: str, tasks: Task, finite: bool = True) -> None:
    """Raises InputError for numbers that are not finite, and for weights below 0 or all 0 in a task."""
    for name, leaf in named_leaves(tasks._replace(key=())).items():
        if finite and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            bad = ~leaf.isfinite()
            task = int(bad.flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"{call}: tasks.{name} holds {int(bad.sum())} numbers that are not finite, the first in task {task}; "
                "expected finite ones; in padding too, whose weight is 0"
            )
        if name.endswith(".weight"):
            low, least = float(leaf.min()), float(leaf.flatten(1).sum(1).min())
            if low < 0 or not least > 0:
                came = f"{low:g}" if low < 0 else "0 alone in a task"
                raise InputError(f"{call}: tasks.{name} holds {came}; expected weights >= 0, and one above 0 per task")


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


def _said(value: Tree) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    leaves = ", ".join(f"{n or 'it'}: {_said(leaf)}" for n, leaf in list(named_leaves(value).items())[:4])
    return f"a {type(value).__name__} ({leaves})"


def _versions(tasks: Task) -> dict[str, int]:
    return {name: leaf._version for name, leaf in named_leaves(tasks).items()}
