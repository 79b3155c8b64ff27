"""`tensorboard`: what a run tells, as events for TensorBoard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeta.core import InputError
from fmeta.training._logging import Logger


def tensorboard(folder: str | Path, *, since: int = 0) -> Logger:
    """A logger that writes events into a folder, to be seen with `tensorboard --logdir`.

        fmeta.fit(..., run_dir="runs/a", loggers=[fmeta.tensorboard("runs/a/tensorboard")])

    Numbers become scalars and matplotlib figures images, under their names. The folder is made when the first values
    come, and what a call brings is on disk when it returns. Where events can no longer be written, as on a full disk, a
    warning says so, and training goes on without them.

    Args:
        folder: of one run.
        since: the step of the checkpoint that a resumed run goes on from. What the folder holds of later steps is no
            longer shown.

    Raises:
        InputError: the package tensorboard is not there; and from the logger, a folder that cannot be written, or a
            value that is neither a number nor a figure.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # what its own dependencies deprecate
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"tensorboard: {error}; expected the package tensorboard; pip install 'fmeta[tensorboard]', or leave this "
            "logger out"
        ) from error
    from matplotlib.figure import Figure  # half a second that `import fmeta` need not take

    writer: SummaryWriter | None = None
    broken = False

    def log(step: int, values: Mapping[str, Any]) -> None:
        nonlocal writer, broken
        figures = {name: value for name, value in values.items() if isinstance(value, Figure)}
        numbers = {name: _number(name, value) for name, value in values.items() if name not in figures}
        if broken:
            return
        if writer is None:
            _wait_for_a_new_second(Path(folder))
            try:
                writer = SummaryWriter(str(folder), purge_step=since + 1)
            except OSError as error:
                raise InputError(
                    f"tensorboard(folder={str(folder)!r}): {error}; expected a folder that can be written"
                ) from error
        try:
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)
            for name, figure in figures.items():
                writer.add_figure(name, figure, step, close=False)
            writer.flush()
        except OSError as error:
            broken = True
            news = f"tensorboard(folder={str(folder)!r}): {error}; from step {step} on no events are written"
            warnings.warn(news, stacklevel=2)

    return log


def _wait_for_a_new_second(folder: Path) -> None:
    """Files are read in the order of their names, which begin with whole seconds: one that goes on must come last."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.02)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"tensorboard: {name!r}: {error}; expected a number or a matplotlib figure") from error
