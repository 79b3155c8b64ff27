"""Meta-training: the step, the loop, and what it keeps."""

from fmeta.training._checkpoint import best_checkpoint, checkpoints, load_checkpoint, read_checkpoint, save_checkpoint
from fmeta.training._fit import fit
from fmeta.training._keeper import SaveError, claimed, lock_of, read_metrics, write_whole
from fmeta.training._log import Logger
from fmeta.training._ranks import OtherRankError, Ranks, RanksDifferError
from fmeta.training._tensorboard import tensorboard
from fmeta.training._trainer import Trainer, TrainState, trainer
from fmeta.training._watch import NonFiniteError

__all__ = [
    "Logger", "NonFiniteError", "OtherRankError", "Ranks", "RanksDifferError", "SaveError", "TrainState", "Trainer",
    "best_checkpoint", "checkpoints", "claimed", "fit", "load_checkpoint", "lock_of", "read_checkpoint", "read_metrics",
    "save_checkpoint", "tensorboard", "trainer", "write_whole",
]  # fmt: skip
