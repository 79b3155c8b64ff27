"""`adapt_tasks`: the fast weights of a batch of tasks."""

from __future__ import annotations

import torch

from fmeta.core import Learner, Task, Tree
from fmeta.core._checks import check_meta, check_tasks
from fmeta.gradients._first_look import some_key, with_keys
from fmeta.operators._over_tasks import over_tasks


def adapt_tasks(learner: Learner, meta: Tree, tasks: Task) -> Tree:
    """What the learner makes of every task: its `fast`, leaves `[task, ...]`.

    Prototypes, adapted weights, contexts, task embeddings: whatever the learner adapts, to look into or to plot.
    """
    check_meta("adapt_tasks", meta)
    check_tasks("adapt_tasks", tasks)
    tasks = with_keys(tasks, some_key(tasks))
    with torch.no_grad():
        return over_tasks(learner.adapt)(meta, tasks.support, tasks.key)
