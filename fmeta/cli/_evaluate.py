"""`fmeta evaluate`: the test figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmeta.cli._options import OneRun, options


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OneRun):
    """The test figures of a run, by the protocol it was trained with."""

    steps: tuple[int, ...] | None = None
    """adaptation steps after which to measure; the run's if left out"""
    inductive: bool = False
    """measure each query example by itself too: what the network owes to seeing them together"""
    json: bool = False
    """print JSON in place of the table"""


def evaluate_command(arguments: list[str]) -> Callable[[], Any]:
    """Prints the figures, as tables or as JSON."""
    given = options("evaluate", EvaluateOptions, arguments)
    return lambda: _evaluate(given)


def _evaluate(given: EvaluateOptions) -> None:
    import json

    from fmeta.cli import _printing as printing
    from fmeta.runs._load import load, measure

    trained = load(given.run, checkpoint=given.checkpoint, device=given.device, data_dir=given.data_dir)
    tasks = trained.experiment.run.eval_tasks if given.tasks is None else given.tasks
    if not given.json:
        printing.say(f"testing step {trained.step} on {tasks} tasks")
    tell = None if given.json else printing.say
    result = measure(trained, tasks, given.steps, inductive=given.inductive, tell=tell)
    metric = trained.experiment.recipe.metric
    if given.json:
        print(json.dumps(result.summary()))
        return
    printing.console.print(printing.evaluation_table(result, metric))
    if given.inductive:
        printing.console.print(printing.alone_table(result, metric))
    if result.classes:
        printing.console.print(printing.class_table(result))
        confused = "; ".join(f"{name} for {other} ({count})" for name, other, count in result.classes.confused(5))
        printing.say(f"most often confused at adaptation step {result.steps[-1]}: {confused or 'none'}")
