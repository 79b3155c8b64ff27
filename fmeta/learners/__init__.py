"""Meta-learning algorithms, one file each."""

from fmeta.learners._anil import anil
from fmeta.learners._boil import boil
from fmeta.learners._cavia import append, cavia
from fmeta.learners._fine_tune import FineTuneFast, fine_tune
from fmeta.learners._imaml import imaml
from fmeta.learners._in_context import InContextFast, in_context
from fmeta.learners._maml import maml
from fmeta.learners._maml_plus_plus import MAMLPlusPlusFast, MAMLPlusPlusParams, maml_plus_plus
from fmeta.learners._mann import MANNParams, mann
from fmeta.learners._matching import FullContext, MatchingFast, MatchingParams, matching
from fmeta.learners._meta_curvature import MetaCurvatureParams, meta_curvature
from fmeta.learners._meta_sgd import MetaSGDParams, meta_sgd
from fmeta.learners._parts import encoder_based, gradient_based, with_inner
from fmeta.learners._protomaml import ProtoMAMLFast, protomaml
from fmeta.learners._protonet import protonet
from fmeta.learners._relation import RelationParams, one_hot_error, relation
from fmeta.learners._reptile import reptile
from fmeta.learners._ridge import RidgeParams, ridge
from fmeta.learners._starting_from import starting_from
from fmeta.learners._supervised import supervised
from fmeta.learners._task_encoder import TaskEncoderFast, TaskEncoderParams, task_encoder
from fmeta.learners._transfer import transfer

__all__ = [
    "FineTuneFast", "FullContext", "InContextFast", "MAMLPlusPlusFast", "MAMLPlusPlusParams", "MANNParams",
    "MatchingFast", "MatchingParams", "MetaCurvatureParams", "MetaSGDParams", "ProtoMAMLFast", "RelationParams",
    "RidgeParams", "TaskEncoderFast", "TaskEncoderParams", "anil", "append", "boil", "cavia", "encoder_based",
    "fine_tune", "gradient_based", "imaml", "in_context", "maml", "maml_plus_plus", "mann", "matching",
    "meta_curvature", "meta_sgd", "one_hot_error", "protomaml", "protonet", "relation", "reptile", "ridge",
    "starting_from", "supervised", "task_encoder", "transfer", "with_inner",
]  # fmt: skip
