"""What adaptation achieves, with intervals.

- `evaluate` adapts to each task of a fixed list and measures the query loss and the metrics after any numbers of inner
  steps: an `Evaluation`. Told the classes (`ways`, or `classes`, which `fmeta.tasks.episodes` knows), it measures
  precision, recall, F1 and `Calibration` too, and which classes are taken for which (`ClassCounts`);
  `inductive=True` measures what a network owes to seeing the query examples together.
- `compare` is the paired difference of two evaluations of the same tasks: a `Comparison`.
- `adapt_tasks` shows what a learner makes of each task: prototypes, adapted weights, task embeddings.
- `class_shares` turns predictions into probabilities; `bootstrap_means` and `t_interval` are the intervals.

    >>> import fmeta
    >>> learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    >>> tasks = fmeta.tasks.sinusoid()(fmeta.key(1), 50)
    >>> found = fmeta.evaluate(learner, learner.init(fmeta.key(0)), tasks, steps=(0, 1, 5))
    >>> found.values["loss"].shape, len(found.mean("loss")), len(found.interval("loss"))
    (torch.Size([50, 3]), 3, 3)

Is one initialisation better than another, on the same tasks?

    >>> other = fmeta.evaluate(learner, learner.init(fmeta.key(2)), tasks, steps=(0, 1, 5))
    >>> difference = fmeta.compare(found, other, "loss")
    >>> low, high = difference.interval
    >>> low <= difference.mean <= high
    True
"""

from fmeta.evaluation._adapt import adapt_tasks
from fmeta.evaluation._class_counts import ClassCounts
from fmeta.evaluation._classification import Calibration, class_shares
from fmeta.evaluation._compare import Comparison, compare
from fmeta.evaluation._evaluate import Evaluation, evaluate
from fmeta.evaluation._intervals import bootstrap_means, t_interval

__all__ = [
    "Calibration", "ClassCounts", "Comparison", "Evaluation", "adapt_tasks", "bootstrap_means", "class_shares",
    "compare", "evaluate", "t_interval",
]  # fmt: skip
