"""`fmeta COMMAND …`: words in, exit status out. Torch is imported when a command does its work, not before."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fmeta._errors import InputError, nearest
from fmeta._version import __version__
from fmeta.cli._words import spelled, split
from fmeta.runs._options import OptionError, UnknownOption

Work = Callable[[], Any]  # what is left to do after the words were understood

_COMMANDS = {  # command -> the function of fmeta.cli that understands its words
    "train": "_train:train_command",
    "evaluate": "_evaluate:evaluate_command",
    "compare": "_compare:compare_command",
    "report": "_report:report_command",
    "ablate": "_ablate:ablate_command",
    "tune": "_tune:tune_command",
    "predict": "_predict:predict_command",
    "export": "_export:export_command",
    "check": "_check:check_command",
}


def usage() -> str:
    """What `fmeta --help` prints."""
    from fmeta.cli._choose import DEFAULT
    from fmeta.runs._find import recipe_points

    return f"""usage: fmeta COMMAND

  fmeta train [RECIPE] [--option value ...]    train, then evaluate; --help lists the options
  fmeta train RECIPE --learner NAME --help     the options of that learner too
  fmeta train --resume --run-dir RUN           go on with a run
  fmeta train --recipe FILE                    by the options in a file, such as best.json of tune
  fmeta train --recipe FILE.py:NAME            by a recipe of your own
  torchrun --nproc-per-node N -m fmeta train RECIPE --run-dir RUN [...]   over N processes
  fmeta evaluate RUN [--tasks N] [--steps K]   the test figures of a run; --inductive: query by query too
  fmeta compare RUN RUN ...                    several runs on the same test tasks
  fmeta report RUN [--out FILE]                one page on a run: curves, sample episodes, confusions, recipe
  fmeta ablate RECIPE --option a,b --seeds 3   every combination, over seeds
  fmeta tune RECIPE --trials N --option 0.1:1  the best values of some options, on the validation tasks
  fmeta predict RUN --support DIR --query DIR   your own data, by a few examples of each class
  fmeta export RUN --to torch|safetensors      the weights in one file, for use without fmeta
  fmeta check [RECIPE] [--option value ...]    is the recipe's meta-gradient right?

recipes: {", ".join(recipe_points())} (default: {DEFAULT})"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 where the work broke off, 2 for bad input, 130 for Ctrl-C.

    SIGTERM ends training and `tune` as Ctrl-C does, with status 143, and every other command at once.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a screen without a letter shows a question mark
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        if arguments[0] not in _COMMANDS:
            raise InputError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], _COMMANDS)}")
        module, _, name = _COMMANDS[arguments[0]].partition(":")
        work = getattr(importlib.import_module(f"fmeta.cli.{module}"), name)(arguments[1:])
        _run(work)
    except BrokenPipeError:  # whoever reads the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # every error that a user can cause ends in one line
        return _failed(arguments, error)
    return 0


def _run(work: Work) -> None:
    from fmeta.execution._interrupt import interruptible

    with interruptible():
        work()


def _failed(arguments: Sequence[str], error: Exception) -> int:
    """Says what went wrong in one line; returns the exit status."""
    if os.environ.get("FMETA_TRACEBACK"):
        raise error
    if isinstance(error, InputError):
        _say(in_options(arguments, error))
        return 2
    told = sys.modules.get("fmeta.training._ranks")
    if told is not None and isinstance(error, told.OtherRankError):
        return 1  # it has said why
    if isinstance(error, OSError):
        _say(f"{error}; expected files and folders that can be read and written")
    elif type(error).__module__.startswith("fmeta."):
        _say(in_options(arguments, error))
    else:
        what = " ".join(str(error).split()) or "no message"
        _say(f"{arguments[0]}: {type(error).__name__}: {what}; FMETA_TRACEBACK=1 shows where")
    return 1


def _say(text: str) -> None:
    print(f"fmeta: {text}", file=sys.stderr)


_CALL = re.compile(r"^(\w[\w.]*)\(((?:[^()]|\([^()]*\))*)\)(?=[: ])")
_ARGUMENT = re.compile(r"(\w+)=('[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^()]*\)|[^,]+)(?:, |$)")


def in_options(arguments: Sequence[str], error: Exception) -> str:
    """The message as who typed these words reads it: `--ways 30` for `episodes(ways=30)`."""
    if isinstance(error, OptionError):
        known = map(spelled, error.known) if isinstance(error, UnknownOption) else ()
        option = spelled(error.option)
        problem = f"no such option here; {nearest(option, known)}" if known else error.problem
        value = error.value if isinstance(error.value, tuple) else (error.value,)
        return f"{' '.join([arguments[0], option, *map(str, value)]).rstrip()}: {problem}"
    text = str(error)
    call = _CALL.match(text)
    if call is None:
        return text
    typed = {name: _bare(" ".join(values)) for name, values in split(arguments[0], arguments[1:]).options}
    said = [
        f"{spelled(name)} {typed[name]}"
        for name, value in _ARGUMENT.findall(call[2])
        if _bare(value) == typed.get(name)
    ]
    return f"{' '.join([arguments[0], *said])}{text[call.end() :]}" if said else text


def _bare(value: str) -> str:
    """A value as it is typed: without quotes, brackets and commas, and 1.0 as 1."""
    words = re.sub(r"[\[\](),'\"]", " ", value).split()
    return " ".join(word.removesuffix(".0") for word in words)
