"""The words of a command line: by options, by type, and errors as who typed them reads them."""

import re
from pathlib import Path
from typing import Literal

import pytest

from fmeta._errors import InputError
from fmeta.cli._app import in_options
from fmeta.cli._words import Words, axes_of, space_of, spelled, split, value_of, values
from fmeta.runs._options import OptionError, UnknownOption
from fmeta.runs._search_space import Choice, Range

HINTS = {"rate": float, "steps": int, "hidden": tuple[int, ...], "on": bool, "kind": Literal["a", "b"], "place": Path}


def test_words_are_split_by_options():
    words = split("train", ["free", "--inner-lr", "0.1", "--on", "too", "--hidden", "4", "4", "--x=1 2"], ["on"])
    assert words.free == ["free", "too"]
    assert words.options == [("inner_lr", ["0.1"]), ("on", []), ("hidden", ["4", "4"]), ("x", ["1 2"])]
    assert words.value("hidden") == "4 4"
    assert words.value("nothing") is None
    assert words.without("x", "on").options == [("inner_lr", ["0.1"]), ("hidden", ["4", "4"])]
    assert split("train", words.flat(), ["on"]).options == words.options
    assert [spelled(option) for option in ("inner_lr", "meta_sgd.inner_lr")] == ["--inner-lr", "--meta_sgd.inner-lr"]


def test_values_have_the_types_of_their_options():
    words = Words([], [("rate", ["1e-3"]), ("hidden", ["4", "8"]), ("no_on", []), ("kind", ["b"]), ("place", ["x y"])])
    assert values(words, HINTS, UnknownOption) == {
        "rate": 1e-3, "hidden": (4, 8), "on": False, "kind": "b", "place": Path("x y"),
    }  # fmt: skip
    assert value_of("steps", ["3"], int | None) == 3
    assert value_of("on", ["true"], bool) is value_of("on", [], bool) is True


@pytest.mark.parametrize(
    ("option", "texts", "problem"),
    [
        ("steps", ["1.5"], "expected a whole number"),
        ("rate", [], "expected one value"),
        ("rate", ["1", "2"], "expected one value"),
        ("place", ["a", "b"], "expected one value"),
        ("hidden", [], "expected one or more values"),
        ("hidden", ["4", "x"], "expected a whole number"),
        ("kind", ["c"], "known: a, b"),
        ("on", ["yes"], "expected nothing after it, or true or false"),
    ],
)
def test_a_value_of_another_type_is_named(option, texts, problem):
    with pytest.raises(OptionError, match=re.escape(problem)):
        value_of(option, texts, HINTS[option])


def test_several_values_and_ranges():
    words = Words([], [("rate", ["0.1,0.2"]), ("hidden", ["4 4|8"]), ("steps", ["3"]), ("place", ["a,b"])])
    rest, axes = axes_of(words, HINTS)
    assert axes == {"rate": [0.1, 0.2], "hidden": [(4, 4), (8,)]}
    assert rest.options == [("steps", ["3"]), ("place", ["a,b"])]
    rest, space = space_of(Words([], [("rate", ["0.1:1:log"]), ("steps", ["1:5"]), ("kind", ["a,b"])]), HINTS)
    assert space == {"rate": Range(0.1, 1.0, log=True), "steps": Range(1, 5), "kind": Choice({"a": "a", "b": "b"})}
    assert rest.options == []


@pytest.mark.parametrize(
    ("typed", "error", "said"),
    [
        ("--ways 30", InputError("episodes(ways=30): too many"), "train --ways 30: too many"),
        ("--ways 30", InputError("episodes(ways=30, shots=1): too many"), "train --ways 30: too many"),
        ("--rate 1", InputError("sgd(rate=1.0): too high"), "train --rate 1: too high"),
        ("--steps 0 2", InputError("evaluate(steps=(0, 2), chunk=3): no"), "train --steps 0 2: no"),
        ("--out a(b).pt", InputError("export(out='a.pt'): no"), "export(out='a.pt'): no"),
        ("", InputError("episodes(ways=30): too many"), "episodes(ways=30): too many"),  # nobody typed it
        ("--iterations 4", InputError("cg(iterations=0): too few"), "cg(iterations=0): too few"),  # of another meaning
        ("", OptionError("inner_lr", 3.0, "too high"), "train --inner-lr 3.0: too high"),
        ("", OptionError("hidden", (4, 0), "too low"), "train --hidden 4 0: too low"),
        ("", OptionError("multi_step", "", "not here"), "train --multi-step: not here"),
        ("", OptionError("maml.inner_lr", 3.0, "too high"), "train --maml.inner-lr 3.0: too high"),
        ("", UnknownOption("iner_lr", "", ["inner_lr", "inner_lr"]),
         "train --iner-lr: no such option here; did you mean '--inner-lr'? known: --inner-lr"),
        ("", InputError("no call here"), "no call here"),
    ],
)  # fmt: skip
def test_errors_are_in_the_words_that_were_typed(typed, error, said):
    assert in_options(["train", *typed.split()], error) == said
