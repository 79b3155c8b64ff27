"""How to differentiate through adaptation: each way is a value, and any that fits a learner may stand for its own.

| meta-gradient | computes | memory in inner steps |
|---|---|---|
| `unrolled()` | the exact gradient, by reverse mode through everything | steps × activations |
| `adjoint()` | the exact gradient, replaying one step at a time | steps × parameters + one step's activations |
| `truncated(last)` | the second-order term of the last steps only | as adjoint |
| `first_order()` | no second-order term | steps × parameters |
| `implicit(solve)` | the exact gradient at a converged, strongly convex inner problem | one step |
| `difference()` | meta − fast (Reptile); no gradient of the query loss | one step |
| `evolution(sigma, pairs)` | an antithetic estimate from losses alone | no activations |

`meta_grad` makes the function `(meta, tasks) -> (meta-gradient, Info)` of a learner and one of these. `chunked` takes
the meta-batch in slices, exactly and in less memory; `skipping` leaves out tasks that are not finite. The first four
take `loss_weights`, one for the query loss after each inner step (MAML++); `multi_step` makes them. To anneal from
first to second order, give `fmeta.fit` a mapping, `gradient={0: first_order(), 5000: unrolled()}`.

    >>> import fmeta
    >>> learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    >>> meta, tasks = learner.init(fmeta.key(0)), fmeta.tasks.sinusoid()(fmeta.key(1), 4)
    >>> exact, info = fmeta.meta_grad(learner, fmeta.adjoint())(meta, tasks)
    >>> info.losses.shape  # the query loss of each task
    torch.Size([4])

Is a meta-gradient right? `check_meta_grad` holds it against finite differences, which need smooth activations:

    >>> import torch
    >>> smooth = fmeta.maml(fmeta.models.mlp([1, 8, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    >>> for gradient in (fmeta.unrolled(), fmeta.first_order()):
    ...     print(fmeta.check_meta_grad(smooth, meta, tasks, gradient).order)
    exact
    first order
"""

from fmeta.gradients._batched import multi_step
from fmeta.gradients._check import GradientReport, check_meta_grad
from fmeta.gradients._chunked import chunked
from fmeta.gradients._difference import difference
from fmeta.gradients._evolution import evolution
from fmeta.gradients._implicit import implicit
from fmeta.gradients._meta_grad import meta_grad
from fmeta.gradients._replayed import adjoint, first_order, truncated
from fmeta.gradients._skipping import skipping
from fmeta.gradients._unrolled import unrolled

__all__ = [
    "GradientReport", "adjoint", "check_meta_grad", "chunked", "difference", "evolution", "first_order", "implicit",
    "meta_grad", "multi_step", "skipping", "truncated", "unrolled",
]  # fmt: skip
