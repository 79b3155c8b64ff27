"""The command line: what it writes and prints, and that every mistake is one line that says the call and the cure."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import lines_of, options_of
from PIL import Image

from fmeta.cli import _printing, main
from fmeta.core import adam, key
from fmeta.execution import _memory
from fmeta.runs import _train, load
from fmeta.training import save_checkpoint, trainer
from fmeta.training._checkpoint import checkpoints

TINY = ["--hidden", "4", "4", "--meta-batch", "2", "--iterations", "4", "--compile", "none"]
TINY += ["--eval-tasks", "6", "--eval-steps", "0", "1", "3", "--log-every", "2", "--save-every", "2"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def words(text):
    """Printed text without the line breaks of a narrow terminal."""
    return " ".join(text.split())


def state_bytes(run, step):
    return (run / "checkpoints" / f"{step:08d}" / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run that nobody may change."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "sinusoid", *TINY, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def fails(capfd):
    """Runs a command that must fail: status 2, nothing on stdout that looks like a result, one line on stderr."""

    def run_it(*arguments, status=2):
        capfd.readouterr()
        assert main([str(a) for a in arguments]) == status
        message = capfd.readouterr().err
        assert message.startswith("fmeta: ")
        assert message.count("\n") == 1
        assert "Traceback" not in message
        return message

    return run_it


# train


def test_train_writes_recipe_metrics_checkpoints_evaluation_and_plot(trained):
    assert {p.name for p in trained.iterdir()} == {
        ".lock", "choices.json", "tensorboard",
        "recipe.json", "metrics.jsonl", "checkpoints", "evaluation.json", "evaluation.safetensors", "adaptation.png",
    }  # fmt: skip
    recipe = json.loads((trained / "recipe.json").read_text())
    assert (recipe["format"], recipe["scope"]) == (2, "none")
    assert (recipe["recipe"]["name"], recipe["recipe"]["options"]["hidden"]) == ("sinusoid", [4, 4])
    assert recipe["recipe"]["from"].startswith("fmeta ")
    assert (recipe["learner"]["name"], recipe["learner"]["options"]["inner_lr"]) == ("maml", 0.01)
    assert recipe["gradient"] == {"name": "unrolled", "options": {"multi_step": False, "first_order_until": 0}}
    assert recipe["run"]["options"]["meta_batch"] == 2
    assert [line["step"] for line in lines_of(trained)] == [2, 4]
    assert (trained / "checkpoints" / "00000004" / "state.safetensors").exists()
    evaluation = json.loads((trained / "evaluation.json").read_text())
    fingerprint = evaluation["protocol"].pop("task list")
    assert re.fullmatch("[0-9a-f]{12}", fingerprint)
    assert evaluation["protocol"] == {"tasks": 6, "recipe": "sinusoid", "shots": 10, "seed": 0}
    assert evaluation["steps"] == [0, 1, 3]
    assert all(len(evaluation["loss"][figure]) == 3 for figure in ("mean", "interval95", "median"))


def test_the_plot_is_a_png_with_coloured_curves(trained):
    content = (trained / "adaptation.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(trained / "adaptation.png") as image:
        assert min(image.size) > 200
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    vivid = {colour for _, colour in colours if max(colour) - min(colour) > 60}
    assert len(vivid) > 20
    for name, near in {"blue": (31, 119, 180), "red": (214, 39, 40), "green": (44, 160, 44)}.items():
        count = sum(n for n, c in colours if max(abs(a - b) for a, b in zip(c, near, strict=True)) < 12)
        assert count > 30, name


def test_train_prints_the_run_folder_the_table_and_the_plot(tmp_path, capfd):
    run = tmp_path / "run"
    assert main(["train", *TINY, "--run-dir", str(run)]) == 0  # sinusoid is the default
    out, err = capfd.readouterr()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert err == ""
    assert f"sinusoid: maml, compile none, run folder {run}\n" in out
    assert f"plot: {run / 'adaptation.png'}\n" in out
    for column, step in enumerate((0, 1, 3)):
        row = next(line for line in out.splitlines() if re.match(rf"\W*\s{step}\s", line))
        for figure in ("mean", "interval95", "median"):
            assert f"{evaluation['loss'][figure][column]:.4f}" in row


def test_the_run_folder_is_printed_as_it_is_even_with_brackets(tmp_path, capfd):
    run = tmp_path / "run[red]1"
    assert main(["train", *TINY, "--run-dir", str(run)]) == 0
    assert f"run folder {run}\n" in capfd.readouterr().out


def test_the_same_command_gives_the_same_bits(trained, tmp_path):
    assert main(["train", *TINY, "--run-dir", str(tmp_path / "again")]) == 0
    assert state_bytes(tmp_path / "again", 4) == state_bytes(trained, 4)
    for name in ("evaluation.json", "recipe.json"):
        assert (tmp_path / "again" / name).read_text() == (trained / name).read_text()


def test_without_run_dir_a_new_folder_below_runs_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--seed", "7"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sinusoid-7-")
    assert (folder / "evaluation.json").exists()


LEARNERS = ["maml", "reptile", "meta_sgd", "anil", "boil", "cavia", "maml_plus_plus", "meta_curvature"]
GRADIENTS = ["unrolled", "adjoint", "truncated", "first_order", "difference", "evolution"]


@pytest.mark.parametrize(("field", "value"), [("learner", v) for v in LEARNERS] + [("gradient", v) for v in GRADIENTS])
def test_every_learner_and_every_gradient_trains_from_the_command_line(tmp_path, field, value):
    run = tmp_path / "run"
    options = ["--iterations", "3", "--inner-steps", "2", "--run-dir", str(run), f"--{field}", value]
    assert main(["train", *TINY, *options]) == 0
    assert options_of(run / "recipe.json")[field] == value
    assert len(json.loads((run / "evaluation.json").read_text())["loss"]["mean"]) == 3


def test_more_choices_reach_the_run(tmp_path):
    """Inner and outer optimizer options that no other test uses."""
    options = ["--learner", "reptile", "--inner-optimizer", "adam", "--inner-batch", "4", "--inner-steps", "3"]
    options += ["--outer-schedule", "linear", "--clip", "1.0", "--outer-lr", "0.5"]
    assert main(["train", *TINY, *options, "--run-dir", str(tmp_path / "a")]) == 0
    assert main(["train", *TINY, *options, "--clip", "0.001", "--run-dir", str(tmp_path / "b")]) == 0
    assert state_bytes(tmp_path / "a", 4) != state_bytes(tmp_path / "b", 4)


def test_imaml_trains_by_implicit_gradients_and_reports_the_residual(tmp_path):
    run, options = tmp_path / "run", ["--learner", "imaml", "--solver-iterations", "60", "--damping", "50"]
    options += ["--inner-optimizer", "rmsprop", "--inner-lr", "0.001"]
    assert main(["train", *TINY, *options, "--run-dir", str(run)]) == 0
    assert all(0 <= line["residual"] < 1e-2 for line in lines_of(run))


def test_an_unconverged_solver_warns_once(tmp_path):
    options = ["--learner", "imaml", "--solver-iterations", "1", "--damping", "0.1", "--run-dir", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="relative residual") as caught:
        assert main(["train", *TINY, "--iterations", "1", *options]) == 0
    assert len(caught) == 1


def test_first_order_until_swaps_the_meta_gradient(tmp_path):
    """Up to the swap the run is first order's, after it no longer."""
    for name, options in {"mixed": ["--first-order-until", "2"], "first": ["--gradient", "first_order"]}.items():
        many = ["--inner-steps", "2", "--inner-lr", "0.1", "--multi-step"]
        gradient = ["--gradient", "adjoint"] if name == "mixed" else []
        run = tmp_path / name
        assert main(["train", *TINY, *many, *gradient, *options, "--run-dir", str(run)]) == 0
    assert lines_of(tmp_path / "mixed")[0] == lines_of(tmp_path / "first")[0]
    assert state_bytes(tmp_path / "mixed", 4) != state_bytes(tmp_path / "first", 4)


def test_a_run_dir_that_holds_a_run_is_refused_and_untouched(run, fails):
    before = contents(run)
    message = fails("train", *TINY, "--run-dir", run)
    assert str(run) in message
    assert "already holds a run" in message
    assert "--resume" in message
    assert contents(run) == before


def test_a_loss_that_blows_up_ends_with_status_1_and_says_where(tmp_path, fails):
    message = fails("train", *TINY, "--inner-lr", "1e30", "--run-dir", tmp_path / "run", status=1)
    assert "fit(maml)" in message
    assert "step 0" in message
    assert (tmp_path / "run" / "checkpoints" / "00000000").exists()


def test_ctrl_c_ends_with_130_and_the_command_it_prints_finishes_the_run(trained, tmp_path, capfd, monkeypatch):
    run = tmp_path / "run"

    def interrupts(self, step, values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_printing.Bar, "__call__", interrupts)
        assert main(["train", *TINY, "--run-dir", str(run)]) == 130
    out, err = capfd.readouterr()
    command = re.search(r"go on with: fmeta (.*)", out).group(1)
    assert "Traceback" not in err
    assert (run / "checkpoints" / "00000002").exists()
    assert not (run / "evaluation.json").exists()
    assert main(command.split()) == 0
    assert state_bytes(run, 4) == state_bytes(trained, 4)
    assert (run / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()


# resume


def test_resume_needs_no_repeated_options_and_repeats_the_evaluation(run, trained):
    (run / "evaluation.json").unlink()
    assert main(["train", "--resume", "--run-dir", str(run)]) == 0
    for name in ("evaluation.json", "recipe.json", "metrics.jsonl"):
        assert (run / name).read_text() == (trained / name).read_text()


def test_resume_accepts_the_same_options_and_the_movable_ones(run):
    options = ["--iterations", "4", "--hidden", "4", "4", "--eval-tasks", "5", "--eval-steps", "2", "--log-every", "1"]
    assert main(["train", "sinusoid", "--resume", *options, f"--run-dir={run}"]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert (evaluation["protocol"]["tasks"], evaluation["steps"]) == (5, [2])


def test_resume_with_other_fields_lists_exactly_these_with_both_values(run, fails):
    before = contents(run)
    options = ["--shots", "6", "--inner-lr", "0.5", "--hidden", "4", "5", "--eval-tasks", "9", "--seed", "0"]
    message = fails("train", "--resume", "--run-dir", run, *options)
    assert str(run) in message
    listed = re.search(r"the recipe differs: (.*); expected", message).group(1)
    assert sorted(re.findall(r"(\w+): (.+?) in the run, (.+?) asked for", listed)) == [
        ("hidden", "(4, 4)", "(4, 5)"), ("inner_lr", "0.01", "0.5"), ("shots", "10", "6"),
    ]  # fmt: skip
    assert listed.count("asked for") == 3
    assert contents(run) == before


def test_more_iterations_are_fine_with_a_constant_rate(tmp_path):
    constant = ["train", *TINY, "--outer-schedule", "constant"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    assert main([*constant, "--run-dir", str(cut)]) == 0
    assert main(["train", "--resume", "--run-dir", str(cut), "--iterations", "8"]) == 0
    assert main([*constant, "--iterations", "8", "--run-dir", str(whole)]) == 0
    assert state_bytes(cut, 8) == state_bytes(whole, 8)
    assert lines_of(cut) == lines_of(whole)
    changed, straight = (json.loads((run / "recipe.json").read_text()) for run in (cut, whole))
    assert len(changed.pop("earlier")) == 1  # what its first checkpoints were trained by
    assert changed == straight
    assert (cut / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


def test_more_iterations_are_refused_where_the_rate_depends_on_them(run, fails):
    message = fails("train", "--resume", "--run-dir", run, "--iterations", "8")  # the default schedule is a cosine
    assert "iterations: 4 in the run, 8 asked for" in message


def test_fewer_iterations_are_refused(tmp_path, fails):
    run = tmp_path / "run"
    assert main(["train", *TINY, "--outer-schedule", "constant", "--run-dir", str(run)]) == 0
    assert "iterations: 4 in the run, 2 asked for" in fails("train", "--resume", "--run-dir", run, "--iterations", "2")


def test_a_run_that_was_moved_goes_on_with_the_same_bits(tmp_path):
    main(["train", *TINY, "--outer-schedule", "constant", "--run-dir", str(tmp_path / "whole")])
    main(["train", *TINY, "--outer-schedule", "constant", "--iterations", "2", "--run-dir", str(tmp_path / "here")])
    (tmp_path / "here").rename(tmp_path / "there")
    assert main(["train", "--resume", "--iterations", "4", "--run-dir", str(tmp_path / "there")]) == 0
    assert state_bytes(tmp_path / "there", 4) == state_bytes(tmp_path / "whole", 4)


def test_patience_and_the_interval_of_validation_are_options(tmp_path, capfd):
    """At a rate of almost 0 the second validation is no better than the first."""
    options = ["--iterations", "40", "--outer-lr", "1e-30", "--validate-every", "3", "--patience", "2"]
    assert main(["train", *TINY, *options, "--run-dir", str(tmp_path / "run")]) == 0
    found = [line["step"] for line in lines_of(tmp_path / "run") if "validation/loss" in line]
    assert found == [3, 6, 9]
    assert max(step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")) == 9
    said = capfd.readouterr().out
    assert "stopped at step 9: 2 validations in a row were no better by loss" in said
    assert f"the best, 3, by fmeta evaluate {tmp_path / 'run'} --checkpoint best" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--monitor", "accuracy"], "expected loss"),
        (["--patience", "-1"], "train --patience -1: expected at least 0"),
        (["--validation-tasks", "0"], "expected at least 1"),
    ],
)
def test_bad_options_of_validation_are_refused_before_a_folder_is_made(fails, tmp_path, options, message):
    assert message in fails("train", *TINY, *options, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "tune", "ablate"])
def test_a_folder_that_no_system_takes_is_one_line(fails, tmp_path, command):
    folder = tmp_path / ("x" * 300)
    assert "File name too long" in fails(command, "sinusoid", *TINY, "--run-dir", folder, status=1)


def test_a_device_without_values_is_refused_before_a_folder_is_made(fails, tmp_path):
    assert "expected cpu, cuda or auto" in fails("train", *TINY, "--device", "meta", "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interruption_of_the_test_says_how_to_repeat_it(trained, tmp_path, capfd, monkeypatch):
    def interrupts(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_train, "measure", interrupts)
        assert main(["train", *TINY, "--run-dir", str(tmp_path / "run")]) == 130
    command = re.search(r"go on with: fmeta (.*)", capfd.readouterr().out).group(1)
    assert main(command.split()) == 0
    assert (tmp_path / "run" / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()


def test_a_test_that_cannot_be_written_says_how_to_repeat_it(trained, tmp_path, capfd):
    run = tmp_path / "run"
    (run / "evaluation.json").mkdir(parents=True)  # where a file is to be
    assert main(["train", *TINY, "--run-dir", str(run)]) == 1
    (run / "evaluation.json").rmdir()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert main(re.search(r"could not be written: .*; the run is trained.*: fmeta (.*)", said)[1].split()) == 0
    assert (run / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()


def test_torchrun_needs_a_run_folder(fails, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected --run-dir RUN" in fails("train", *TINY)


def test_resume_without_run_dir_says_what_is_missing(fails):
    message = fails("train", "--resume")
    assert "train --resume" in message
    assert "--run-dir" in message


def test_resume_with_another_recipe_is_refused(run, fails):
    message = fails("train", "omniglot", "--resume", "--run-dir", run)
    assert "sinusoid, not omniglot" in message


def test_a_resume_that_cannot_start_leaves_the_recipe_as_it_was(run, fails):
    before = contents(run)
    assert "train --device nonsense: " in fails("train", "--resume", "--run-dir", run, "--device", "nonsense")
    assert contents(run) == before


@pytest.mark.parametrize("command", [["train", "--resume", "--run-dir"], ["evaluate"]])
def test_a_folder_that_is_no_run_is_refused(tmp_path, fails, command):
    for folder in (tmp_path, tmp_path / "missing"):
        message = fails(*command, folder)
        assert repr(str(folder)) in message
        assert "recipe.json" in message
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("command", [["train", "--resume", "--run-dir"], ["evaluate"], ["train", *TINY, "--run-dir"]])
def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path, fails, command):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in fails(*command, tmp_path / "file")


def _with(part, **changes):
    return lambda stored: json.dumps({**stored, part: {**stored[part], **changes}})


def _option(part, **changes):
    return lambda stored: _with(part, options={**stored[part]["options"], **changes})(stored)


DAMAGE = {
    "half": lambda stored: json.dumps(stored)[:40],
    "empty": lambda stored: "",
    "list": lambda stored: "[1]",
    "no parts": lambda stored: json.dumps({"format": 2, "scope": "none"}),
    "no options of the run": lambda stored: json.dumps({n: v for n, v in stored.items() if n != "run"}),
    "options a list": _with("recipe", options=[]),
    "a part a text": lambda stored: json.dumps({**stored, "learner": "maml"}),
    "unknown learner": _with("learner", name="mamal"),
    "unknown option": _option("recipe", colour="red"),
    "another learner's option": _option("learner", context=3),
    "wrong type": _option("learner", inner_lr="fast"),
    "unknown scope": lambda stored: json.dumps({**stored, "scope": "all"}),
    "earlier a number": lambda stored: json.dumps({**stored, "earlier": 3}),
}


@pytest.mark.parametrize("command", [["train", "--resume", "--run-dir"], ["evaluate"]])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_recipe_is_named(run, fails, command, damage):
    stored = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(DAMAGE[damage](stored))
    message = fails(*command, run)
    assert str(run) in message
    assert "recipe.json is damaged" in message


def test_a_damaged_checkpoint_is_named_with_its_cure(run, fails):
    path = run / "checkpoints" / "00000004"
    (path / "state.safetensors").write_bytes(b"junk")
    for command in (["evaluate", run], ["train", "--resume", "--run-dir", run]):
        message = fails(*command)
        assert "damaged" in message
        assert f"remove {path}" in message


# a recipe from a file


def test_the_recipe_of_a_file_trains_to_the_same_bits(trained, tmp_path):
    shutil.copy(trained / "recipe.json", tmp_path / "best.json")
    assert main(["train", "--recipe", str(tmp_path / "best.json"), "--run-dir", str(tmp_path / "run")]) == 0
    assert state_bytes(tmp_path / "run", 4) == state_bytes(trained, 4)
    for name in ("recipe.json", "evaluation.json"):
        assert (tmp_path / "run" / name).read_text() == (trained / name).read_text()


def test_options_win_over_the_recipe_of_a_file(trained, tmp_path):
    command = ["train", "sinusoid", f"--recipe={trained / 'recipe.json'}", "--iterations", "2", "--seed", "5"]
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    old, new = (options_of(folder / "recipe.json") for folder in (trained, tmp_path / "run"))
    assert new == {**old, "iterations": 2, "seed": 5}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_for_a_recipe_is_named_and_makes_no_run(trained, tmp_path, fails, damage):
    (tmp_path / "best.json").write_text(DAMAGE[damage](json.loads((trained / "recipe.json").read_text())))
    message = fails("train", "--recipe", tmp_path / "best.json", "--run-dir", tmp_path / "run")
    assert f"{tmp_path / 'best.json'} is damaged" in message
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_or_clashes_is_refused(trained, tmp_path, fails):
    known, run = ["--recipe", trained / "recipe.json"], ["--run-dir", tmp_path / "run"]
    assert "best.json: No such file" in fails("train", "--recipe", tmp_path / "best.json", *run)
    assert f"train --recipe {tmp_path}: Is a directory" in fails("train", "--recipe", tmp_path, *run)
    assert "is sinusoid, not omniglot" in fails("train", "omniglot", *known, *run)
    assert "a run to resume has its own recipe" in fails("train", "--resume", *known, "--run-dir", trained)
    assert not (tmp_path / "run").exists()


OWN = """
from dataclasses import dataclass
from typing import ClassVar
from fmeta.recipes import Sinusoid

@dataclass(frozen=True, kw_only=True)
class Waves(Sinusoid):
    name: ClassVar[str] = "waves [/b]"
    loudness: float = 1.0

quiet = Waves(loudness=0.5)
"""


def test_a_recipe_of_ones_own_stands_in_a_file(trained, tmp_path, monkeypatch, capfd):
    """A class or a recipe; its run remembers where it stands, and is opened from any folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own_waves.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--recipe", "own_waves.py:quiet", *TINY, "--run-dir", "run"]) == 0
    assert "waves [/b]: maml, compile none, run folder run\n" in capfd.readouterr().out
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert stored["object"] == f"{tmp_path / 'own_waves.py'}:quiet"
    assert (stored["options"]["loudness"], stored["options"]["hidden"]) == (0.5, [4, 4])
    assert state_bytes(tmp_path / "run", 4) == state_bytes(trained, 4)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../run"]) == 0
    assert main(["train", "--resume", "--run-dir", "../run", "--loudness", "0.5"]) == 0
    assert main(["train", "--recipe", "../own_waves.py:Waves", *TINY, "--run-dir", "other", "--loudness", "2"]) == 0
    assert options_of(tmp_path / "elsewhere" / "other" / "recipe.json")["loudness"] == 2.0


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("own_waves.py:Wave", "has no attribute 'Wave'"),
        ("missing.py:Waves", "FileNotFoundError"),
        ("no_such_module:Waves", "ModuleNotFoundError"),
        ("json:dumps", "it is a function; expected a recipe"),
        ("broken.py:x", "ZeroDivisionError"),
    ],
)
def test_a_place_without_a_recipe_is_named(tmp_path, monkeypatch, fails, place, named):
    (tmp_path / "own_waves.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    message = fails("train", "--recipe", place, *TINY, "--run-dir", "run")
    assert place in message
    assert named in message
    assert not (tmp_path / "run").exists()


# evaluate


def test_evaluate_json_equals_what_training_wrote_twice(trained, capfd):
    capfd.readouterr()
    printed = []
    for _ in range(2):
        assert main(["evaluate", str(trained), "--json"]) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    assert {"step": 4, **json.loads(printed[0])} == json.loads((trained / "evaluation.json").read_text())


def test_evaluate_needs_no_repeated_options(tmp_path, capfd):
    """Learner, widths, rates and steps come from the run."""
    run = tmp_path / "run"
    options = ["--learner", "meta_sgd", "--hidden", "5", "--inner-lr", "0.03", "--seed", "9", "--shots", "3"]
    assert main(["train", *TINY, *options, "--run-dir", str(run)]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert {"step": 4, **json.loads(capfd.readouterr().out)} == json.loads((run / "evaluation.json").read_text())


def test_evaluate_with_other_tasks_and_steps(trained, capfd):
    capfd.readouterr()
    arguments = ["evaluate", str(trained), "--tasks", "50", "--steps", "0", "2"]
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert (figures["protocol"]["tasks"], figures["steps"]) == (50, [0, 2])
    assert main(arguments) == 0
    table = capfd.readouterr().out
    assert "tasks 50" in words(table)
    for value in (*figures["loss"]["mean"], *figures["loss"]["interval95"], *figures["loss"]["median"]):
        assert f"{value:.4f}" in table


def test_evaluate_leaves_the_run_as_it_was(trained):
    before = contents(trained)
    assert main(["evaluate", str(trained), "--tasks", "3"]) == 0
    assert contents(trained) == before


def test_evaluate_the_last_the_best_or_a_numbered_checkpoint(tmp_path, capfd, fails):
    """An outer rate that spoils the net makes the first checkpoint the best."""
    run = tmp_path / "run"
    options = ["--learner", "reptile", "--inner-lr", "0.1", "--outer-lr", "20", "--outer-schedule", "constant"]
    options += ["--iterations", "6"]
    assert main(["train", *TINY, *options, "--run-dir", str(run)]) == 0
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    assert steps == [2, 6]
    figures = {}
    for which in ("last", "best", "2", "6"):
        capfd.readouterr()
        assert main(["evaluate", str(run), "--json", "--checkpoint", which]) == 0
        figures[which] = json.loads(capfd.readouterr().out)["loss"]["mean"]
    assert figures["last"] == figures["6"] != figures["2"] == figures["best"]
    message = fails("evaluate", run, "--checkpoint", "bst")
    assert "evaluate --checkpoint bst: not in" in message
    assert "did you mean 'best'" in message


def test_there_is_no_best_where_no_validation_was_finite(run, fails):
    """Nor where none was kept, as in this checkpoint."""
    state = trainer(load(run).learner, adam(1e-3)).init(key(0))
    shutil.rmtree(run / "checkpoints")
    save_checkpoint(run / "checkpoints" / "00000004", state, 4)
    message = fails("evaluate", run, "--checkpoint", "best")
    assert "evaluate --checkpoint best: no checkpoint in" in message
    assert "was validated with a finite figure; expected one; take the last, or the number of a step" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tasks", "1"], "evaluate --tasks 1: "),
        (["--steps", "-1"], "evaluate --steps -1: "),
        (["--steps"], "evaluate --steps: expected one or more values"),
    ],
)
def test_impossible_evaluations_are_refused(trained, fails, options, named):
    assert named in fails("evaluate", trained, *options)


def test_evaluate_inductive_adds_each_query_example_alone(trained, capfd):
    """Without batch statistics the gap is 0."""
    capfd.readouterr()
    assert main(["evaluate", str(trained), "--inductive", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["loss"] == json.loads((trained / "evaluation.json").read_text())["loss"]
    assert all(abs(value) < 1e-5 for value in figures["loss gap"]["mean"])
    assert main(["evaluate", str(trained), "--inductive"]) == 0
    table = capfd.readouterr().out
    assert "predicted together (transductive) and alone" in words(table)
    assert all(f"{value:.4f}" in table for value in figures["loss alone"]["mean"])


# check


def test_check_says_exact_for_the_recipe_as_it_stands(capfd):
    assert main(["check", "sinusoid"]) == 0
    assert "order computed: exact" in words(capfd.readouterr().out)


def test_check_looks_at_the_mathematics_whatever_the_precision(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert main(["check", "--hidden", "6", "--inner-steps", "2", "--precision", "bfloat16"]) == 0


SINES = """
from typing import ClassVar

import torch
import fmeta

def first(learner, stage):
    return fmeta.first_order()(learner, stage)

def cut(learner):
    seen = lambda meta: {**meta, "head.bias": meta["head.bias"].detach()}
    return learner._replace(adapt=lambda meta, support, key: learner.adapt(seen(meta), support, key))

class Sines(fmeta.runs.Recipe):
    name: ClassVar[str] = "sines"
    defaults: ClassVar = {"compile": "none"}

    def sampler(self, split, device):
        return fmeta.tasks.sinusoid(shots=4, query=4)

    def own_learner(self):
        model = fmeta.models.mlp([1, 6, 1], torch.tanh)
        learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
        return MADE
"""


@pytest.mark.parametrize(
    ("made", "status", "said"),
    [
        ("learner", 0, ""),
        ("learner._replace(gradient=fmeta.first_order())", 0, ""),
        ("learner._replace(gradient=fmeta.difference())", 0, ""),
        ("learner._replace(gradient=first)", 1, "claims to be exact and computes first order: look at"),
        ("cut(learner)", 1, "claims to be exact and computes neither: head.bias get no gradient; look for .detach()"),
    ],
)
def test_check_ends_with_status_1_where_a_gradient_is_not_what_it_claims(made, status, said, tmp_path, capfd):
    (tmp_path / "own.py").write_text(SINES.replace("MADE", made))
    assert main(["check", "--recipe", f"{tmp_path / 'own.py'}:Sines"]) == status
    error = capfd.readouterr().err
    assert said in words(error)
    assert bool(error) is bool(status)


def test_check_says_first_order_for_first_order(capfd):
    assert main(["check", "sinusoid", "--gradient", "first_order"]) == 0
    assert "order computed: first order" in words(capfd.readouterr().out)


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
def test_check_tells_exact_from_first_order_on_another_net(capfd, gradient):
    small = ["check", "--hidden", "6", "--seed", "1", "--inner-steps", "2"]
    assert main([*small, "--gradient", gradient]) == 0
    out = capfd.readouterr().out
    assert "order computed: exact;" in words(out)
    assert {"hidden1.weight", "hidden1.bias", "head.weight", "head.bias"} <= set(out.split())
    assert main([*small, "--gradient", "first_order"]) == 0
    assert "order computed: first order;" in words(capfd.readouterr().out)


# mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", *TINY, "--run-dir", ""], "train: an empty text after --run-dir; expected a value"),
        (["train", "sinusoid", "--run-dir=", *TINY], "train: an empty text after --run-dir; expected a value"),
        (["evaluate", ""], "evaluate: an empty text after evaluate; expected a value"),
        (["train", "sinusiod"], "unknown recipe 'sinusiod'; did you mean 'sinusoid'?"),
        (["check", "omniglt"], "unknown recipe 'omniglt'; did you mean 'omniglot'?"),
        (["train", *TINY, "--inner-lr", "-1"], "train --inner-lr -1.0: expected a positive rate"),
        (["train", *TINY, "--outer-lr", "nan"], "train --outer-lr nan: expected a positive rate"),
        (["train", *TINY, "--inner-clip", "-1"], "train --inner-clip -1.0: expected a norm"),
        (["train", *TINY, "--clip", "-1"], "train --clip -1.0: expected a norm"),
        (["train", *TINY, "--hidden", "0"], "train --hidden 0: expected one or more widths >= 1"),
        (["train", *TINY, "--device", "gpu"], "train --device gpu: "),
        (["train", *TINY, "--inner-steps", "0"], "train --inner-steps 0: expected at least 1"),
        (["train", *TINY, "--inner-steps", "1.5"], "train --inner-steps 1.5: expected a whole number"),
        (["train", *TINY, "--inner-lr"], "train --inner-lr: expected one value"),
        (["train", *TINY, "--run-dir", "a", "b"], "train --run-dir a b: expected one value"),
        (["train", *TINY, "--shots", "0"], "train --shots 0: "),
        (["check", "--gradient", "truncated", "--last", "4"], "check --last 4: maml takes 1 inner steps"),
        (["train", *TINY, "--gradient", "implicit"], "meta_grad(maml, implicit(solve)): it needs"),
        (
            ["train", *TINY, "--learner", "imaml", "--solver-iterations", "0"],
            "train --solver-iterations 0: expected at",
        ),
        (["train", *TINY, "--learner", "protomaml"], "train --learner protomaml: recipe sinusoid gives no classes"),
        (["train", *TINY, "--learner", "mamal"], "train --learner mamal: did you mean 'maml'?"),
        (["train", *TINY, "--compile", "hole"], "train --compile hole: did you mean 'whole'?"),
        (
            ["train", *TINY, "--iteration", "3"],
            "train --iteration 3: no such option here; did you mean '--iterations'?",
        ),
        (["train", *TINY, "--iner-lr", "0.1"], "train --iner-lr 0.1: no such option here; did you mean '--inner-lr'?"),
        (["train", *TINY, "--inner_lr", "0.1", "--no-shots"], "train --no-shots: no such option here"),
        (["evaluate", "run", "--task", "3"], "evaluate --task 3: no such option here; did you mean '--tasks'?"),
        (["evaluate", "--run", "run"], "evaluate --run run: no such option here"),
        (["evaluate"], "evaluate: expected RUN, the folder of a run"),
        (["evaluate", "a", "b"], "evaluate: 'b' is too much"),
        (["report", "a", "--data-dir", "x"], "run 'a': no recipe.json there"),
        (["export", "a"], "export: expected --to"),
        (
            ["train", *TINY, "--context", "9"],
            "train --context 9: maml with unrolled does not take it; expected it with cavia",
        ),
        (
            ["train", *TINY, "--multi-step", "--learner", "reptile"],
            "--multi-step: reptile with difference does not take it",
        ),
        (
            ["train", *TINY, "--last", "2"],
            "train --last 2: maml with unrolled does not take it; expected it with truncated",
        ),
        (
            ["train", *TINY, "--sigma", "1", "--learner", "imaml"],
            "imaml with implicit does not take it; expected it with evol",
        ),
        (
            ["train", *TINY, "--distance", "cosine"],
            "train --distance cosine: no such option here",
        ),  # protonet's, not here
        (["train", *TINY, "--first-order-until", "-1"], "train --first-order-until -1: expected 0 or more"),
        (["train", *TINY, "--learner", "anil", "--adapt", "hed.*"], "'hed.*' matches no parameter; did you mean"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option_and_makes_no_folder(
    fails, tmp_path, monkeypatch, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(*arguments)
    assert contents(tmp_path) == {}


def test_a_gradient_that_does_not_fit_the_learner_says_which_do(tmp_path, fails):
    options = ["--learner", "meta_sgd", "--gradient", "difference", "--run-dir", tmp_path / "run"]
    message = fails("train", *TINY, *options)
    assert "meta_grad(meta_sgd, difference())" in message
    assert "these do: unrolled(), adjoint(), truncated(last), first_order()" in message


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--log-every", "0", "--log-every 0: expected at least 1"),
        ("--save-every", "0", "--save-every 0: expected at least 1"),
        ("--meta-batch", "0", "--meta-batch 0: expected at least 1"),
        ("--iterations", "0", "--iterations 0: expected at least 1"),
        ("--eval-tasks", "0", "--eval-tasks 0: expected at least 2"),
        ("--eval-tasks", "1", "--eval-tasks 1: expected at least 2"),
        ("--eval-steps", "-1", "--eval-steps -1: expected one or more"),
    ],
)
def test_impossible_numbers_are_refused_before_training_and_the_folder_stays_free(
    tmp_path, fails, option, value, named
):
    """After an error the corrected command must work, in the same folder."""
    assert named in fails("train", *TINY, "--run-dir", tmp_path / "run", option, value)
    assert main(["train", *TINY, "--run-dir", str(tmp_path / "run")]) == 0


def test_help_and_version(capfd):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        out = capfd.readouterr().out
        assert all(word in out for word in ("train", "evaluate", "check", "sinusoid", "omniglot", "glyphs"))
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capfd.readouterr().out)
    with pytest.raises(SystemExit) as caught:
        main(["train", "omniglot", "--help"])
    assert caught.value.code == 0
    out = capfd.readouterr().out
    assert "--inner-lr" in out
    assert "--data-dir" in out


def test_python_dash_m_without_a_cxx_compiler_says_so_in_one_line_and_runs_eager(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("with CUDA nothing needs a C++ compiler")
    (tmp_path / "empty").mkdir()
    environment = {n: v for n, v in os.environ.items() if n not in ("CXX", "CC")}
    environment |= {"PATH": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    auto = [word if word != "none" else "auto" for word in TINY]
    command = [sys.executable, "-m", "fmeta", "train", *auto, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "compiler" in line]
    assert said == ["running eager: found no C++ compiler (g++ or clang++); install one to compile"]
    assert done.stderr == ""
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["scope"] == "none"
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_python_dash_m_passes_the_status_on_and_reads_the_process_arguments(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["fmeta", "trian"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("fmeta", run_name="__main__")
    assert caught.value.code == 2
    assert "did you mean 'train'" in capfd.readouterr().err


# Omniglot


def test_omniglot_trains_and_evaluates(omniglot_dir, tmp_path, capfd):
    run = tmp_path / "run"
    options = ["--iterations", "2", "--meta-batch", "2", "--width", "4", "--compile", "none", "--eval-tasks", "4"]
    assert main(["train", "omniglot", "--data-dir", str(omniglot_dir), *options, "--run-dir", str(run)]) == 0
    out = words(capfd.readouterr().out)
    assert "query accuracy, %: tasks 4, recipe omniglot" in out
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["protocol"]["ways"] == 5
    assert evaluation["protocol"]["split"] == "finn test"
    assert evaluation["steps"] == [0, 1, 2, 3]
    assert all(0 <= value <= 1 for value in evaluation["accuracy"]["mean"])
    with Image.open(run / "adaptation.png") as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert len([c for _, c in colours if max(c) - min(c) > 60]) > 5
    assert main(["evaluate", str(run), "--json"]) == 0
    assert {"step": 2, **json.loads(capfd.readouterr().out)} == evaluation
    assert main(["train", "--resume", "--run-dir", str(run)]) == 0


def test_evaluate_shows_what_omniglots_classes_add(omniglot_dir, tmp_path, capfd):
    """Precision, recall, F1, calibration, characters by name, and the gap that batch norm makes."""
    run = tmp_path / "run"
    options = ["--iterations", "1", "--meta-batch", "2", "--width", "4", "--compile", "none", "--eval-tasks", "3"]
    options += ["--eval-steps", "0", "1", "--data-dir", str(omniglot_dir), "--query", "3", "--run-dir", str(run)]
    assert main(["train", "omniglot", *options]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(run), "--inductive", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert sum(of_class["examples"] for of_class in figures["classes"].values()) == 3 * 15
    assert all(name.count("/") == 1 for name in figures["classes"])
    assert any(value != 0 for value in figures["loss gap"]["mean"])
    assert main(["evaluate", str(run), "--inductive"]) == 0
    out = capfd.readouterr().out
    for name in ("precision", "recall", "f1"):
        assert all(f"{100 * value:.2f}" in out for value in figures[name]["mean"])
    assert all(f"{100 * value:.2f}" in out for value in figures["calibration error"]["pooled"])
    name, other, count = figures["confused"][0]
    assert f"at adaptation step 1: {name} for {other} ({count})" in words(out)


@pytest.mark.parametrize(
    "options",
    [
        ["--learner", "protonet", "--distance", "cosine"],
        ["--learner", "matching", "--full-context"],
        ["--learner", "relation", "--network", "conv2"],
        ["--learner", "ridge"],
    ],
)
def test_learners_without_an_inner_loop_train_and_evaluate(omniglot_dir, tmp_path, capfd, options):
    run, small = tmp_path / "run", ["--iterations", "2", "--meta-batch", "2", "--ways", "3"]
    small += [] if "conv2" in options else ["--width", "4"]
    more = ["--eval-tasks", "3", "--compile", "none", "--data-dir", str(omniglot_dir), "--run-dir", str(run)]
    assert main(["train", "omniglot", *options, *small, *more]) == 0
    trained = json.loads((run / "evaluation.json").read_text())
    assert trained["steps"] == [0]
    capfd.readouterr()
    assert main(["evaluate", str(run), "--tasks", "3", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["accuracy"] == trained["accuracy"]


def test_learners_that_compare_classes_are_refused_for_regression(tmp_path, fails):
    message = fails("train", "sinusoid", "--learner", "protonet", "--run-dir", tmp_path / "run")
    assert "train --learner protonet: recipe sinusoid gives no classes, features" in message
    assert not (tmp_path / "run").exists()


def test_omniglot_without_its_data_names_the_folder_and_makes_no_run(tmp_path, fails):
    (tmp_path / "empty").mkdir()
    message = fails("train", "omniglot", "--data-dir", tmp_path / "empty", "--run-dir", tmp_path / "run")
    assert str(tmp_path / "empty") in message
    assert not (tmp_path / "run").exists()


# glyphs

OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError("the network is cut off")

sys.addaudithook(refuse)
from fmeta.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_glyphs_train_and_evaluate_without_data_and_network(tmp_path):
    run, environment = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1", "FMETA_CACHE": str(tmp_path / "cache")}
    tiny = ["--iterations", "2", "--meta-batch", "2", "--width", "4", "--drawings", "2", "--eval-tasks", "4"]
    for arguments in (["train", "glyphs", *tiny, "--run-dir", run], ["evaluate", run, "--tasks", "3"]):
        command = [sys.executable, "-c", OFFLINE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "query accuracy, %: tasks" in words(done.stdout)
        assert "recipe glyphs" in words(done.stdout)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert (evaluation["protocol"]["split"], evaluation["protocol"]["ways"]) == ("test", 5)
    assert evaluation["steps"] == [0, 1, 2, 3]
    assert [p.name.partition("-")[0] for p in (tmp_path / "cache").glob("*.safetensors")] == ["glyphs"]


def test_glyphs_refuse_more_examples_than_drawings(tmp_path, fails):
    message = fails("train", "glyphs", "--drawings", "2", "--query", "2", "--run-dir", tmp_path / "run")
    assert "has 2 examples; expected at least shots + query = 3" in message
    assert not (tmp_path / "run").exists()


# ---- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--hidden", "100000", "100000"], "the network"),
        (["--shots", "1000000000"], "the validation tasks"),
        (["--query", "1000000000"], "the tasks of a meta-step"),
        (["--meta-batch", "100000000"], "the tasks of a meta-step"),
        (["--validation-tasks", "100000000"], "the validation tasks"),
        (["--eval-tasks", "100000000"], "the test tasks"),
    ],
)
def test_options_that_ask_for_more_memory_than_there_is(fails, tmp_path, monkeypatch, options, what):
    monkeypatch.setattr(_memory, "free_memory", lambda device: 8 << 30)
    message = fails("train", "sinusoid", *options, "--run-dir", tmp_path / "run", status=1)
    option = options[0].removeprefix("--").replace("-", "_")
    assert message.startswith(f"fmeta: train {' '.join(options)}: {what} would need about ")
    assert message.endswith(f"GiB, and about 8 GiB are free; lower {option}\n")
    assert not (tmp_path / "run").exists()


def test_numbers_beyond_all_memory(fails):
    options = ["--hidden", "10000000000", "10000000000"]
    message = fails("check", "sinusoid", *options, status=1)
    assert message == f"fmeta: check {' '.join(options)}: out of memory for the network; lower hidden\n"


def test_evaluate_of_more_tasks_than_there_is_memory_for(fails, run, monkeypatch):
    monkeypatch.setattr(_memory, "free_memory", lambda device: 8 << 30)
    message = fails("evaluate", run, "--tasks", "100000000", status=1)
    assert "fmeta: evaluate --tasks 100000000: the test tasks would need about " in message


def test_ordinary_options_cost_no_estimate(tmp_path, monkeypatch):
    """Nothing is looked at but the state and the tasks of `fit`."""
    calls, peak = [], _memory.peak_memory
    monkeypatch.setattr(_memory, "peak_memory", lambda f, *args: calls.append(f) or peak(f, *args))
    assert main(["train", "sinusoid", *TINY, "--run-dir", str(tmp_path / "run")]) == 0
    assert len(calls) == 2
