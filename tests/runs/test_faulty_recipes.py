"""Recipes that other people wrote wrong: each ends in one line that names the recipe, the fault and the cure."""

import re

import pytest

from fmeta.cli import main
from fmeta.runs._find import recipe_points

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
import torch
import fmeta
from fmeta.core import fold, normal
from fmeta.runs import ACCURACY, ERROR, Offer, Recipe

def lines(key, count):
    x = normal(fold(key, 1), (count, 12, 1))
    y = normal(fold(key, 0), (count, 1, 1)) * x
    keys = fold(key, torch.arange(count))
    return fmeta.Task(fmeta.Examples(x[:, :5], y[:, :5]), fmeta.Examples(x[:, 5:], y[:, 5:]), keys)

class Good(Recipe):
    name = "good"
    def sampler(self, split, device): return lines
    def offer(self): return Offer(lambda outputs="head", **more: fmeta.models.mlp([1, 4, 1]), fmeta.mse)
"""

FAULTS = {
    "raises at import": ("1 / 0", [r"r.py:Bad' cannot be imported", "ZeroDivisionError"]),
    "has a syntax error": ("def (", ["cannot be imported", "SyntaxError"]),
    "is no recipe": ("class Bad: pass", ["it is Bad; expected a recipe"]),
    "has no name": (
        "class Bad(Recipe):\n    def sampler(self, split, device): return lines",
        ["recipe Bad: it has no name", "ClassVar"],
    ),
    "has no sampler": (
        "class Bad(Recipe):\n    name = 'bad'",
        ["recipe bad:", "abstract method '?sampler", "expected"],
    ),
    "has no offer": (
        "class Bad(Recipe):\n    name = 'bad'\n    def sampler(self, split, device): return lines",
        [r"recipe bad: it has no offer\(\)", r"own_learner\(\)"],
    ),
    "offers junk": (
        "class Bad(Good):\n    name = 'bad'\n    def offer(self): return 3",
        [r"recipe bad: offer\(\) is a int"],
    ),
    "draws a list": (
        "class Bad(Good):\n    name = 'bad'\n    def sampler(self, split, device): return lambda key, count: [1, 2]",
        [r"recipe bad: sampler\('validation'\): tasks is a list", r"fmeta\.Task"],
    ),
    "draws too few": (
        "class Bad(Good):\n    name = 'bad'\n    def sampler(self, split, device): return lambda key, n: lines(key, 3)",
        [r"recipe bad: sampler\('validation'\) drew 3 tasks; expected 4"],
    ),
    "trains on broken tasks": (
        "class Bad(Good):\n    name = 'bad'\n    def sampler(self, split, device):\n"
        "        return lines if split != 'train' else lambda key, n: lines(key, n).support",
        [r"tasks is a Examples; expected fmeta\.Task"],
    ),
    "gives tasks for a sampler": (
        "class Bad(Good):\n    name = 'bad'\n    def sampler(self, split, device): return lines(fmeta.key(0), 3)",
        [r"recipe bad: sampler\('train'\) is a Task; expected \(key, count\)"],
    ),
    "takes an option of every run": (
        "@dataclass(frozen=True)\nclass Bad(Good):\n    name: ClassVar[str] = 'bad'\n    seed: int = 0",
        ["recipe bad: its option 'seed' is one of every run too", "rename the field of Bad"],
    ),
    "takes an option of the learner": (
        "@dataclass(frozen=True)\nclass Bad(Good):\n    name: ClassVar[str] = 'bad'\n    inner_lr: float = 0.1",
        ["recipe bad: its option 'inner_lr' is one of maml too"],
    ),
    "takes an option of the command line": (
        "@dataclass(frozen=True)\nclass Bad(Good):\n    name: ClassVar[str] = 'bad'\n    resume: bool = False",
        ["recipe bad: its option 'resume' is one of the command line too"],
    ),
    "has an option without default": (
        "@dataclass(frozen=True)\nclass Bad(Good):\n    name: ClassVar[str] = 'bad'\n    size: int",
        ["recipe bad:", "size", "have defaults"],
    ),
    "is judged by what nobody measures": (
        "class Bad(Good):\n    name = 'bad'\n    metric = ACCURACY",
        ["recipe bad: metric is 'accuracy'; expected what its learner reports: loss"],
    ),
    "brings a network for a learner": (
        "class Bad(Good):\n    name = 'bad'\n    def own_learner(self): return fmeta.models.mlp([1, 1])",
        [r"recipe bad: own_learner\(\) is a Model; expected a Learner"],
    ),
}
RUN = ["--iterations", "2", "--meta-batch", "2", "--validation-tasks", "4", "--eval-tasks", "4", "--compile", "none"]


def words_of(tmp_path, code):
    (tmp_path / "r.py").write_text(f"{HEAD}\n{code}\n")
    return ["train", "--recipe", str(tmp_path / "r.py:Bad"), *RUN, "--run-dir", str(tmp_path / "run")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_recipe_that(fault, tmp_path, capfd):
    code, expected = FAULTS[fault]
    status = main(words_of(tmp_path, code))
    said = capfd.readouterr().err
    assert status == 2, said
    assert said.startswith("fmeta: ")
    assert said.count("\n") == 1
    for part in expected:
        assert re.search(part, said), said
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_options_is_a_plain_class(tmp_path):
    assert main(words_of(tmp_path, "class Bad(Good): name = 'plain'")) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0


@pytest.fixture
def installed(tmp_path, monkeypatch, capfd):
    """Puts packages, each with the lines of its module, into this process and tries the recipe `broken` of theirs."""

    def run(packages):
        for package, code in packages.items():
            facts = tmp_path / f"{package}-1.2.dist-info"
            facts.mkdir()
            (facts / "METADATA").write_text(f"Metadata-Version: 2.3\nName: {package}\nVersion: 1.2\n")
            (facts / "entry_points.txt").write_text(f"[fmeta.recipes]\nbroken = {package}:Bad\n")
            (tmp_path / f"{package}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        recipe_points.cache_clear()
        try:
            assert main(["--help"]) == 0  # which imports no recipe
            capfd.readouterr()
            assert main(["train", "broken"]) == 2
        finally:
            recipe_points.cache_clear()
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        return said

    return run


def test_an_installed_recipe_whose_module_raises_names_the_package(installed):
    said = installed({"broken_one": "raise RuntimeError('no licence')"})
    assert "recipe 'broken': broken_one:Bad cannot be imported: RuntimeError: no licence" in said
    assert "install again broken_one 1.2" in said


def test_a_recipe_that_two_packages_bring(installed):
    said = installed({"broken_two": "", "broken_three": ""})
    assert "broken_two" in said
    assert "broken_three" in said
    assert "uninstall the other" in said


def test_a_recipe_with_another_name_than_its_entry_point(installed):
    said = installed({"broken_four": f"{HEAD}\nclass Bad(Good): name = 'whole'"})
    assert "recipe 'broken': broken_four:Bad has the name 'whole'; expected that of its entry point" in said
