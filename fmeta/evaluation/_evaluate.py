"""`evaluate`: a learner on a fixed list of tasks, step by step."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import InputError, Learner, Task, Tree, tree
from fmeta.core._checks import check_counts, check_meta, check_tasks
from fmeta.core._inner import walk
from fmeta.evaluation._alone import check_alone, measure_alone
from fmeta.evaluation._class_counts import ClassCounts, TaskClasses, check_classes, count_classes
from fmeta.evaluation._classification import Calibration, judge, predict_classes
from fmeta.execution._interrupt import interruptible
from fmeta.execution._memory import check_work
from fmeta.gradients._first_look import check_finite, first_look, some_key, with_keys
from fmeta.operators._over_tasks import over_tasks


class Evaluation(NamedTuple):
    """Query values after adaptation, per task and number of adaptation steps."""

    steps: tuple[int, ...]  # inner steps taken; (0,) for learners that do not step
    values: dict[str, Tensor]  # "loss", the learner's metrics, and what was asked for besides -> [task, step]
    protocol: dict[str, Any]  # what was measured and how; "task list" is the same for the same tasks alone
    calibration: Calibration | None = None  # with `ways` or `classes`
    classes: ClassCounts | None = None  # with `classes`

    def mean(self, name: str) -> list[float]:
        return self.values[name].mean(0).tolist()

    def median(self, name: str) -> list[float]:
        return self.values[name].quantile(0.5, 0).tolist()

    def interval(self, name: str) -> list[float]:
        """Half the width of the normal 95% interval of the mean, 1.96·sd/√tasks.

        Raises InputError for a single task.
        """
        values = self.values[name]
        if len(values) < 2:
            raise InputError(
                f"interval({name!r}): of {len(values)} task; expected at least 2, because one shows no spread; "
                "evaluate more tasks"
            )
        return (1.96 * values.std(0) / math.sqrt(len(values))).tolist()

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for JSON; the intervals of a single task are None."""
        figures = {
            name: {
                "mean": self.mean(name),
                "interval95": self.interval(name) if len(values) > 1 else None,
                "median": self.median(name),
            }
            for name, values in self.values.items()
        }
        calibration = {"calibration error": self.calibration.summary()} if self.calibration else {}
        classes = self.classes.summary() if self.classes else {}
        return {"protocol": self.protocol, "steps": list(self.steps), **figures, **calibration, **classes}


@interruptible()
def evaluate(
    learner: Learner,
    meta: Tree,
    tasks: Task,
    *,
    steps: Sequence[int] | None = None,
    ways: int | None = None,
    classes: TaskClasses | None = None,
    inductive: bool = False,
    chunk: int = 100,
    protocol: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Adapts to each task of a fixed list and measures the query loss and metrics along the way.

    Args:
        learner: what adapts.
        meta: the trained meta-parameters.
        tasks: a batch of tasks; the same list gives the same numbers.
        steps: after how many inner steps to measure, any numbers >= 0, more than in training too; None is the learner's
            own number. A learner without an inner loop is measured once.
        ways: the classes of a task, for a learner that predicts scores of classes `[example, way]`: measures precision,
            recall and F1 too, each the mean over the classes that the query set of the task holds, and the
            calibration of all tasks together. Examples of weight 0 are left out, all others count once; a prediction
            with a NaN is wrong, and makes the calibration error NaN.
        classes: which class each label of each task stands for, int64 `[task, way]`, and the names of all classes, as
            `(sample.classes(key, count), sample.names)` of `tasks.episodes`. Stands for `ways`, and counts what is
            taken for what after the last of the steps.
        inductive: measure "loss alone" and "<metric> alone" too, with each query example predicted by itself, beside
            the support inputs only, and "<metric> gap", the difference that it made to see the query examples together.
            A network that normalises by batch statistics is transductive without it; for one that does not the gap is
            0. It takes a forward pass of the support set for every query example. The learner's loss must heed weights.
        chunk: tasks adapted at a time; it bounds the memory.
        protocol: what else to record beside the numbers (ways, shots, split, seed …).
        progress: called with the tasks that are done and their number, chunk by chunk.

    Raises:
        InputError: bad meta or tasks, steps that are no whole numbers, steps for a learner that takes none, fewer than
            two ways, predictions or labels that do not fit `ways`, classes that do not fit the tasks, support and query
            examples of different shapes with `inductive`.
        OutOfMemoryError: a chunk of tasks does not fit.
    """
    check_meta("evaluate", meta)
    count = check_tasks("evaluate", tasks)
    at = _checked(steps) if steps is not None else (learner.inner.steps if learner.inner else 0,)
    if steps is not None and learner.inner is None:
        raise InputError(f"evaluate(steps={list(at)}): {learner.name} takes no inner steps; leave steps out")
    check_counts("evaluate", chunk=chunk)
    if ways is not None:
        check_counts("evaluate", least=2, ways=ways)
    if classes is not None:
        ways = check_classes(classes, count, ways)
    if inductive:
        check_alone(tasks)
    fingerprint = _fingerprint(tasks)
    tasks = with_keys(tasks, some_key(tasks))
    first_look("evaluate", learner, meta, tree.tree_map(lambda t: t[:1], tasks))

    def one(m: Tree, task: Task) -> tuple[dict[str, Tensor], Tree]:
        measured: dict[int, dict[str, Tensor]] = {}
        logits: dict[int, Tensor] = {}
        for k, fast in enumerate(_path(learner, m, task, max(at))):  # measured on the way, so that none is kept
            if k in at:
                measured[k] = _measured(learner, fast, m, task, inductive)
                if ways:
                    logits[k] = predict_classes(learner, fast, m, task.query.x, ways)
        values = {name: torch.stack([measured[k][name] for k in at]) for name in measured[at[0]]}
        return values, torch.stack([logits[k] for k in at]) if ways else ()

    parts = []
    with torch.no_grad():
        first = tree.tree_map(lambda t: t[:chunk], tasks)
        check_work(
            f"evaluate(chunk={chunk})", "adapting to a chunk of tasks", "lower chunk", over_tasks(one), meta, first
        )
        for begin in range(0, count, chunk):
            piece = tree.tree_map(lambda t, begin=begin: t[begin : begin + chunk], tasks)
            values, logits = over_tasks(one)(meta, piece)
            parts.append((values, judge(logits, piece.query, ways, learner.output) if ways else ()))
            if progress is not None:
                progress(min(begin + chunk, count), count)
    values, judged = tree.tree_map(lambda *leaves: torch.cat(leaves).cpu(), *parts)
    values = {name: value.double() for name, value in values.items()}
    check_finite("evaluate", values["loss"], tasks)
    protocol = {"tasks": count, **(protocol or {}), "task list": fingerprint}
    if not ways:
        return Evaluation(at, values, protocol)
    for name in judged.values:
        if name in values:
            raise InputError(f"evaluate(ways={ways}): {learner.name} has a metric {name!r} of its own; rename it")
    counts = count_classes(judged.truth, judged.predicted, classes) if classes else None
    return Evaluation(at, values | judged.values, protocol, judged.calibration, counts)


def _checked(steps: object) -> tuple[int, ...]:
    """The numbers of steps after which to measure."""
    if isinstance(steps, Integral):
        raise InputError(
            f"evaluate(steps={steps}): expected the numbers of steps after which to measure; say ({steps},)"
        )
    at = tuple(steps) if isinstance(steps, Iterable) else ()
    if not at:
        raise InputError(f"evaluate(steps={steps!r}): expected one number of steps or more, such as (0, 1, 5)")
    for number in at:
        check_counts("evaluate", least=0, steps=number)
    return tuple(map(int, at))


def _path(learner: Learner, meta: Tree, task: Task, steps: int) -> Iterable[Tree]:
    """The fast weights after 0, 1, … steps; of a learner without an inner loop those that it has."""
    if learner.inner is None:
        return [learner.adapt(meta, task.support, task.key)]
    return walk(learner.inner, meta, task.support, task.key, steps)


def _measured(learner: Learner, fast: Tree, meta: Tree, task: Task, inductive: bool) -> dict[str, Tensor]:
    loss, metrics = learner.loss(fast, meta, task.query)
    values = {"loss": loss, **metrics}
    alone = measure_alone(learner, fast, meta, task) if inductive else {}
    gaps = {f"{name} gap": values[name] - value for name, value in alone.items()}
    return values | {f"{name} alone": value for name, value in alone.items()} | gaps


def _fingerprint(tasks: Task) -> str:
    """The same for the same tasks, and for no others."""
    digest = hashlib.sha256()
    for name, leaf in tree.named_leaves(tasks).items():
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}".encode())
        digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
