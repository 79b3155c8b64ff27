"""Meta-training: the step, the loop, and what it keeps."""

from fmeta.training._checkpoint import best_checkpoint, checkpoints, load_checkpoint, save_checkpoint
from fmeta.training._fit import NonFiniteError, Progress, fit
from fmeta.training._trainer import Trainer, TrainState, trainer

__all__ = [
    "NonFiniteError", "Progress", "TrainState", "Trainer", "best_checkpoint", "checkpoints", "fit",
    "load_checkpoint", "save_checkpoint", "trainer",
]  # fmt: skip
