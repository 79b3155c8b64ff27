"""The task axis: `over_tasks`, and what stands for torch's operators over it.

A learner's functions see one task. `over_tasks` turns them into functions of a batch of tasks, by the one `vmap` in
fmeta, and sees to it that norms, embeddings, attention and recurrent layers have right derivatives of every order, by
whatever name of torch's they are called, and that convolutions whose weights differ by task run as fast as they can: as
a loop, as groups or as a batched matrix product, measured once for each shape and machine and kept in `cache_folder`.
`convolution` fixes one of them; `max_pool2x2` is a pooling without indices. What torch cannot do over tasks ends as an
`InputError` with the layer, the line and a cure.

    >>> import torch
    >>> import fmeta
    >>> def error(weight, task):  # of one task
    ...     return (task.x @ weight - task.y).square().mean()
    >>> tasks = fmeta.Examples(torch.ones(5, 3, 2), torch.zeros(5, 3))  # [task, example, …]
    >>> fmeta.over_tasks(error)(torch.ones(2), tasks)  # the weight is shared: `shared=(0,)`
    tensor([4., 4., 4., 4., 4.])
"""

from fmeta.operators._choices import cache_folder
from fmeta.operators._lowerings import convolution
from fmeta.operators._over_tasks import over_tasks
from fmeta.operators._pool import max_pool2x2

__all__ = [
    "cache_folder", "convolution", "max_pool2x2", "over_tasks",
]  # fmt: skip
