"""Networks as `fmeta.Model` values: `init(key) -> params` and `apply(params, x) -> prediction`, for one task.

- `mlp`, `conv4`, `conv2`, `resnet12`: the networks of the papers. With no output number (`conv4(None)`) a network ends
  in its features, as `fmeta.protonet` and its like want.
- `from_module`: any `torch.nn.Module`, and `to_module` the way back; `backbone`: torchvision's and timm's networks,
  with their weights.
- `with_head` puts a linear or cosine classifier on an encoder, `replace_layer` a new last layer into a module.
- `max_pool2x2` and `avg_pool2x2`: the poolings that `conv4` may take.

Whose statistics a norm takes is a choice: the batch's (transductive, as in MAML), the support set's and TaskNorm's
(`norm="support"`, `"task"`, with `fmeta.in_context`), constants (`"frozen"`), or each example's own (`"group"`).

    >>> import torch
    >>> import fmeta
    >>> model = fmeta.models.mlp([1, 40, 40, 1])
    >>> params = model.init(fmeta.key(0))
    >>> sorted(params)
    ['head.bias', 'head.weight', 'hidden1.bias', 'hidden1.weight', 'hidden2.bias', 'hidden2.weight']
    >>> model.apply(params, torch.zeros(5, 1)).shape
    torch.Size([5, 1])

A network of one's own, with what a pure function must know about its batch norm:

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    >>> model = fmeta.from_module(net, norm="batch")
    >>> model.apply(model.init(fmeta.key(0)), torch.zeros(5, 2)).shape
    torch.Size([5, 3])
"""

from fmeta.models._backbone import backbone, replace_layer
from fmeta.models._conv import conv2, conv4
from fmeta.models._from_module import from_module, to_module
from fmeta.models._head import with_head
from fmeta.models._layers import avg_pool2x2
from fmeta.models._mlp import mlp
from fmeta.models._resnet import resnet12
from fmeta.operators._pool import max_pool2x2

__all__ = [
    "avg_pool2x2", "backbone", "conv2", "conv4", "from_module", "max_pool2x2", "mlp", "replace_layer", "resnet12",
    "to_module", "with_head",
]  # fmt: skip
