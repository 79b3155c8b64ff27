"""Meta-learning algorithms, one file each."""

from fmeta.learners._anil import anil
from fmeta.learners._boil import boil
from fmeta.learners._cavia import append, cavia
from fmeta.learners._imaml import imaml
from fmeta.learners._maml import maml
from fmeta.learners._maml_plus_plus import MAMLPlusPlusFast, MAMLPlusPlusParams, maml_plus_plus
from fmeta.learners._matching import FullContext, MatchingFast, MatchingParams, matching
from fmeta.learners._meta_curvature import MetaCurvatureParams, meta_curvature
from fmeta.learners._meta_sgd import MetaSGDParams, meta_sgd
from fmeta.learners._parts import encoder_based, gradient_based, with_inner
from fmeta.learners._protomaml import ProtoMAMLFast, protomaml
from fmeta.learners._protonet import protonet
from fmeta.learners._relation import RelationParams, one_hot_error, relation
from fmeta.learners._reptile import reptile
from fmeta.learners._ridge import RidgeParams, ridge

__all__ = [
    "FullContext", "MAMLPlusPlusFast", "MAMLPlusPlusParams", "MatchingFast", "MatchingParams", "MetaCurvatureParams",
    "MetaSGDParams", "ProtoMAMLFast", "RelationParams", "RidgeParams", "anil", "append", "boil", "cavia",
    "encoder_based", "gradient_based", "imaml", "maml", "maml_plus_plus", "matching", "meta_curvature", "meta_sgd",
    "one_hot_error", "protomaml", "protonet", "relation", "reptile", "ridge", "with_inner",
]  # fmt: skip
