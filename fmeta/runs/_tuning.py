"""`study`: the best values of some options, judged on validation tasks."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fmeta._errors import InputError
from fmeta.core import tree
from fmeta.core._checks import check_counts
from fmeta.execution import OutOfMemoryError
from fmeta.runs._experiment import Experiment, fields_in
from fmeta.runs._find import recipe_object
from fmeta.runs._folder import create_run
from fmeta.runs._grid import Chooser, as_chooser
from fmeta.runs._options import OptionError
from fmeta.runs._recipe import Recipe
from fmeta.runs._search_space import Choice, Range, Space, as_space
from fmeta.runs._study import Study, Trial, answering, known_study, open_study, settled_url
from fmeta.runs._train import Tell, fit_run, mode_of, scope_here
from fmeta.training import NonFiniteError, SaveError, Validation

_VALIDATIONS = 10  # of a trial, each a chance to prune it
_HOW = ("validation_tasks", "monitor", "compile", "precision")  # how a trial is run and judged, beside what is movable


class Search(NamedTuple):
    """How a study looks for the best values."""

    trials: int = 20  # finished or given up, those of earlier calls included
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # who proposes
    grid_points: int = 5  # points that the grid has of a range
    workers: int = 1  # processes that work on the study
    storage: str | None = None  # URL of the database of the trials; study.db in the folder if None


class _Pruned(Exception):
    """The trial falls behind."""


def study(
    recipe: Experiment | Recipe | Chooser,
    space: Mapping[str, Range | Choice | Sequence[Any]],
    folder: str | Path,
    *,
    search: Search = Search(),  # noqa: B008  (a value that nobody can change)
    tell: Tell | None = None,
) -> Study:
    """Looks for the best values of some options, by Optuna; a study that was begun in the folder goes on.

        of = fmeta.runs.experiment("sinusoid", iterations=100, compile="none")
        space = {"inner_lr": fmeta.runs.Range(1e-3, 1.0, log=True), "inner_steps": [1, 5]}
        found = fmeta.runs.study(of, space, "runs/rates", search=fmeta.runs.Search(trials=3))
        best = found.experiment_of(found.ranked()[0])

    A trial is a run that is judged by the recipe's headline figure on its validation tasks after the last meta-step,
    and is given up where it falls behind the others.

    Args:
        recipe: the experiment whose other options all trials have.
        space: options -> a range, or the values to choose from. `maml.inner_lr` is for maml alone.
        folder: of the study.
        search: how many trials, and who proposes them.
        tell: takes a line for people after each trial.

    Raises:
        InputError: a space that does not fit, before the folder is made; another study, or a run, in the folder.
        SaveError: the storage of the trials no longer answers.
    """
    chooser = as_chooser(recipe)
    axes, place, tell = as_space(space), Path(folder), tell or (lambda text: None)
    if not axes:
        raise InputError("study(space={}): nothing to look for; expected options with a range, or with several values")
    check_counts("study", trials=search.trials, workers=search.workers)
    if search.grid_points < 2:
        raise OptionError("grid_points", search.grid_points, "expected at least 2, the ends of a range")
    search = search._replace(storage=settled_url(search.storage))
    if known_study(place, chooser, axes, search.storage) is None:
        check_space(chooser, axes)
    found = open_study(place, chooser, axes, search.storage)
    with answering(f"the study in {place} can go on"):
        with _workers(found, search) as others:
            _work(found, search, tell)
            for process in others:
                process.join()
        _work(found, search, tell)  # what a process that died has left
        found.keep()
    return found


def usual_space(of: Experiment) -> Space:
    """The rates of both loops, ten times lower to ten times higher, and 1 to 5 inner steps, of those there are."""
    options = of.options()
    if of.recipe.own_optimizer() is not None:
        del options["outer_lr"]
    space: Space = {
        name: Range(float(f"{options[name] / 10:g}"), float(f"{options[name] * 10:g}"), True)
        for name in ("inner_lr", "outer_lr")
        if name in options
    }
    return space | ({"inner_steps": Range(1, 5)} if "inner_steps" in options else {})


def check_space(chooser: Chooser, space: Space) -> None:
    """Raises InputError for an option that changes no trial or the validation tasks, and where neither end fits."""
    example = chooser.experiment({})
    for option in space:
        if option in (*example.movable(), *_HOW) or option in ("eval_tasks", "seed"):
            raise OptionError(
                option,
                str(space[option]),
                "it changes where a trial runs, or how it is judged or kept, not what it learns; expected one value",
            )
    ends = {option: [values.value(end) for end in values.grid(2)] for option, values in space.items()}
    chooser.check([{option: values[at] for option, values in ends.items()} for at in (0, -1)])
    first, last = ({option: values[at] for option, values in ends.items()} for at in (0, -1))
    try:
        chooser.experiment(first).ready()
    except InputError:
        chooser.experiment(last).ready()
    tasks = _leaves(chooser, first)
    for option, values in ends.items():
        for value in values:
            others = _leaves(chooser, {**first, option: value})
            if len(tasks) != len(others) or not all(map(_equal, tasks, others)):
                raise OptionError(
                    option,
                    str(space[option]),
                    "it changes the validation tasks, so that trials could not be compared; expected one value",
                )


def _unset(meta: Any) -> dict[str, float]:
    """`fit_run` puts what it measures in its place."""
    return {}


def _leaves(chooser: Chooser, options: Mapping[str, Any]) -> list[torch.Tensor]:
    return tree.tree_leaves(chooser.experiment(options).validation(2))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


class _Follow:
    """Reports the validations of a trial, as a logger of `fit`."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.figure = trial, math.nan

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        of = self.trial.experiment
        name = f"validation/{of.recipe.metric.name}"
        if name not in values:
            return
        self.figure = values[name]
        if not math.isfinite(self.figure):
            raise NonFiniteError(f"tune: {name} is {self.figure} at step {step}; lower the inner or the outer rate")
        self.trial.optuna.report(self.figure, step)
        if step < of.run.iterations and self.trial.optuna.should_prune():
            raise _Pruned(f"given up at step {step}")


@contextlib.contextmanager
def _workers(study: Study, search: Search) -> Iterator[list[SpawnProcess]]:
    """All but one of the processes, which is this one. They end here at the latest."""
    spawning, begun = multiprocessing.get_context("spawn"), list[SpawnProcess]()
    try:
        for _ in range(search.workers - 1):
            process = spawning.Process(target=_worker, args=(study.folder, _sent(study.chooser), study.space, search))
            process.start()
            begun.append(process)
        yield begun
    finally:
        for process in begun:
            process.terminate()
            process.join()


def _sent(chooser: Chooser) -> Chooser:
    """For another process, which imports a recipe without an entry point from where it stands."""
    if not chooser.reference:
        return chooser
    kind = isinstance(chooser.recipe, type)
    own = {} if kind else {f.name: getattr(chooser.recipe, f.name) for f in fields_in(chooser.recipe)}
    return chooser._replace(recipe=None, fixed={**own, **chooser.fixed})  # type: ignore[arg-type]


def _worker(folder: Path, chooser: Chooser, space: Space, search: Search) -> None:
    if chooser.reference:
        chooser = chooser._replace(recipe=recipe_object(chooser.reference))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with answering("the first process goes on with what this one leaves"):
                _work(open_study(folder, chooser, space, search.storage), search, _print)
        except (SaveError, InputError) as error:
            _print(str(error))


def _print(text: str) -> None:
    print(text, flush=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also where it was killed
    os._exit(1)


def _work(study: Study, search: Search, tell: Tell) -> None:
    """Trains trials until there are no more to begin."""
    while (trial := study.claim(search.trials, search.sampler, search.grid_points)) is not None:
        try:
            outcome = _train(study, trial, tell)
        finally:
            trial.lock.release()
        study.keep()
        fields = ", ".join(f"{option} {short(value)}" for option, value in study.fields_of(trial.optuna).items())
        tell(f"trial {trial.optuna.number}: {fields}: {outcome}")


def _train(study: Study, trial: Trial, tell: Tell) -> str:
    """Trains and judges one trial, and says what came of it."""
    of, follow = trial.experiment, _Follow(trial)
    metric, options = of.recipe.metric, of.run
    try:
        ready = of.ready()
        every = options.validate_every or max(1, options.iterations // _VALIDATIONS)
        judged = Validation(_unset, every, metric.name, mode_of(of, metric.name), options.patience)
        run = create_run(of, scope_here(of, tell), trial.folder, ready.validation)
        fit_run(run, ready, validation=judged, loggers=[follow])
    except _Pruned as reason:
        study.prune(trial)
        return str(reason)
    except (InputError, NonFiniteError, OutOfMemoryError) as error:
        study.fail(trial, str(error))
        return f"failed: {error}"
    study.finish(trial, follow.figure)
    return f"{metric.name} {follow.figure:.4f}"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
