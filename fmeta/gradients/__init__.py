"""How to differentiate through adaptation: each way is a value."""

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
