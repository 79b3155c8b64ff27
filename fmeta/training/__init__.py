"""Meta-training: the step, the loop, and what it keeps."""

from fmeta.training._checkpoint import load_checkpoint, save_checkpoint
from fmeta.training._fit import fit
from fmeta.training._keeper import SaveError
from fmeta.training._log import Logger
from fmeta.training._ranks import RanksDifferError
from fmeta.training._tensorboard import tensorboard
from fmeta.training._trainer import Trainer, TrainState, trainer
from fmeta.training._watch import NonFiniteError

__all__ = [
    "Logger", "NonFiniteError", "RanksDifferError", "SaveError", "TrainState", "Trainer", "fit", "load_checkpoint",
    "save_checkpoint", "tensorboard", "trainer",
]  # fmt: skip
