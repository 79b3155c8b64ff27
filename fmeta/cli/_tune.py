"""`fmeta tune`: the best values of some fields of a recipe, judged on its validation tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fmeta.cli import _show as show
from fmeta.cli._group import ended_by_sigterm
from fmeta.cli._recipe import Recipe
from fmeta.cli._recipes import recipe_class
from fmeta.cli._run import create_run
from fmeta.cli._space import Range, Space, options_of, space_of
from fmeta.cli._study import Study, Trial, answering, known_study, open_study, settled_url
from fmeta.cli._train import fit_run, scope_here
from fmeta.cli._tune_results import conclude, short
from fmeta.core import InputError
from fmeta.core._checks import check_counts
from fmeta.core.tree import tree_leaves
from fmeta.execution import OutOfMemoryError
from fmeta.execution._interrupt import interruptible
from fmeta.training import NonFiniteError, SaveError

_VALIDATIONS = 10  # of a trial, each a chance to prune it
_NOT_TUNED = (
    "device", "threads", "data_dir", "log_every", "save_every", "validate_every", "validation_tasks", "monitor",
    "eval_tasks", "eval_steps",
)  # fmt: skip
_REPLACED = ("--run-dir", "--run_dir", "--trials")  # in the command to go on with


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Looks for the best values of the fields that are given a range, LOW:HIGH or LOW:HIGH:log, or several values.

    A trial is a run that is judged by the recipe's figure on its validation tasks after the last meta-step, and is
    given up where it falls behind the others. Without such a field: the rates of both loops, ten times lower to ten
    times higher, and 1 to 5 inner steps.
    """

    trials: int = 20
    """trials of the study, finished or given up, those of earlier commands included"""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """who proposes: the tree-structured Parzen estimator, chance, or every combination in turn"""
    grid_points: int = 5
    """points that the grid has of a range"""
    workers: int = 1
    """processes that work on the study"""
    storage: str | None = None
    """URL of the database of the trials; study.db in the study's folder if left out"""
    run_dir: Path | None = None
    """folder of the study; one that was begun goes on; a new one below runs/ if left out"""


class _Pruned(Exception):
    """The trial falls behind."""


class _Follow:
    """Reports the validations of a trial, as a logger of `fit`."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.figure = trial, math.nan

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        name = f"validation/{self.trial.recipe.metric()}"
        if name not in values:
            return
        self.figure = values[name]
        if not math.isfinite(self.figure):
            raise NonFiniteError(f"tune: {name} is {self.figure} at step {step}; lower the inner or the outer rate")
        self.trial.optuna.report(self.figure, step)
        if step < self.trial.recipe.iterations and self.trial.optuna.should_prune():
            raise _Pruned(f"given up at step {step}")


def tune_command(name: str, arguments: list[str]) -> None:
    """Works on the study until it has its trials, and writes and prints what came of them.

    Raises InputError, before the folder is made, for a space that does not fit; and where every trial failed.
    """
    options, recipe, space = _parse(name, arguments)
    folder = options.run_dir or Path("runs", f"tune-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if known_study(folder, recipe, space, options.storage) is None:
        _check_space(recipe, space)
    study = open_study(folder, recipe, space, options.storage)
    show.say(f"{recipe.name}: {', '.join(f'{field} {values}' for field, values in space.items())}; study in {folder}")
    given = [word for option in options_of(arguments)[1] if option[0] not in _REPLACED for word in option]
    command = shlex.join(["fmeta", "tune", recipe.name, *given, "--run-dir", str(folder), "--trials"])
    go_on = f"go on with: {command} {options.trials}"
    try:
        with ended_by_sigterm(), interruptible(), answering(f"{study.folder}: {go_on}"):
            with _workers(study, options) as others:
                _work(study, options)
                for process in others:
                    process.join()
            _work(study, options)  # what a process that died has left
            conclude(study, options.trials, options.sampler, options.grid_points, command)
    except (KeyboardInterrupt, SystemExit):
        show.say(f"interrupted; {go_on}")
        raise


def _parse(name: str, words: list[str]) -> tuple[TuneOptions, Recipe, Space]:
    kind = recipe_class(name)
    fixed, space = space_of("tune", kind, words)
    both = dataclasses.make_dataclass(
        "Tune", [("recipe", kind), ("options", TuneOptions)], frozen=True, namespace={"__doc__": TuneOptions.__doc__}
    )
    start, bare = both(kind(), TuneOptions()), (tyro.conf.OmitArgPrefixes,)
    parsed = tyro.cli(both, args=fixed, prog=f"fmeta tune {name}", default=start, config=bare)
    options, recipe = parsed.options, parsed.recipe
    check_counts("tune", trials=options.trials, workers=options.workers)
    if options.grid_points < 2:
        raise InputError(f"tune(grid_points={options.grid_points}): expected at least 2, the ends of a range")
    options = dataclasses.replace(options, storage=settled_url(options.storage))
    return options, recipe, space or _usual_space(recipe)


def _usual_space(recipe: Recipe) -> Space:
    rates = ["outer_lr"] if recipe.build_learner().inner is None else ["inner_lr", "outer_lr"]
    usual = {field: float(getattr(recipe, field)) for field in rates}
    space: Space = {
        field: Range(float(f"{rate / 10:g}"), float(f"{rate * 10:g}"), True) for field, rate in usual.items()
    }
    return space | {"inner_steps": Range(1, 5)} if "inner_lr" in rates else space


def _check_space(recipe: Recipe, space: Space) -> None:
    """Raises InputError for a field that changes no trial or the validation tasks, and where neither end of the space
    fits."""
    for field in space:
        if field in _NOT_TUNED:
            raise InputError(
                f"tune({field}={str(space[field])!r}): it changes where a trial runs, or how it is judged or kept, not "
                "what it learns; expected one value"
            )
    ends = {field: [values.value(end) for end in values.grid(2)] for field, values in space.items()}
    first, last = ({field: values[at] for field, values in ends.items()} for at in (0, -1))
    try:
        dataclasses.replace(recipe, **first).experiment()
    except InputError:
        dataclasses.replace(recipe, **last).experiment()
    tasks = _leaves(recipe, first)
    for field, values in ends.items():
        for value in values:
            others = _leaves(recipe, {**first, field: value})
            if len(tasks) != len(others) or not all(map(_equal, tasks, others)):
                raise InputError(
                    f"tune({field}={str(space[field])!r}): it changes the validation tasks, so that trials could not "
                    "be compared; expected one value"
                )


def _leaves(recipe: Recipe, fields: dict[str, Any]) -> list[torch.Tensor]:
    return tree_leaves(dataclasses.replace(recipe, **fields).validation(2))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


@contextlib.contextmanager
def _workers(study: Study, options: TuneOptions) -> Iterator[list[SpawnProcess]]:
    """All but one of the processes, which is this one. They end here at the latest."""
    spawning, begun = multiprocessing.get_context("spawn"), list[SpawnProcess]()
    try:
        for _ in range(options.workers - 1):
            process = spawning.Process(target=_worker, args=(study.folder, study.recipe, study.space, options))
            process.start()
            begun.append(process)
        yield begun
    finally:
        for process in begun:
            process.terminate()
            process.join()


def _worker(folder: Path, recipe: Recipe, space: Space, options: TuneOptions) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with answering("the first process goes on with what this one leaves"):
                _work(open_study(folder, recipe, space, options.storage), options)
        except SaveError as error:
            show.say(str(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also where it was killed
    os._exit(1)


def _work(study: Study, options: TuneOptions) -> None:
    """Trains trials until there are no more to begin."""
    while (trial := study.claim(options.trials, options.sampler, options.grid_points)) is not None:
        try:
            outcome = _train(study, trial)
        finally:
            trial.lock.release()
        study.keep()
        fields = ", ".join(f"{field} {short(value)}" for field, value in study.fields_of(trial.optuna).items())
        show.say(f"trial {trial.optuna.number}: {fields}: {outcome}")


def _train(study: Study, trial: Trial) -> str:
    """Trains and judges one trial, and says what came of it."""
    recipe, follow = trial.recipe, _Follow(trial)
    try:
        experiment = recipe.experiment()
        fit_run(
            create_run(recipe, scope_here(recipe), trial.folder),
            experiment,
            monitor=experiment.metric,
            validate_every=recipe.validate_every or max(1, recipe.iterations // _VALIDATIONS),
            loggers=[follow],
        )
    except _Pruned as reason:
        study.prune(trial)
        return str(reason)
    except (InputError, NonFiniteError, OutOfMemoryError) as error:
        study.fail(trial, str(error))
        return f"failed: {error}"
    study.finish(trial, follow.figure)
    return f"{experiment.metric} {follow.figure:.4f}"
