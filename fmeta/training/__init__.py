"""Meta-training: the step, the loop, and what it keeps."""

from fmeta.training._checkpoint import load_checkpoint, load_meta, save_checkpoint
from fmeta.training._fit import fit
from fmeta.training._logging import Logger, Logging
from fmeta.training._progress import NonFiniteError
from fmeta.training._ranks import RanksDifferError
from fmeta.training._run_files import SaveError, Saving
from fmeta.training._tensorboard import tensorboard
from fmeta.training._trainer import Trainer, TrainState, trainer, withhold
from fmeta.training._validation import Validation

__all__ = [
    "Logger", "Logging", "NonFiniteError", "RanksDifferError", "SaveError", "Saving", "TrainState", "Trainer",
    "Validation", "fit", "load_checkpoint", "load_meta", "save_checkpoint", "tensorboard", "trainer", "withhold",
]  # fmt: skip
