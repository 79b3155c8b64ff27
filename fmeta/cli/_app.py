"""The commands of `fmeta`, and those that take few lines."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

import fmeta
from fmeta.cli import _show as show
from fmeta.cli._ablate import ablate_command
from fmeta.cli._compare import compare_command
from fmeta.cli._export import export_command
from fmeta.cli._predict import predict_command
from fmeta.cli._recipe import Recipe
from fmeta.cli._recipes import RECIPES, Sinusoid, recipe_class
from fmeta.cli._report import report_command
from fmeta.cli._run import open_run, read_recipe
from fmeta.cli._train import train_run
from fmeta.cli._trained import LoadOptions, load, measure
from fmeta.cli._tune import tune_command
from fmeta.core import InputError, fold
from fmeta.core._checks import nearest
from fmeta.execution import OutOfMemoryError
from fmeta.execution._interrupt import interruptible
from fmeta.gradients import check_meta_grad
from fmeta.training import NonFiniteError, RanksDifferError, SaveError
from fmeta.training._ranks import OtherRankError

_USAGE = f"""usage: fmeta COMMAND

  fmeta train [RECIPE] [--field value ...]     train, then evaluate; --help lists the fields
  fmeta train --resume --run-dir RUN           go on with a run
  fmeta train --recipe FILE                    by the recipe in a file, such as best.json of tune
  torchrun --nproc-per-node N -m fmeta train RECIPE --run-dir RUN [...]   over N processes
  fmeta evaluate RUN [--tasks N] [--steps K]   the test figures of a run; --inductive: query by query too
  fmeta compare RUN RUN ...                    several runs on the same test tasks
  fmeta report RUN [--out FILE]                one page on a run: curves, sample episodes, confusions, recipe
  fmeta ablate RECIPE --field a,b --seeds 3    every combination, over seeds
  fmeta tune RECIPE --trials N --field 0.1:1   the best values of some fields, on the validation tasks
  fmeta predict RUN --support DIR --query DIR   your own pictures, by a few of each class
  fmeta export RUN --to torch|safetensors      the weights in one file, for use without fmeta
  fmeta check [RECIPE] [--field value ...]     is the recipe's meta-gradient right?

recipes: {", ".join(RECIPES)} (default: {Sinusoid.name})"""

errors = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the run is kept."""

    run_dir: Path | None = None
    """folder of the run; a new one below runs/ if left out"""
    resume: bool = False
    """go on with the run in --run-dir"""
    tensorboard: bool = True
    """write events for TensorBoard too, where it is installed"""
    recipe: Path | None = None
    """file whose fields stand in for the defaults: best.json of a study, or recipe.json of a run"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(LoadOptions):
    """The test figures of a run, by the protocol it was trained with."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    tasks: int | None = None
    """test tasks; the recipe's number if left out"""
    steps: tuple[int, ...] | None = None
    """adaptation steps after which to measure; the recipe's if left out"""
    inductive: bool = False
    """measure each query example by itself too: what the network owes to seeing them together"""
    json: bool = False
    """print JSON in place of the table"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 where training broke off, 2 for bad input, 130 for Ctrl-C.

    SIGTERM ends training and `tune` as Ctrl-C does, with status 143, and every other command at once.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "compare": compare_command,
        "ablate": lambda words: ablate_command(*_recipe_name(words)),
        "tune": lambda words: tune_command(*_recipe_name(words)),
        "predict": predict_command,
        "report": report_command,
        "export": export_command,
        "check": _check,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if arguments[0] == "--version":
        print(fmeta.__version__)
        return 0
    try:
        if arguments[0] not in commands:
            raise InputError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], commands)}")
        _check_no_empty(arguments)
        with interruptible():
            commands[arguments[0]](arguments[1:])
    except OtherRankError:
        return 1  # it has said why
    except InputError as error:
        errors.print(f"fmeta: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except (NonFiniteError, SaveError, OutOfMemoryError, RanksDifferError) as error:
        errors.print(f"fmeta: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except BrokenPipeError:  # whoever reads the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        why = f"fmeta: {error}; expected files and folders that can be read and written"
        errors.print(why, markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _check_no_empty(words: list[str]) -> None:
    """An empty folder would be the current one."""
    for before, word in itertools.pairwise(words):
        option, assigned, value = word.partition("=")
        if not word or (option.startswith("--") and assigned and not value):
            raise InputError(
                f"{words[0]}: an empty text after {option or before}; expected a value there, or neither; "
                "is a variable of the shell not set?"
            )


def _train(arguments: list[str]) -> None:
    recipe, options = _parse_train(arguments)
    train_run(recipe, options.run_dir, options.resume, events=options.tensorboard)


def _evaluate(arguments: list[str]) -> None:
    options = tyro.cli(EvaluateOptions, args=arguments, prog="fmeta evaluate")
    trained = load(options.run, options)
    tasks = options.tasks if options.tasks is not None else trained.recipe.eval_tasks
    if tasks < 2:
        raise InputError(f"evaluate(tasks={tasks}): expected at least 2, for an interval")
    result, metric = measure(trained, tasks, options.steps, inductive=options.inductive), trained.recipe.metric()
    if options.json:
        print(json.dumps(result.summary()))
        return
    show.console.print(show.evaluation_table(result, metric))
    if options.inductive:
        show.console.print(show.alone_table(result, metric))
    if result.classes:
        show.console.print(show.class_table(result))
        confused = "; ".join(f"{name} for {other} ({count})" for name, other, count in result.classes.confused(5))
        show.say(f"most often confused at adaptation step {result.steps[-1]}: {confused or 'none'}")


def _check(arguments: list[str]) -> None:
    name, rest = _recipe_name(arguments)
    recipe = _parse(recipe_class(name), rest, f"fmeta check {name}")
    learner = recipe.build_learner()
    tasks = recipe.sampler("train")(fold(recipe.key(), 1), min(recipe.meta_batch, 4))
    report = check_meta_grad(learner, learner.init(recipe.key()), tasks, recipe.meta_gradient())
    show.console.print(show.report_table(report))


def _recipe_name(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return Sinusoid.name, arguments


def _parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,), **given)


def _parse_train(arguments: list[str]) -> tuple[Recipe, RunOptions]:
    """The recipe and where it runs. A resumed run's own recipe, or that of a file, stands in for the defaults."""
    name, rest = _recipe_name(arguments)
    start = _stored_recipe(rest)
    if start is not None and rest is not arguments and start.name != name:
        where = _value_of(rest, "--recipe") or _value_of(rest, "--run-dir")
        raise InputError(f"train({name}): the recipe in {where!r} is {start.name}, not {name}; leave {name} out")
    kind = recipe_class(name) if start is None else type(start)
    both = dataclasses.make_dataclass(
        "Train", [("recipe", kind), ("options", RunOptions)], frozen=True, namespace={"__doc__": kind.__doc__}
    )
    parsed = _parse(both, rest, f"fmeta train {kind.name}", both(start or kind(), RunOptions()))
    return parsed.recipe, parsed.options


def _stored_recipe(arguments: list[str]) -> Recipe | None:
    """What --resume or --recipe stand for."""
    resume, file, folder = "--resume" in arguments, _value_of(arguments, "--recipe"), _value_of(arguments, "--run-dir")
    if resume and file is not None:
        raise InputError(f"train(resume, recipe={file!r}): a run has its own recipe; leave one of the two out")
    if resume and folder is None:
        raise InputError("train(resume): no run folder given; expected --run-dir RUN beside --resume")
    if resume:
        return open_run(Path(str(folder))).recipe
    try:
        return None if file is None else read_recipe(Path(file))[0]
    except OSError as error:
        raise InputError(f"train(recipe={file!r}): {error.strerror}; expected a recipe file") from error


def _value_of(arguments: list[str], option: str) -> str | None:
    names = (option, option.replace("-", "_").replace("__", "--", 1))
    for i, word in enumerate(arguments):
        for name in names:
            if word == name and i + 1 < len(arguments):
                return arguments[i + 1]
            if word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None
