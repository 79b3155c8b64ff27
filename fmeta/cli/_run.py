"""The folder of a run.

recipe.json       the recipe with all its fields, and the scope that was compiled
metrics.jsonl     a line of means every log_every meta-steps
checkpoints/      the last and the best state
evaluation.json   the table printed at the end
adaptation.png    the plot
report.html       the page of `fmeta report`
weights.*         the file of `fmeta export`
tensorboard/      metrics.jsonl and the plot as events, where TensorBoard is installed
.lock             held by the process that trains
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from typeguard import TypeCheckError, check_type

import fmeta
from fmeta.cli._group import launch
from fmeta.cli._recipe import Recipe, differences
from fmeta.cli._recipes import recipe_class
from fmeta.core import InputError
from fmeta.execution._compile import plan
from fmeta.training._run_files import write_whole


class Run(NamedTuple):
    folder: Path
    recipe: Recipe
    scope: str


def new_folder(recipe: Recipe) -> Path:
    return Path("runs", f"{recipe.name}-{recipe.seed}-{time.strftime('%Y%m%d-%H%M%S')}")


def create_run(recipe: Recipe, scope: str, folder: Path) -> Run:
    if (folder / "recipe.json").exists():
        raise InputError(
            f"train(run_dir={str(folder)!r}): the folder already holds a run; expected a new one; "
            "add --resume to go on with it, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_recipe(folder / "recipe.json", recipe, scope)
    except OSError as error:
        raise _closed(folder, error) from error
    return Run(folder, recipe, scope)


def open_run(folder: Path) -> Run:
    """The recipe and scope of a run. Raises InputError where the folder holds none, or a damaged one."""
    try:
        return Run(folder, *read_recipe(folder / "recipe.json"))
    except OSError as error:
        raise InputError(f"run {str(folder)!r}: no recipe.json there; expected the folder of a run") from error


def read_recipe(file: Path) -> tuple[Recipe, str]:
    """The recipe and scope in a file. Raises InputError where it is damaged, OSError where it cannot be read."""
    try:
        stored = json.loads(file.read_text())
        kind = recipe_class(stored["recipe"])
        known = {f.name for f in dataclasses.fields(kind)}
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stored["fields"].items()}
        if fields.keys() - known:
            raise ValueError(f"unknown fields {sorted(fields.keys() - known)}")
        recipe = kind(**fields)
        hints = get_type_hints(kind)
        for name, value in fields.items():
            check_type(value, hints[name])
        return recipe, plan(stored["scope"]).scope
    except (ValueError, KeyError, TypeError, AttributeError, TypeCheckError) as error:
        raise InputError(f"{file} is damaged: {error}; expected what fmeta wrote") from error


def write_recipe(file: Path, recipe: Recipe, scope: str, **more: Any) -> None:
    """All of it or nothing; `more` stands beside what `read_recipe` reads."""
    stored: dict[str, Any] = {
        "recipe": recipe.name,
        "scope": scope,
        "fmeta": fmeta.__version__,
        "torch": str(torch.__version__),
        "fields": dataclasses.asdict(recipe),
        **({"launch": launch()} if launch() else {}),
        **more,
    }
    write_whole(file, json.dumps(stored, indent=1) + "\n")


def check_resume(run: Run, asked: Recipe) -> None:
    """Raises InputError that lists every field that differs and may not."""
    differ = differences(run.recipe, asked)
    if differ:
        listed = ", ".join(f"{name}: {old!r} in the run, {new!r} asked for" for name, (old, new) in differ.items())
        raise InputError(
            f"train(resume {str(run.folder)!r}): the recipe differs: {listed}; expected the recipe of the run; "
            "leave these options out, or start a new run"
        )


def change_run(run: Run, asked: Recipe) -> Run:
    """The run with another recipe, which `check_resume` has let pass. Its figures are to be measured again."""
    try:
        (run.folder / "evaluation.json").unlink(missing_ok=True)
        write_recipe(run.folder / "recipe.json", asked, run.scope)
    except OSError as error:
        raise _closed(run.folder, error) from error
    return run._replace(recipe=asked)


def _closed(folder: Path, error: OSError) -> InputError:
    return InputError(f"train(run_dir={str(folder)!r}): {error}; expected a folder that can be written")
