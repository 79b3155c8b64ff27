"""Query examples predicted alone: what a transductive evaluation owes to seeing them together."""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Learner, Task, Tree, tree
from fmeta.core._losses import weighted_mean


def check_alone(tasks: Task) -> None:
    """A query example must fit behind the support examples."""
    if not tree.tree_leaves(tasks.support):
        raise InputError("evaluate(inductive=True): the tasks have no support set; leave inductive out")
    support, query = (tree.tree_map(lambda t: t[:1, :1], examples[:2]) for examples in (tasks.support, tasks.query))
    if not tree.same_structure(support, query):
        raise InputError(
            "evaluate(inductive=True): examples of support and query differ in structure or shape; expected the same, "
            "because each query example is predicted beside the support examples; leave inductive out"
        )


def measure_alone(learner: Learner, fast: Tree, meta: Tree, task: Task) -> dict[str, Tensor]:
    """Loss and metrics of one task, each query example predicted with the support inputs beside it and nothing else.

    The support examples have weight 0 there, so the learner's loss is that of the query example. One after another,
    because together they would take the memory of support sets in the number of query examples.
    """
    support, query = task.support, task.query
    shots, count = (tree.tree_leaves(examples.x)[0].shape[0] for examples in (support, query))
    last = torch.arange(shots + 1, device=tree.tree_leaves(query.x)[0].device) == shots

    measured = []
    for i in range(count):
        x, y = tree.tree_map(lambda s, q, i=i: torch.cat([s, q[i : i + 1]]), support[:2], query[:2])
        loss, metrics = learner.loss(fast, meta, Examples(x, y, last.float()))
        measured.append({"loss": loss, **metrics})
    return {name: weighted_mean(torch.stack([m[name] for m in measured]), query.weight) for name in measured[0]}
