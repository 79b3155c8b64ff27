"""The task axis: `over_tasks`, and what stands for torch's operators over it."""

from fmeta.operators._choices import cache_folder
from fmeta.operators._lowerings import convolution
from fmeta.operators._over_tasks import over_tasks
from fmeta.operators._pool import max_pool2x2

__all__ = [
    "cache_folder", "convolution", "max_pool2x2", "over_tasks",
]  # fmt: skip
