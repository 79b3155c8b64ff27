"""Runs of one's own Python code: `fmeta.fit(recipe=…)`, `--recipe file.py:name`, and `fmeta.runs` as a library."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

import fmeta
from fmeta.cli import main

OWN = '''
"""What a user wrote: tasks, a learner, and how to read and draw them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

import fmeta
from fmeta.core import fold, normal
from fmeta.runs import Chart, Queries, Recipe, Support


def lines(key, count):
    """Points of random lines."""
    x = normal(fold(key, "x"), (count, 12, 1))
    y = normal(fold(key, "slope"), (count, 1, 1)) * x + 0.5
    keys = fold(key, torch.arange(count))
    return fmeta.Task(fmeta.Examples(x[:, :5], y[:, :5]), fmeta.Examples(x[:, 5:], y[:, 5:]), keys)


@dataclass(frozen=True, kw_only=True)
class Lines(Recipe):
    """Random lines."""

    width: int = 8
    """of the hidden layer"""

    name: ClassVar[str] = "lines"
    defaults: ClassVar = {"eval_tasks": 8, "eval_steps": (0, 2), "validation_tasks": 4, "compile": "none"}

    def sampler(self, split, device):
        return lambda key, count: lines(fold(key, split), count)

    def own_learner(self):
        return fmeta.maml(fmeta.models.mlp([1, self.width, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)

    def own_optimizer(self):
        return fmeta.sgd(0.05)


@dataclass(frozen=True, kw_only=True)
class Readable(Lines):
    """Random lines, with points of one's own."""

    name: ClassVar[str] = "readable"

    def read_support(self, path, on_error):
        rows = torch.tensor([[float(n) for n in line.split(",")] for line in Path(path).read_text().splitlines()])
        return Support(fmeta.Examples(rows[:, :1], rows[:, 1:]))

    def read_queries(self, path, on_error):
        words = Path(path).read_text().split()
        return Queries(torch.tensor([[float(word)] for word in words]), tuple(words))

    def show(self, answered):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots().plot(answered.task.query.x[:, 0], answered.predictions[2][:, 0], "o")
        return Chart(figure, "A line of one's own.")


mine = Readable(width=6)

if __name__ == "__main__":
    import sys

    bare = sys.argv[2:] == ["bare"]
    of = Lines() if bare else mine
    fmeta.fit(
        of.own_learner(), of.own_optimizer(), lines, key=fmeta.key(7), iterations=4, meta_batch=3, run_dir=sys.argv[1],
        recipe=f"{__file__}:{'Lines' if bare else 'mine'}",
    )
'''
TINY = ["--iterations", "5", "--meta-batch", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the user's file, a run of it, one of a recipe that reads and draws nothing, and one of none."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    subprocess.run([sys.executable, "own.py", "fitted"], cwd=folder, check=True, timeout=300)
    subprocess.run([sys.executable, "own.py", "bare", "bare"], cwd=folder, check=True, timeout=300)
    shutil.copytree(folder / "fitted", folder / "nowhere", ignore=shutil.ignore_patterns("recipe.json"))
    (folder / "support.csv").write_text("-1,-1.5\n0,0.5\n1,2.5\n")
    (folder / "query.txt").write_text("2 3")
    return folder


@pytest.fixture
def ours(place, tmp_path, monkeypatch, capfd):
    """Runs a command in a copy of that folder; returns what it printed, or its line of error."""
    folder = shutil.copytree(place, tmp_path / "own")
    monkeypatch.chdir(folder)

    def run(words, status=0):
        capfd.readouterr()
        assert main(words.split()) == status, capfd.readouterr().err
        out, err = capfd.readouterr()
        if status:
            assert err.startswith("fmeta: ")
            assert err.count("\n") == 1
        return err if status else " ".join(out.split())

    run.folder = folder
    return run


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fit_says_where_the_recipe_stands(place):
    stored = json.loads((place / "fitted" / "recipe.json").read_text())
    assert stored["recipe"] == {"object": f"{place / 'own.py'}:mine"}
    assert stored["format"] == 2


def test_evaluate_report_compare_and_export_work_on_it(ours):
    assert "testing step 4 on 8 tasks" in ours("evaluate fitted")
    ours("report fitted")
    page = (ours.folder / "fitted" / "report.html").read_text()
    assert "A line of one&#39;s own." in page or "A line of one's own." in page
    assert "4 of 4" in page
    assert "not finished" not in page
    ours("train --recipe own.py:mine --run-dir other --iterations 5 --meta-batch 3")
    ours("compare fitted other --out both")
    assert len(json.loads((ours.folder / "both" / "compare.json").read_text())["runs"]) == 2
    ours("export fitted --to torch")
    assert set(torch.load(ours.folder / "fitted" / "weights.pt")) == {
        "hidden1.weight", "hidden1.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_predict_gives_values_where_there_are_no_classes(ours):
    ours("predict fitted --support support.csv --query query.txt --out answers.csv")
    rows = (ours.folder / "answers.csv").read_text().splitlines()
    assert rows[0] == "query,prediction"
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "3"]


def test_what_a_recipe_does_not_bring_is_named(ours):
    ours("evaluate bare")
    ours("report bare")
    said = ours("predict bare --support support.csv --query query.txt", status=2)
    assert "recipe lines: it reads no support set of one's own; expected read_support(path)" in said


@pytest.mark.parametrize(
    "words",
    ["evaluate nowhere", "report nowhere", "compare fitted nowhere", "train --resume --run-dir nowhere",
     "predict nowhere --support support.csv --query query.txt"],
)  # fmt: skip
def test_a_run_without_recipe_is_refused_with_the_cure(ours, words):
    said = ours(words, status=2)
    assert "'nowhere': no recipe.json there, though checkpoints" in said
    assert "recipe='module:object'" in said
    assert "fmeta.fit trained it from Python code" in said
    assert "fmeta.load_checkpoint('nowhere/checkpoints/00000004', like)" in said


@pytest.mark.parametrize("run", ["fitted/checkpoints", "nowhere/checkpoints/00000004"])
def test_a_part_of_a_run_is_refused_with_the_folder_to_give(ours, run):
    said = ours(f"evaluate {run}", status=2)
    assert f"give {run.partition('/')[0]}, to which it belongs, and choose by checkpoint=…" in said


def test_a_run_without_recipe_is_exported_all_the_same(ours):
    assert "4 tensors, 19 numbers, of meta-step 4" in ours("export nowhere --to safetensors")


def test_a_run_of_fit_is_not_resumed_by_options_that_it_never_had(ours):
    before = contents(ours.folder / "fitted")
    said = ours("train --resume --run-dir fitted", status=2)
    assert "fmeta.fit trained it" in said
    assert "resume=True" in said
    assert contents(ours.folder / "fitted") == before


def test_train_and_resume_by_the_command_line(ours):
    ours("train --recipe own.py:mine --run-dir second --iterations 5 --meta-batch 3 --width 7")
    stored = json.loads((ours.folder / "second" / "recipe.json").read_text())
    assert stored["recipe"]["options"] == {"width": 7}
    assert stored["recipe"]["object"] == f"{ours.folder / 'own.py'}:mine"
    ours("train --resume --run-dir second --iterations 7")
    assert "testing step 7 on 8 tasks" in ours("evaluate second")
    ours("check --recipe own.py:mine")
    ours("ablate --recipe own.py:mine --width 3,4 --seeds 1 --iterations 3 --meta-batch 2 --run-dir grid")
    assert len(json.loads((ours.folder / "grid" / "ablation.json").read_text())["combinations"]) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--learner maml", "brings its own learner"),
        ("--inner-lr 0.3", "no such option here"),
        ("--outer-lr 0.3", "brings its own optimizer, which does not look at it"),
        ("--outer-schedule cosine", "brings its own optimizer"),
        ("--precision bfloat16", "brings its own learner"),
    ],
)
def test_options_that_its_own_parts_ignore_are_refused(ours, options, expected):
    assert expected in ours(f"train --recipe own.py:mine --run-dir new {options}", status=2)
    assert not (ours.folder / "new").exists()


def test_tune_has_nothing_to_look_for(ours):
    pytest.importorskip("optuna")
    assert "nothing to look for" in ours("tune --recipe own.py:mine --trials 2 --run-dir study", status=2)
    assert not (ours.folder / "study").exists()


# as a library


def example_of(function):
    """The code that a docstring shows."""
    text = textwrap.dedent(inspect.getdoc(function))
    return textwrap.dedent(re.search(r"\n\n((?:    .*\n)+)\n", text)[1])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Runs at the places that the examples name."""
    folder = tmp_path_factory.mktemp("library")
    short = {"iterations": 2, "meta_batch": 2, "compile": "none", "eval_tasks": 4, "validation_tasks": 2}
    small = {"learner": "protonet", "network": "conv2", "ways": 2, "drawings": 4, **short}
    done = fmeta.runs.train(fmeta.runs.experiment("glyphs", **small), folder / "runs" / "NAME")
    for name in ("maml", "protonet"):
        shutil.copytree(done.trained.run.folder, folder / "runs" / name)
    for name in ("support/round", "support/square", "new"):
        (folder / "pictures" / name).mkdir(parents=True)
    from PIL import Image, ImageDraw

    for file, shape in {"support/round/1": "ellipse", "support/square/1": "rectangle", "new/1": "ellipse"}.items():
        picture = Image.new("L", (28, 28), 255)
        getattr(ImageDraw.Draw(picture), shape)((6, 6, 22, 22), outline=0, width=3)
        picture.save(folder / "pictures" / f"{file}.png")
    return folder


@pytest.mark.parametrize(
    "name", ["experiment", "train", "load", "measure", "adapt", "compare", "grid", "ablate", "study"]
)
def test_the_example_of_every_call_runs(name, library, tmp_path, monkeypatch, capsys):
    if name == "study":
        pytest.importorskip("optuna")
    code = example_of(getattr(fmeta.runs, name))
    monkeypatch.chdir(library)
    exec(code, {"fmeta": fmeta})


def test_train_returns_what_load_and_measure_find(library):
    trained = fmeta.runs.load(library / "runs" / "NAME")
    assert trained.step == 2
    found = fmeta.runs.measure(trained, tasks=6)
    assert found.protocol["tasks"] == 6
    assert torch.equal(found.values["accuracy"], fmeta.runs.measure(trained, tasks=6).values["accuracy"])


def test_a_run_of_a_recipe_in_a_script_can_be_opened_from_anywhere(place, tmp_path, monkeypatch):
    script = (
        OWN.partition("if __name__")[0] + "if __name__ == '__main__':\n    fmeta.runs.train(Lines(width=3), 'run')\n"
    )
    script = script.replace('"compile": "none"', '"compile": "none", "iterations": 2, "meta_batch": 2')
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, timeout=300)
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["recipe"]["object"] == f"{tmp_path / 'script.py'}:Lines"
    monkeypatch.chdir(place)
    assert fmeta.runs.load(tmp_path / "run").experiment.recipe.width == 3
