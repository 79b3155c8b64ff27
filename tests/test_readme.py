"""What README, CONTRIBUTING and the page of results show is true."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import LEARNERS, labelled, vectors

import fmeta
from fmeta.testing import LawError, check_learner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_library_example_runs_as_printed(capsys):
    """With fewer meta-steps and eager, the words unchanged otherwise."""
    code = blocks(README)[0]
    quick = code.replace("range(1000)", "range(3)").replace("fmeta.compile(trainer.step)", "trainer.step")
    assert quick != code
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(quick, {})
    assert capsys.readouterr().out.startswith("[")


SHOWN = ["equals plain autograd", "equals finite differences", "own gradient has its order", "padding changes nothing"]


def test_the_learner_of_readme_keeps_the_laws():
    """As it stands, with its ReLU."""
    scope = {}
    exec(blocks(README)[0].split("trainer =")[0], scope)
    report = check_learner(scope["learner"], fmeta.tasks.sinusoid(shots=10)(fmeta.key(0), 2), laws=SHOWN)
    assert report.passed == SHOWN
    assert report.order == "exact"


def test_the_short_maml_of_the_chapter_keeps_the_laws():
    examples = doctest.DocTestParser().get_examples(fmeta.learners.__doc__)
    scope = {"fmeta": fmeta}
    exec(next(e.source for e in examples if "def short_maml" in e.source), scope)
    model = fmeta.models.mlp([2, 6, 1], torch.tanh)
    learner = scope["short_maml"](model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    assert check_learner(learner, fmeta.testing.random_regression(fmeta.key(0)), laws=SHOWN).passed == SHOWN


def test_readme_is_short_and_leads_to_what_is_there():
    assert len(README.splitlines()) <= 150
    for place in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / place).exists(), place


def test_the_figures_are_those_of_the_results():
    script = ROOT / "benchmarks" / "readme.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_of_readme_is_a_command():
    done = subprocess.run([sys.executable, "-m", "fmeta", "--help"], capture_output=True, text=True, check=False)
    named = {words for text in re.findall(r"`fmeta [^`]*`", README) for words in re.findall(r"fmeta [a-z]+", text)}
    assert done.returncode == 0
    assert len(named) == 9  # of the table
    assert not [command for command in named if command not in done.stdout]


def test_the_learner_of_contributing_keeps_every_law():
    scope = {}
    exec(blocks(CONTRIBUTING)[0], scope)
    row = blocks(CONTRIBUTING)[2].replace("fmeta.gaussian", "gaussian")
    learner, tasks, _ = eval(f"{{{row}}}", {**vars(sys.modules["helpers"]), **scope})["gaussian"]
    assert tasks is labelled
    check_learner(learner, tasks(fmeta.key(0)))


def test_the_meta_gradient_of_contributing_is_exact_where_its_parts_are():
    scope = {}
    exec(blocks(CONTRIBUTING)[3], scope)
    learner, tasks, laws = LEARNERS["maml"].learner, vectors(fmeta.key(0)), ["equals plain autograd"]
    exec(blocks(CONTRIBUTING)[4], {"fmeta": fmeta, "learner": learner, "tasks": tasks, "mixed": scope["mixed"]})
    wrong = scope["mixed"](fmeta.first_order(), fmeta.adjoint(), 0.5)
    with pytest.raises(LawError, match="mixed"):
        check_learner(learner, tasks, laws=laws, claimed={"mixed": wrong})
