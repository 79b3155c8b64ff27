"""Networks as `Model` factories."""

from fmeta.models._backbone import backbone, replace_layer
from fmeta.models._conv import conv2, conv4
from fmeta.models._from_module import from_module
from fmeta.models._head import with_head
from fmeta.models._layers import avg_pool2x2
from fmeta.models._mlp import mlp
from fmeta.models._resnet import resnet12
from fmeta.operators._pool import max_pool2x2

__all__ = [
    "avg_pool2x2", "backbone", "conv2", "conv4", "from_module", "max_pool2x2", "mlp", "replace_layer", "resnet12",
    "with_head",
]  # fmt: skip
