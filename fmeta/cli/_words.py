"""The words of a command line: checked by name and by value in a moment, then parsed by tyro. Needs no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import tyro

from fmeta._errors import InputError
from fmeta.runs._options import OptionError, UnknownOption, check_value, fields_of, spelled_out
from fmeta.runs._search_space import Choice, Range

Unknown = Callable[[str, Any], Exception]  # option, value -> the error for it
_NUMBERS = re.compile(r"[-+.\deE]+:[-+.\deE]+(:\w*)?")  # what cannot be meant as a text, as cuda:0 is


class Words(NamedTuple):
    """Words in order: those before the first option, and each option with its values."""

    free: list[str]
    options: list[tuple[str, list[str]]]  # by field name: inner_lr for --inner-lr

    def value(self, option: str) -> str | None:
        """The last value given for an option."""
        found = [values for name, values in self.options if name == option]
        return " ".join(found[-1]) if found else None

    def without(self, *options: str) -> Words:
        return self._replace(options=[pair for pair in self.options if pair[0] not in options])

    def flat(self) -> list[str]:
        """As a command line again."""
        return [*self.free, *(word for name, values in self.options for word in (spelled(name), *values))]


def split(command: str, words: Sequence[str], flags: Sequence[str] = ()) -> Words:
    """The words by options. `flags` take no value, so that what follows one is free. Raises InputError for an empty
    text, which as a folder would be the current one."""
    found = Words([], [])
    for word in words:
        if word.startswith("--") or word == "-h":
            option, assigned, value = word.partition("=")
            name = "help" if word == "-h" else option.removeprefix("--").replace("-", "_")
            found.options.append((name, [value] if assigned else []))
            if assigned and not value:
                raise _empty(command, option)
        elif not word:
            raise _empty(command, spelled(found.options[-1][0]) if found.options else command)
        elif found.options and found.options[-1][0] not in flags:
            found.options[-1][1].append(word)
        else:
            found.free.append(word)
    return found


def spelled(option: str) -> str:
    """An option as it is typed."""
    owner, dot, bare = option.rpartition(".")
    return f"--{owner}{dot}{bare.replace('_', '-')}"


def _empty(command: str, where: str) -> InputError:
    return InputError(
        f"{command}: an empty text after {where}; expected a value there, or neither; is a variable of the shell not "
        "set?"
    )


# ---- values --------------------------------------------------------------------------------------


def value_of(option: str, texts: Sequence[str], hint: Any) -> Any:
    """What the words after an option mean by the option's type. Raises OptionError where they mean nothing."""
    kind, inside, text = get_origin(hint), get_args(hint), " ".join(texts)
    if kind in (Union, UnionType):
        return value_of(option, texts, next(each for each in inside if each is not type(None)))
    if kind is tuple:
        parts = text.split()
        if not parts:
            raise OptionError(option, text, "expected one or more values")
        return tuple(value_of(option, [part], inside[0]) for part in parts)
    if hint is bool:
        if text.lower() not in ("", "true", "false"):
            raise OptionError(option, text, "expected nothing after it, or true or false")
        return text.lower() != "false"
    if len(texts) != 1:
        raise OptionError(option, text, "expected one value")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            what = "a whole number" if hint is int else "a number"
            raise OptionError(option, text, f"expected {what}") from None
    if kind is Literal:
        check_value(option, text, hint)
        return text
    return hint(text) if hint in (Path, str) else text


def axes_of(words: Words, hints: Mapping[str, Any]) -> tuple[Words, dict[str, list[Any]]]:
    """The words that are the same everywhere, and the options with several values, separated by commas or by |."""
    axes, rest = dict[str, list[Any]](), list[tuple[str, list[str]]]()
    for option, values in words.options:
        text = " ".join(values)
        between = "|" if "|" in text else ","
        if option not in hints or between not in text or hints[option] is Path:
            rest.append((option, values))
            continue
        if get_origin(hints[option]) is tuple and between == ",":
            raise OptionError(
                option,
                text,
                f"each value is several numbers; expected values separated by |, such as {spelled(option)} '4 4|8 8'",
            )
        parts = [part.strip() for part in text.split(between) if part.strip()]
        if not parts:
            raise OptionError(option, text, "no values; expected one or more")
        found = [value_of(option, [part], hints[option]) for part in parts]
        if len(set(found)) < len(found):
            raise OptionError(option, text, "a value is given twice; expected different ones")
        axes[option] = found
    return words._replace(options=rest), axes


def space_of(words: Words, hints: Mapping[str, Any]) -> tuple[Words, dict[str, Range | Choice]]:
    """The words that are the same everywhere, and the options with a range or several values."""
    rest, space = list[tuple[str, list[str]]](), dict[str, Range | Choice]()
    for option, values in words.options:
        text = " ".join(values)
        if hints.get(option) in (int, float) and ":" in text:
            space[option] = _range(option, hints[option], text)
        elif option in hints and _NUMBERS.fullmatch(text):
            raise OptionError(
                option,
                text,
                "it is no option of one number, which a range is for; expected values, separated by | or by commas",
            )
        else:
            rest.append((option, values))
    fixed, axes = axes_of(words._replace(options=rest), hints)
    space |= {option: Choice({spelled_out(v): v for v in values}) for option, values in axes.items()}
    given = [option for option, _ in words.options]
    for option in space:
        if given.count(option) > 1:
            raise OptionError(option, words.value(option), "it is given twice; expected once")
    return fixed, {option: space[option] for option in given if option in space}


def _range(option: str, number: type, text: str) -> Range:
    low, high, *scale = text.split(":")
    try:
        ends = number(low), number(high)
    except ValueError:
        ends = None
    if ends is None or scale not in ([], ["log"]):
        what = "whole numbers" if number is int else "numbers"
        raise OptionError(option, text, f"expected LOW:HIGH or LOW:HIGH:log, {what}")
    try:
        return Range(*ends, log=bool(scale))
    except InputError as error:
        raise OptionError(option, text, str(error)) from error


# ---- what they say -------------------------------------------------------------------------------


def values(words: Words, hints: Mapping[str, Any], unknown: Unknown) -> dict[str, Any]:
    """What the options say, by name; `--no-x` turns x off.

    Raises OptionError for an option that is not there, and for a value that it cannot have.
    """
    found = dict[str, Any]()
    for option, texts in words.options:
        bare = option.removeprefix("no_") if hints.get(option.removeprefix("no_")) is bool else option
        if bare not in hints:
            raise unknown(option, " ".join(texts))
        if option != bare and texts:
            raise OptionError(option, " ".join(texts), "expected nothing after it")
        found[bare] = value_of(option, texts, hints[bare]) if option == bare else False
    return found


def read(prog: str, about: str, parts: Mapping[str, Any], words: Words, unknown: Unknown) -> dict[str, Any]:
    """What the words say, by option; `--help` prints the options and leaves.

    Args:
        prog: the command, for its help.
        about: what the help says first.
        parts: by name, dataclasses of options: an instance, whose values are the defaults, or a class.
        words: the options; free words are for positional fields.
        unknown: makes the error for an option that no part has.
    """
    kinds = {name: part if isinstance(part, type) else type(part) for name, part in parts.items()}
    if words.value("help") is not None:
        fields = [(name, kind) for name, kind in kinds.items() if dataclasses.fields(kind)]
        every = dataclasses.make_dataclass("Options", fields, frozen=True, namespace={"__doc__": about})
        bare = any(isinstance(part, type) for part in parts.values())
        given = {} if bare else {"default": every(**{name: parts[name] for name, _ in fields})}
        tyro.cli(every, args=["--help"], prog=f"fmeta {prog}", config=(tyro.conf.OmitArgPrefixes,), **given)
    options = [field for kind in kinds.values() for field in dataclasses.fields(kind)]
    places = [field for field in options if field.metadata.get("positional")]
    hints = {name: hint for kind in kinds.values() for name, hint in fields_of(kind).items()}
    found = values(words, {n: hint for n, hint in hints.items() if n not in {f.name for f in places}}, unknown)
    many = any(field.metadata["many"] for field in places)
    if len(words.free) > len(places) and not many:
        expected = f"{len(places)}" if places else "options, each with -- in front"
        raise InputError(f"{prog}: {words.free[len(places)]!r} is too much; expected {expected}")
    for field in places[len(words.free) :]:
        raise InputError(f"{prog}: expected {field.name.upper()}, {field.metadata['positional']}")
    for field, word in zip(places, words.free, strict=False):
        found[field.name] = tuple(map(Path, words.free)) if field.metadata["many"] else Path(word)
    for field in options:
        if field.default is dataclasses.MISSING and field.name not in found and field not in places:
            raise InputError(f"{prog}: expected {spelled(field.name)}")
    return found


def flags_of(kinds: Sequence[type]) -> list[str]:
    """The options that take no value."""
    found = [name for kind in kinds for name, hint in fields_of(kind).items() if hint is bool]
    return ["help", *found, *(f"no_{name}" for name in found)]


def no_such(known: Sequence[str]) -> Unknown:
    """The error of a command whose options do not depend on a recipe."""
    return lambda option, value: UnknownOption(option, value, known)
