"""Networks as `Model` factories."""

from fmeta.models._conv import conv2, conv4
from fmeta.models._layers import avg_pool2x2, max_pool2x2
from fmeta.models._mlp import mlp

__all__ = ["avg_pool2x2", "conv2", "conv4", "max_pool2x2", "mlp"]
