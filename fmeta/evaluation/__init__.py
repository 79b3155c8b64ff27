"""Measuring what adaptation achieves."""

from fmeta.evaluation._adapt import adapt_tasks
from fmeta.evaluation._evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "adapt_tasks", "evaluate"]
