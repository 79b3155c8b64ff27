"""Meta-learning algorithms, one file each."""

from fmeta.learners._anil import anil
from fmeta.learners._maml import maml
from fmeta.learners._meta_sgd import MetaSGDParams, meta_sgd
from fmeta.learners._parts import gradient_based, with_inner
from fmeta.learners._reptile import reptile

__all__ = ["MetaSGDParams", "anil", "gradient_based", "maml", "meta_sgd", "reptile", "with_inner"]
