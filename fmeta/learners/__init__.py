"""Meta-learning algorithms, one file each. Every one is a `fmeta.Learner`, so every meta-gradient that fits it, every
law, `fmeta.fit` and `fmeta.evaluate` apply to it.

| learner | adapts | own meta-gradient |
|---|---|---|
| `maml` | all weights by gradient steps | `unrolled()` (FOMAML: `first_order()`) |
| `meta_sgd` | all weights, with a learned rate each | `unrolled()` |
| `anil` | the weights that match a pattern | `unrolled()` |
| `boil` | all weights but the head's | `unrolled()` |
| `cavia` | a context vector beside the input (`append` puts it there) | `unrolled()` |
| `protomaml` | all weights, and a head that starts from the support's prototypes | `unrolled()` |
| `maml_plus_plus` | all but the norms, with learned rates and norms for each step | `unrolled(multi_step(steps))` |
| `meta_curvature` | all weights, by gradients times learned matrices | `unrolled()` |
| `imaml` | all weights, to the optimum of a proximal problem | `implicit(cg(5))` |
| `reptile` | all weights, on minibatches | `difference()` |
| `protonet` | class means of the features; squared Euclidean or cosine distance | `unrolled()` |
| `matching` | nothing: the support set votes by cosine; with or without full context embeddings | `unrolled()` |
| `relation` | class sums of the features; a learned comparison, by `one_hot_error` | `unrolled()` |
| `ridge` | a ridge regression on the features, in closed form (R2-D2) | `unrolled()` |
| `task_encoder` | an embedding of the support set that modulates the network (FiLM) | `unrolled()` |
| `mann` | an external memory, along a stream of labelled examples | `unrolled()` |
| `fine_tune` | a new linear or cosine head, or all weights, on a trained encoder | `unrolled()` |
| `supervised` | nothing: pretraining on all classes | `unrolled()` |

From one learner to another: `transfer` joins `supervised` pretraining with a learner that adapts what it has learned,
`starting_from` begins with weights that are there, `in_context` lets a network see the support set beside each input,
`with_inner` exchanges the inner problem. `gradient_based` and `encoder_based` make a learner of your own: say where
the fast weights start, which loss they descend, and with which optimizer; or adapt in one pass, without an inner loop.
This is MAML in short (the real one also draws dropout):

    >>> import fmeta
    >>> def short_maml(model, loss, *, optimizer, steps):
    ...     inner = fmeta.Inner(
    ...         start=lambda meta, support, key: meta,
    ...         loss=lambda fast, meta, batch, at: fmeta.weighted_mean(
    ...             loss(model.apply(fast, batch.x), batch.y), batch.weight
    ...         ),
    ...         optimizer=lambda meta: optimizer,
    ...         steps=steps,
    ...     )
    ...     predict = lambda fast, meta, x: model.apply(fast, x)
    ...     return fmeta.gradient_based("maml", model.init, inner, predict, loss, None, fmeta.unrolled())

It is the same algorithm:

    >>> model, meta_batch = fmeta.models.mlp([1, 8, 1]), fmeta.tasks.sinusoid()(fmeta.key(1), 4)
    >>> settings = {"optimizer": fmeta.sgd(0.1), "steps": 2}
    >>> mine, theirs = short_maml(model, fmeta.mse, **settings), fmeta.maml(model, fmeta.mse, **settings)
    >>> meta = theirs.init(fmeta.key(0))
    >>> gradients = [fmeta.meta_grad(learner)(meta, meta_batch)[0] for learner in (mine, theirs)]
    >>> bool(fmeta.tree.global_norm(fmeta.tree.sub(*gradients)) < 1e-6)
    True

A learner is four functions of one task:

    >>> task = fmeta.tree.tree_map(lambda leaf: leaf[0], meta_batch)
    >>> fast = theirs.adapt(meta, task.support, task.key)
    >>> theirs.predict(fast, meta, task.query.x).shape
    torch.Size([10, 1])
"""

from fmeta.learners._anil import anil
from fmeta.learners._boil import boil
from fmeta.learners._cavia import append, cavia
from fmeta.learners._factories import encoder_based, gradient_based, with_inner
from fmeta.learners._fine_tune import FineTuneFast, fine_tune
from fmeta.learners._imaml import imaml
from fmeta.learners._in_context import InContextFast, in_context
from fmeta.learners._maml import maml
from fmeta.learners._maml_plus_plus import MAMLPlusPlusFast, MAMLPlusPlusParams, maml_plus_plus
from fmeta.learners._mann import MANNParams, mann
from fmeta.learners._matching import FullContext, MatchingFast, MatchingParams, matching
from fmeta.learners._meta_curvature import MetaCurvatureParams, meta_curvature
from fmeta.learners._meta_sgd import MetaSGDParams, meta_sgd
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
