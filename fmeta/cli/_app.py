"""The commands: `fmeta train`, `fmeta evaluate`, `fmeta check`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

import fmeta
from fmeta.cli import _show as show
from fmeta.cli._recipe import Recipe
from fmeta.cli._recipes import RECIPES, Sinusoid, recipe_class
from fmeta.cli._run import Run, change_run, check_resume, create_run, open_run
from fmeta.core import InputError, Learner, Tree, fold, nearest
from fmeta.evaluation import Evaluation, evaluate
from fmeta.execution import compiler_problem
from fmeta.gradients import check_meta_grad
from fmeta.training import NonFiniteError, best_checkpoint, checkpoints, fit, load_checkpoint, trainer

_USAGE = f"""usage: fmeta COMMAND

  fmeta train [RECIPE] [--field value ...]     train, then evaluate; --help lists the fields
  fmeta train --resume --run-dir RUN           go on with a run
  fmeta evaluate RUN [--tasks N] [--steps K]   the test figures of a run
  fmeta check [RECIPE] [--field value ...]     is the recipe's meta-gradient right?

recipes: {", ".join(RECIPES)} (default: {Sinusoid.name})"""

console = Console()
errors = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the run is kept."""

    run_dir: Path | None = None
    """folder of the run; a new one below runs/ if left out"""
    resume: bool = False
    """go on with the run in --run-dir"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The test figures of a run, by the protocol it was trained with."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    tasks: int | None = None
    """test tasks; the recipe's number if left out"""
    steps: tuple[int, ...] | None = None
    """adaptation steps after which to measure; the recipe's if left out"""
    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""
    device: str | None = None
    """where to run; the recipe's if left out"""
    data_dir: str | None = None
    """where the data is now; the recipe's if left out"""
    json: bool = False
    """print JSON in place of the table"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 where training broke off, 2 for bad input, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "evaluate": _evaluate, "check": _check}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if arguments[0] == "--version":
        print(fmeta.__version__)
        return 0
    try:
        if arguments[0] not in commands:
            raise InputError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], commands)}")
        commands[arguments[0]](arguments[1:])
    except InputError as error:
        errors.print(f"fmeta: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except NonFiniteError as error:
        errors.print(f"fmeta: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


@contextlib.contextmanager
def _measurements() -> Iterator[None]:
    """Says what fmeta measured and chose."""
    logger, saying = logging.getLogger("fmeta"), _Saying(logging.INFO)
    logger.addHandler(saying)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(saying)


def _train(arguments: list[str]) -> None:
    recipe, options = _parse_train(arguments)
    if options.resume:
        assert options.run_dir is not None
        run = open_run(options.run_dir)
        check_resume(run, recipe)
        experiment = recipe.experiment()
        run = change_run(run, recipe)
    else:
        experiment = recipe.experiment()  # before the folder: bad choices leave none behind
        scope = "none" if compiler_problem() else recipe.compile
        if scope != recipe.compile:
            _say(f"running eager: {compiler_problem()}")
        run = create_run(recipe, scope, options.run_dir)
    recipe = run.recipe
    _say(f"{recipe.name}: {recipe.learner}, compile {run.scope}, run folder {run.folder}")
    found = checkpoints(run.folder / "checkpoints") if options.resume else []
    learner = experiment.learner
    with _measurements(), show.Bar(console, recipe.iterations, found[-1][0] if found else 0) as bar:
        try:
            state = fit(
                learner,
                experiment.optimizer,
                experiment.train,
                key=recipe.key(),
                iterations=recipe.iterations,
                meta_batch=recipe.meta_batch,
                gradient=experiment.gradient,
                scope=run.scope,
                run_dir=run.folder,
                resume=options.resume,
                validate=lambda meta: evaluate(learner, meta, experiment.validation).mean("loss")[0],
                log_every=recipe.log_every,
                save_every=recipe.save_every,
                progress=bar,
            )
        except KeyboardInterrupt:
            _say(f"interrupted; go on with: fmeta train --resume --run-dir {run.folder}")
            raise
    _conclude(run, learner, state.meta, experiment.metric)


def _conclude(run: Run, learner: Learner, meta: Tree, metric: str) -> None:
    result = _test(run.recipe, learner, meta, run.recipe.eval_tasks)
    (run.folder / "evaluation.json").write_text(json.dumps(result.summary(), indent=1) + "\n")
    plot = run.folder / "adaptation.png"
    if metric == "loss":
        show.plot_regression(plot, learner, meta, run.recipe.test_tasks(3), max(1, *run.recipe.eval_steps))
    else:
        show.plot_curve(plot, result, metric)
    console.print(show.evaluation_table(result, metric))
    _say(f"plot: {plot}")


def _test(recipe: Recipe, learner: Learner, meta: Tree, tasks: int, steps: tuple[int, ...] | None = None) -> Evaluation:
    if steps is None and learner.inner is not None:
        steps = recipe.eval_steps
    return evaluate(learner, meta, recipe.test_tasks(tasks), steps=steps, protocol=recipe.facts())


def _evaluate(arguments: list[str]) -> None:
    options = tyro.cli(EvaluateOptions, args=arguments, prog="fmeta evaluate")
    run = open_run(options.run)
    moved = {n: v for n in ("device", "data_dir") if (v := getattr(options, n)) is not None and hasattr(run.recipe, n)}
    recipe = dataclasses.replace(run.recipe, **moved)
    recipe.prepare()
    learner = recipe.build_learner()
    meta = load_checkpoint(_chosen(run.folder / "checkpoints", options.checkpoint), _like(recipe, learner)).meta
    tasks = options.tasks if options.tasks is not None else recipe.eval_tasks
    if tasks < 2:
        raise InputError(f"evaluate(tasks={tasks}): expected at least 2, for an interval")
    result = _test(recipe, learner, meta, tasks, options.steps)
    if options.json:
        print(json.dumps(result.summary()))
    else:
        console.print(show.evaluation_table(result, recipe.metric()))


def _like(recipe: Recipe, learner: Learner) -> Any:
    return trainer(learner, recipe.outer(), recipe.meta_gradient()).init(recipe.key())


def _chosen(folder: Path, which: str) -> Path:
    steps = {str(step): step for step, _ in checkpoints(folder)}
    if steps:
        steps["last"] = max(steps.values())
    best = best_checkpoint(folder)
    if best is not None:
        steps["best"] = best
    if which not in steps:
        raise InputError(
            f"evaluate(checkpoint={which!r}): not in {folder}; {nearest(which, steps) if steps else 'it is empty'}"
        )
    return folder / f"{steps[which]:08d}"


def _check(arguments: list[str]) -> None:
    name, rest = _recipe_name(arguments)
    recipe = _parse(recipe_class(name), rest, f"fmeta check {name}")
    learner = recipe.build_learner()
    tasks = recipe.sampler("train")(fold(recipe.key(), 1), min(recipe.meta_batch, 4))
    report = check_meta_grad(learner, learner.init(recipe.key()), tasks, recipe.meta_gradient())
    console.print(show.report_table(report))


def _recipe_name(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return Sinusoid.name, arguments


def _parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,), **given)


def _parse_train(arguments: list[str]) -> tuple[Recipe, RunOptions]:
    """The recipe and where it runs. A resumed run's own recipe stands in for the defaults."""
    name, rest = _recipe_name(arguments)
    kind, start = recipe_class(name), None
    if "--resume" in rest:
        folder = _value_of(rest, "--run-dir")
        if folder is None:
            raise InputError("train(resume): no run folder given; expected --run-dir RUN beside --resume")
        start = open_run(Path(folder)).recipe
        if rest is not arguments and start.name != name:
            raise InputError(
                f"train(resume {folder!r}): the run's recipe is {start.name}, not {name}; leave {name} out"
            )
        kind = type(start)
    both = dataclasses.make_dataclass(
        "Train", [("recipe", kind), ("options", RunOptions)], frozen=True, namespace={"__doc__": kind.__doc__}
    )
    parsed = _parse(both, rest, f"fmeta train {kind.name}", both(start or kind(), RunOptions()))
    return parsed.recipe, parsed.options


def _value_of(arguments: list[str], option: str) -> str | None:
    names = (option, option.replace("-", "_").replace("__", "--", 1))
    for i, word in enumerate(arguments):
        for name in names:
            if word == name and i + 1 < len(arguments):
                return arguments[i + 1]
            if word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None
