"""The folder of a run.

recipe.json       the options of every part of the experiment, and the scope that was compiled
metrics.jsonl     a line of means every log_every meta-steps
checkpoints/      the last and the best state
evaluation.json   what the test found at the end; evaluation.safetensors, the same task by task
adaptation.png    its plot
report.html       the page of `fmeta report`
weights.*         the file of `fmeta export`
tensorboard/      metrics.jsonl and the plot as events, where TensorBoard is installed
.lock             held by the process that trains
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmeta._errors import InputError
from fmeta._version import __version__
from fmeta.core import Task, Tree, tree
from fmeta.execution import Scope
from fmeta.runs._experiment import Experiment, experiment, fields_in
from fmeta.runs._find import distribution_of, recipe_object, recipe_points
from fmeta.runs._options import OptionError, check_value
from fmeta.runs._processes import launch
from fmeta.training._checkpoint import checkpoints
from fmeta.training._run_files import write_whole

DIGEST = "digest of the experiment"  # among the facts of a checkpoint
_FORMAT = 2  # of recipe.json; version 0.1.0 wrote none


class Run(NamedTuple):
    """A run's folder and what it holds."""

    folder: Path
    experiment: Experiment
    scope: str  # what was compiled
    earlier: tuple[str, ...] = ()  # digests of experiments that fmeta itself has changed into this one
    iterations: int | None = None  # of a run of one's own Python code, as far as it has come; None: the experiment's
    support: dict[str, list[int]] | None = None  # shape of each leaf of an example's x; None: not known


def new_folder(of: Experiment) -> Path:
    return Path("runs", f"{of.recipe.name}-{of.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}")


def shapes_of(x: Tree) -> dict[str, list[int]]:
    """The shape of each leaf of an example's x, by name, from leaves [..., example, ...] with one axis in front."""
    return {name: list(leaf.shape[1:]) for name, leaf in tree.named_leaves(x).items()}


def create_run(of: Experiment, scope: str, folder: Path, tasks: Task) -> Run:
    """Makes the folder of a new run, of which `tasks` are some.

    Raises InputError where one is there, or it cannot be written.
    """
    if (folder / "recipe.json").exists():
        raise InputError(
            f"train(run_dir={str(folder)!r}): the folder already holds a run; expected a new one; "
            "add --resume to go on with it, or choose another folder"
        )
    run = Run(folder, of, scope, support=shapes_of(tree.tree_map(lambda t: t[0], tasks.support.x)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_experiment(folder / "recipe.json", run)
    except OSError as error:
        raise _closed(folder, error) from error
    return run


def open_run(folder: str | Path) -> Run:
    """A run as its folder tells it.

    Raises InputError where the folder holds none, a damaged one, one of a recipe that is not installed, or of a version
    of fmeta that wrote other files; and where recipe.json is not what the checkpoints were trained by.
    """
    folder = Path(folder)
    try:
        run = read_experiment(folder / "recipe.json")._replace(folder=folder)
    except OSError as error:
        raise InputError(f"run {str(folder)!r}: no recipe.json there{_without_recipe(folder)}") from error
    known = (run.experiment.digest(), *run.earlier)
    for step, facts in checkpoints(folder / "checkpoints"):
        trained = facts.get(DIGEST, known[0])
        if trained not in known:
            raise InputError(
                f"run {str(folder)!r}: recipe.json was edited by hand: the checkpoint of step {step} was trained by "
                "other options; expected what fmeta wrote; bring the old values back, or train a new run"
            )
    return run


def _without_recipe(folder: Path) -> str:
    """What a folder without recipe.json is, and what may have been meant."""
    saved = checkpoints(folder / "checkpoints")
    if saved:
        newest = folder / "checkpoints" / f"{saved[-1][0]:08d}"
        return (
            ", though checkpoints: fmeta.fit trained it from Python code without recipe=…; expected the folder of a "
            "run of fmeta train, or of fit(recipe='module:object'), which may be said with resume=True later too; in "
            f"Python its state is fmeta.load_checkpoint({str(newest)!r}, like), with like of trainer.init(key)"
        )
    above = next((p for p in (folder.parent, folder.parent.parent) if checkpoints(p / "checkpoints")), None)
    if above is not None and folder.exists():
        return f"; expected the folder of a run; give {above}, to which it belongs, and choose by checkpoint=…"
    return "; expected the folder of a run"


def read_experiment(file: Path) -> Run:
    """What a recipe.json, or the best.json of a study, holds.

    Raises InputError where it is damaged or of another version, OSError where it cannot be read.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored.get("format") != _FORMAT:
            raise InputError(
                f"{file}: written by fmeta {stored.get('fmeta', 'of an unknown version')}, whose runs this version "
                f"cannot read; expected format {_FORMAT}; use that version for it, or train it again"
            )
        reference = stored["recipe"].get("object", "")
        kind = recipe_object(reference) if reference else _installed(stored["recipe"])
        options: dict[str, Any] = {}
        for part in ("recipe", "learner", "gradient", "run"):
            found = stored[part] if part == "run" and not reference else stored.get(part) or {}
            values = {n: tuple(v) if isinstance(v, list) else v for n, v in found.get("options", {}).items()}
            named: dict[str, Any] = {part: found["name"]} if part in ("learner", "gradient") and "name" in found else {}
            options = {**options, **values, **named}
        found = experiment(kind, reference=reference, **options)
        scope, earlier = _known_scope(stored.get("scope", "none")), tuple(stored.get("earlier", ()))
        # what `fit` wrote from one's own code has no options of the run
        saved = checkpoints(file.parent / "checkpoints") if reference and "run" not in stored else []
        return Run(file.parent, found, scope, earlier, saved[-1][0] if saved else None, stored.get("support"))
    except OptionError as error:
        raise InputError(f"{file} is damaged: {error}; expected what fmeta wrote") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error!r}; expected what fmeta wrote") from error


def write_experiment(file: Path, run: Run, **more: Any) -> None:
    """All of it or nothing; `more` stands beside what `read_experiment` reads."""
    of = run.experiment
    parts = dict[str, Any]()
    for name, part in of.parts():
        values = {f.name: getattr(part, f.name) for f in fields_in(part)}
        parts[name] = {**({} if name == "run" else {"name": part.name}), "options": values}
    where = {"object": of.reference} if of.reference else {"from": distribution_of(of.recipe.name)}
    stored: dict[str, Any] = {
        "format": _FORMAT,
        "fmeta": __version__,
        "torch": str(torch.__version__),
        "scope": run.scope,
        **parts,
        "recipe": {**parts["recipe"], **where},
        **({"earlier": list(run.earlier)} if run.earlier else {}),
        **({"support": run.support} if run.support is not None else {}),
        **({"launch": launch()} if launch() else {}),
        **more,
    }
    write_whole(file, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


def differences(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """Options that decide the run and differ: name -> (old, new). Without a schedule more iterations are none."""
    was, now, movable = old.options(), new.options(), old.movable()
    differ = {
        name: (was.get(name), now.get(name))
        for name in {**was, **now}
        if name not in movable and was.get(name) != now.get(name)
    }
    if old.recipe.name != new.recipe.name:
        differ = {"recipe": (old.recipe.name, new.recipe.name), **differ}
    if new.run.iterations > old.run.iterations and old.run.outer_schedule == "constant":
        differ.pop("iterations", None)
    return differ


def check_resume(run: Run, asked: Experiment) -> None:
    """Raises InputError for a run of one's own Python code, and with all options that differ and may not."""
    if run.iterations is not None:
        raise InputError(
            f"train(resume {str(run.folder)!r}): fmeta.fit trained it from Python code, whose sampler and optimizer "
            "the folder does not hold; expected a run of fmeta train; go on with it by the same call of fit, with "
            "resume=True"
        )
    differ = differences(run.experiment, asked)
    if differ:
        listed = ", ".join(f"{name}: {old!r} in the run, {new!r} asked for" for name, (old, new) in differ.items())
        raise InputError(
            f"train(resume {str(run.folder)!r}): the recipe differs: {listed}; expected the recipe of the run; "
            "leave these options out, or start a new run"
        )


def change_run(run: Run, asked: Experiment) -> Run:
    """The run with another experiment, which `check_resume` has let pass. Its figures are to be measured again."""
    old, new = run.experiment.digest(), asked.digest()
    earlier = tuple(dict.fromkeys((*run.earlier, *([old] if old != new else []))))
    changed = run._replace(experiment=asked, earlier=earlier)
    try:
        for name in ("evaluation.json", "evaluation.safetensors"):
            (run.folder / name).unlink(missing_ok=True)
        write_experiment(run.folder / "recipe.json", changed)
    except OSError as error:
        raise _closed(run.folder, error) from error
    return changed


def _known_scope(scope: Any) -> Any:
    check_value("scope", scope, Scope)
    return scope


def _installed(stored: dict[str, Any]) -> Any:
    name = stored["name"]
    if name not in recipe_points():
        package = stored.get("from") or "the package that brings it"
        raise InputError(
            f"recipe {name!r} is not installed here; the run was made with that of {package}; install "
            f"{package.partition(' ')[0] if stored.get('from') else 'it'} again"
        )
    return name


def _closed(folder: Path, error: OSError) -> InputError:
    return InputError(f"train(run_dir={str(folder)!r}): {error}; expected a folder that can be written")
