"""Measuring what adaptation achieves."""

from fmeta.evaluation._evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
