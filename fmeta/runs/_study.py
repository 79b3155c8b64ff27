"""The trials of a study, kept by Optuna, which any number of processes may work on.

The folder of a study:

study.json              the experiment, the space, and where the trials are stored
study.db                the trials, where no other storage was asked for
trial-0007/             the folder of a run, trained and validated but not tested
best.json, trials.json  the recipe of the best trial, and what came of each

Who works on a trial holds the lock of its folder, which ends with the process: a trial that is running while nobody
holds it was broken off.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from fmeta.core import InputError, fold, key
from fmeta.runs._experiment import Experiment
from fmeta.runs._folder import Run, read_experiment, write_experiment
from fmeta.runs._grid import Chooser
from fmeta.runs._search_space import Space
from fmeta.training import SaveError
from fmeta.training._run_files import lock_of, write_whole

_WAITS = 60.0  # seconds, while another process writes


class Trial(NamedTuple):
    """One that this process works on."""

    optuna: Any  # optuna.Trial
    experiment: Experiment
    folder: Path
    lock: BaseFileLock  # of the folder, held


class Study(NamedTuple):
    folder: Path
    chooser: Chooser  # with the options that are fixed
    space: Space
    optuna: Any  # optuna.Study

    @property
    def minimises(self) -> bool:
        return self.optuna.direction.name == "MINIMIZE"

    def claim(self, trials: int, sampler: str, grid_points: int) -> Trial | None:
        """The next trial, whose lock is held; None where the study has enough of them, or its grid no more.

        Enough are `trials` that are finished, pruned or running, and also as many that failed. What a sampler proposes
        depends on the recipe's seed, on the number of the trial and on those before it: one process at a time makes the
        same study, however often it stops between two trials.
        """
        with self._lock():
            self._release()
            count = Counter(state_of(trial) for trial in self.trials())
            if count["finished"] + count["pruned"] + count["running"] >= trials or count["failed"] >= trials:
                return None
            self.optuna.sampler = self._sampler(sampler)
            if sampler == "grid" and not count["waiting"]:  # a process may have died before it took what it put there
                left = self._left(grid_points)
                if not left:
                    return None
                self.optuna.enqueue_trial(left[0])
            trial = self.optuna.ask()
            self._propose(trial)
            lock = self._lock_of(trial.number)
            lock.acquire()
            return Trial(trial, self.experiment_of(trial), self._folder(trial.number), lock)

    def finish(self, trial: Trial, value: float) -> None:
        self.optuna.tell(trial.optuna, value)

    def prune(self, trial: Trial) -> None:
        self.optuna.tell(trial.optuna, state=_optuna().trial.TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        trial.optuna.set_user_attr("error", reason)
        self.optuna.tell(trial.optuna, state=_optuna().trial.TrialState.FAIL)

    def trials(self) -> list[Any]:
        """All there are, each an optuna.trial.FrozenTrial."""
        return self.optuna.get_trials(deepcopy=False)

    def ranked(self) -> list[Any]:
        """The finished trials, the best first."""
        sign = 1.0 if self.minimises else -1.0
        return sorted((t for t in self.trials() if state_of(t) == "finished"), key=lambda t: sign * t.value)

    def importance(self) -> dict[str, float]:
        """Shares of the fields in what makes a trial one of the best (Watanabe et al. 2023, PED-ANOVA)."""
        importance = _optuna().importance
        with warnings.catch_warnings(action="ignore"):  # of trials that tie
            return importance.get_param_importances(self.optuna, evaluator=importance.PedAnovaImportanceEvaluator())

    def fields_of(self, trial: Any) -> dict[str, Any]:
        """The tuned fields of a trial, by the types of the recipe."""
        return {field: self.space[field].value(proposed) for field, proposed in trial.params.items()}

    def experiment_of(self, trial: Any) -> Experiment:
        return self.chooser.experiment(self.fields_of(trial))

    def example(self) -> Experiment:
        """An experiment of the study, for what all have in common."""
        return self.chooser.experiment({})

    def _propose(self, trial: Any) -> None:
        """Lets the sampler choose what counts for the learner and the meta-gradient that it chose first."""
        chosen = dict[str, Any]()
        for option in ("learner", "gradient"):
            if option in self.space:
                chosen[option] = self.space[option].propose(trial, option)
        for option in self.chooser.takes({**self.chooser.fixed, **dict.fromkeys(self.space), **chosen}):
            if option in self.space and option not in chosen:
                chosen[option] = self.space[option].propose(trial, option)

    def grid(self, grid_points: int) -> list[dict[str, Any]]:
        """Every combination of the space, with so many points of each range, as they are proposed, each once."""
        axes = [values.grid(grid_points) for values in self.space.values()]
        found = dict[str, dict[str, Any]]()
        for point in itertools.product(*axes):
            given = dict(zip(self.space, point, strict=True))
            taken = self.chooser.takes({**self.chooser.fixed, **given})
            counted = {name: value for name, value in given.items() if name in taken}
            found.setdefault(repr(counted), counted)
        return list(found.values())

    def keep(self) -> None:
        """Writes trials.json, and best.json once a trial has finished."""
        with self._lock():
            best = self.ranked()
            if best:
                of = self.experiment_of(best[0])
                write_experiment(self.folder / "best.json", Run(self.folder, of, of.run.compile))
            recipe = self.chooser.recipe
            facts = {"recipe": recipe.name, "metric": recipe.metric.name}
            stored = {**facts, "trials": [self._described(trial) for trial in self.trials()]}
            write_whole(self.folder / "trials.json", json.dumps(stored, indent=1) + "\n")

    def _described(self, trial: Any) -> dict[str, Any]:
        return {
            "number": trial.number,
            "state": state_of(trial),
            "fields": self.fields_of(trial),
            "value": trial.value,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {}),
        }

    def _sampler(self, name: str) -> Any:
        seed = int(fold(key(self.example().run.seed), len(self.trials()))) % (1 << 32)
        samplers = _optuna().samplers
        return samplers.TPESampler(seed=seed) if name == "tpe" else samplers.RandomSampler(seed=seed)

    def _left(self, grid_points: int) -> list[dict[str, Any]]:
        taken = [trial.params for trial in self.trials() if state_of(trial) != "broken off"]
        return [point for point in self.grid(grid_points) if point not in taken]

    def _release(self) -> None:
        """The trials of processes that have died are broken off."""
        for trial in self.trials():
            if state_of(trial) == "running":
                with contextlib.suppress(Timeout), self._lock_of(trial.number).acquire(timeout=0):
                    self.optuna.tell(trial.number, state=_optuna().trial.TrialState.FAIL, skip_if_finished=True)

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"

    def _lock_of(self, number: int) -> BaseFileLock:
        self._folder(number).mkdir(exist_ok=True)
        return lock_of(self._folder(number))  # `fit` takes the same

    def _lock(self) -> BaseFileLock:
        return FileLock(self.folder / ".lock")


def open_study(folder: Path, chooser: Chooser, space: Space, storage: str | None) -> Study:
    """Begins a study in a folder, or goes on with the one that is there.

    Raises InputError where the folder holds another study or a run, and for a storage that cannot be opened.
    """
    optuna = _optuna()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            known = known_study(folder, chooser, space, storage)
            name, url = known or (folder.resolve().name, storage or f"sqlite:///{folder.resolve() / 'study.db'}")
            database = _database(url)
            if (name in optuna.get_all_study_names(database)) != bool(known):
                raise InputError(
                    f"tune(run_dir={str(folder)!r}, storage={url!r}): the storage holds "
                    f"{'no' if known else 'another'} study {name!r}; expected that of the folder; give another folder"
                )
            study = optuna.create_study(
                storage=database,
                study_name=name,
                direction="minimize" if chooser.recipe.metric.better == "lower" else "maximize",
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
            if not known:
                facts = {"study": name, "storage": storage, "space": {field: str(of) for field, of in space.items()}}
                of = chooser.experiment({})
                write_experiment(folder / "study.json", Run(folder, of, of.run.compile), **facts)
    except OSError as error:
        raise InputError(f"tune(run_dir={str(folder)!r}): {error}; expected a folder that can be written") from error
    return Study(folder, chooser, space, study)


def known_study(folder: Path, chooser: Chooser, space: Space, storage: str | None) -> tuple[str, str] | None:
    """Name and storage of the study that a folder holds, if any.

    Raises InputError that lists what differs in the one asked for, and where optuna is not installed.
    """
    _optuna()
    if (folder / "recipe.json").exists():
        raise InputError(f"tune(run_dir={str(folder)!r}): the folder holds a run; expected a new one, or a study's")
    file = folder / "study.json"
    if not file.exists():
        return None
    old, asked_for = read_experiment(file).experiment, chooser.experiment({})
    stored = json.loads(file.read_text(encoding="utf-8"))
    try:
        name, kept, fields = str(stored["study"]), stored["storage"], dict(stored["space"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged: {error!r}; expected what fmeta wrote") from error
    if old.recipe.name != asked_for.recipe.name:
        raise InputError(
            f"tune({asked_for.recipe.name}): the study in {str(folder)!r} is of {old.recipe.name}; choose another "
            "folder"
        )
    was = {"storage": kept, **_settled(old), **fields}
    asked = {"storage": storage or kept, **_settled(asked_for), **{field: str(of) for field, of in space.items()}}
    differ = [n for n in {**was, **asked} if was.get(n) != asked.get(n)]
    if differ:
        listed = ", ".join(f"{n}: {was.get(n)!r} in the study, {asked.get(n)!r} asked for" for n in differ)
        raise InputError(
            f"tune(run_dir={str(folder)!r}): the study there differs: {listed}; expected the same; repeat its options, "
            "or choose another folder"
        )
    return name, kept or f"sqlite:///{folder.resolve() / 'study.db'}"


def settled_url(url: str | None) -> str | None:
    """The same database, seen from another folder."""
    prefix, _, path = (url or "").partition("///")
    if not prefix.startswith("sqlite") or not path or path.startswith((":", "file:")):
        return url
    return f"{prefix}///{Path(path).resolve()}"


def state_of(trial: Any) -> str:
    """ "finished", "pruned", "failed" (of itself), "broken off" (with its process), "running" or "waiting"."""
    if trial.state.name == "FAIL":
        return "failed" if "error" in trial.user_attrs else "broken off"
    return {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}[trial.state.name]


def _settled(of: Experiment) -> dict[str, Any]:
    """The options that decide a run."""
    return {n: value for n, value in of.options().items() if n not in of.movable()}


def _database(url: str) -> Any:
    """Raises InputError where it cannot be opened."""
    storages, sqlite = _optuna().storages, url.startswith("sqlite")
    if url in ("sqlite://", "sqlite:///:memory:"):
        raise InputError(
            f"tune(storage={url!r}): it ends with the process; expected a file, such as sqlite:///study.db"
        )
    try:
        waiting = {"connect_args": {"timeout": _WAITS}} if sqlite else {}
        return storages.RDBStorage(url, engine_kwargs=waiting)
    except Exception as error:  # what a URL, a driver or a database can raise
        reason = str(error).splitlines()[0]
        raise InputError(
            f"tune(storage={url!r}): {reason}; expected the URL of a database that answers, such as sqlite:///study.db"
        ) from error


@contextlib.contextmanager
def answering(cure: str) -> Iterator[None]:
    """Raises SaveError, with the cure, where the storage of a study no longer answers."""
    try:
        yield
    except importlib.import_module("optuna").exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise SaveError(f"tune: the storage of the trials failed: {reason}; what it holds is kept; {cure}") from error


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise InputError("tune: optuna is not installed; pip install 'fmeta[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
