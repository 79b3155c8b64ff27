"""Meta-learning algorithms, one file each."""

from fmeta.learners._anil import anil
from fmeta.learners._boil import boil
from fmeta.learners._cavia import append, cavia
from fmeta.learners._imaml import imaml
from fmeta.learners._maml import maml
from fmeta.learners._maml_plus_plus import MAMLPlusPlusFast, MAMLPlusPlusParams, maml_plus_plus
from fmeta.learners._meta_curvature import MetaCurvatureParams, meta_curvature
from fmeta.learners._meta_sgd import MetaSGDParams, meta_sgd
from fmeta.learners._parts import gradient_based, with_inner
from fmeta.learners._protomaml import ProtoMAMLFast, protomaml
from fmeta.learners._reptile import reptile

__all__ = [
    "MAMLPlusPlusFast", "MAMLPlusPlusParams", "MetaCurvatureParams", "MetaSGDParams", "ProtoMAMLFast", "anil", "append",
    "boil", "cavia", "gradient_based", "imaml", "maml", "maml_plus_plus", "meta_curvature", "meta_sgd", "protomaml",
    "reptile", "with_inner",
]  # fmt: skip
