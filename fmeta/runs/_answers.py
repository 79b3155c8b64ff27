"""What a trained run makes of its test tasks, for people to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core import Tree, trajectory, tree
from fmeta.evaluation import Evaluation, class_shares
from fmeta.runs._load import Trained
from fmeta.runs._recipe import Answered


def shown_steps(trained: Trained, result: Evaluation | None = None) -> tuple[int, ...]:
    """Adaptation steps that are worth a look: before, after one, after the last that is tested."""
    if trained.learner.inner is None:
        return (0,)
    steps = result.steps if result is not None else trained.experiment.run.eval_steps
    return tuple(dict.fromkeys((0, 1, max(1, *steps))))


def answered(trained: Trained, count: int, steps: tuple[int, ...]) -> list[Answered]:
    """The first test tasks, adapted to, with predictions after these steps."""
    source = trained.experiment
    tasks, classes = source.test_tasks(count), source.test_classes(count)
    found = []
    for i in range(count):
        task = tree.tree_map(lambda t, i=i: t[i], tasks)
        names = tuple(classes[1][c] for c in classes[0][i].tolist()) if classes else ()
        with torch.no_grad():
            fast = _adapted(trained, task.support, task.key, steps)
            predictions = {n: trained.learner.predict(f, trained.meta, task.query.x) for n, f in fast.items()}
        found.append(Answered(task, predictions, _shares(trained, predictions[steps[-1]]), names))
    return found


def _adapted(trained: Trained, support: Tree, key: Tree, steps: tuple[int, ...]) -> dict[int, Tree]:
    learner = trained.learner
    if learner.inner is None:
        return {0: learner.adapt(trained.meta, support, key)}
    path = trajectory(learner.inner, at=steps)(trained.meta, support, key)
    return dict(zip(steps, path, strict=True))


def _shares(trained: Trained, prediction: Tree) -> Tensor | None:
    return None if trained.learner.output == "values" else class_shares(trained.learner, prediction)
