"""Measuring what adaptation achieves."""

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
