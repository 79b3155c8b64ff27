"""Laws that every learner and meta-gradient obeys, as functions: for fmeta's tests and for yours.

`fmeta.testing.strategies` has hypothesis strategies; it needs hypothesis, so it is imported by itself.
"""

from fmeta.testing._check_learner import LawError, LawReport, check_learner
from fmeta.testing._laws import LAWS
from fmeta.testing._oracles import distance, finite_difference, plain_meta_grad
from fmeta.testing._random_tasks import random_classification, random_regression

__all__ = [
    "LAWS", "LawError", "LawReport", "check_learner", "distance", "finite_difference", "plain_meta_grad",
    "random_classification", "random_regression",
]  # fmt: skip
