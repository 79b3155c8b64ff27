"""`fmeta train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fmeta.cli._choose import Where, choose, named
from fmeta.runs._experiment import Experiment


def train_command(arguments: list[str]) -> Callable[[], Any]:
    """Trains, tests and plots one run."""
    of, where = choose("train", named("train", arguments), Where())
    return lambda: _train(of, where)


def _train(of: Experiment, where: Where) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.runs._train import train

    printing.console.quiet = int(os.environ.get("RANK", 0)) > 0  # of the processes of torchrun the first speaks
    with printing.measurements():
        done = train(of, where.run_dir, resume=where.resume, tell=printing.say, progress=printing.bar(of.run.compile))
    if done.evaluation is not None:
        printing.console.print(printing.evaluation_table(done.evaluation, of.recipe.metric))
        printing.say(f"plot: {done.plot}")
