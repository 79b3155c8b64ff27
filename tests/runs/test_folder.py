"""The folder of a run: what it says of itself, and what it does not take."""

import json
import re
import shutil

import pytest

from fmeta.cli import main
from fmeta.core import InputError
from fmeta.runs import Trained, experiment, load, measure, open_run, train
from fmeta.runs._evaluations import read_evaluation
from fmeta.runs._folder import DIGEST, change_run
from fmeta.training._checkpoint import checkpoints

TINY = {"hidden": (4,), "meta_batch": 2, "iterations": 4, "save_every": 2, "compile": "none", "eval_tasks": 3}
TINY |= {"eval_steps": (0, 1), "outer_schedule": "constant"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train(experiment("sinusoid", **TINY), run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def edit(run, part, **options):
    stored = json.loads((run / "recipe.json").read_text())
    stored[part]["options"] |= options
    (run / "recipe.json").write_text(json.dumps(stored))


def test_a_run_is_opened_as_it_was_trained(trained):
    of = experiment("sinusoid", **TINY)
    opened = open_run(trained)
    assert opened.experiment == of
    assert opened.experiment.digest() == checkpoints(trained / "checkpoints")[-1][1][DIGEST]
    stored = json.loads((trained / "recipe.json").read_text())
    assert list(stored)[:4] == ["format", "fmeta", "torch", "scope"]
    assert stored["learner"]["options"].keys() == {"inner_lr", "inner_steps", "inner_optimizer", "inner_clip"}
    assert "context" not in json.dumps(stored)  # an option of another learner
    found = load(trained)
    assert isinstance(found, Trained)
    assert measure(found).mean("loss") == json.loads((trained / "evaluation.json").read_text())["loss"]["mean"]


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("learner", {"inner_lr": 0.02}),
        ("recipe", {"shots": 5}),
        ("run", {"seed": 1}),
        ("gradient", {"multi_step": True}),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "report", "export --to torch", "train --resume --run-dir"])
def test_a_recipe_that_was_edited_by_hand_is_refused(run, capfd, part, options, command):
    edit(run, part, **options)
    name, *words = command.split()
    assert main([name, str(run), *words] if "--run-dir" not in words else [name, *words, str(run)]) == 2
    message = capfd.readouterr().err
    assert message.startswith(f"fmeta: run '{run}': recipe.json was edited by hand: the checkpoint of step ")
    assert "bring the old values back" in message
    assert message.count("\n") == 1


def test_what_does_not_decide_the_run_may_be_edited(run):
    edit(run, "run", eval_tasks=4, device="cpu", log_every=7)
    assert open_run(run).experiment.run.eval_tasks == 4
    assert len(measure(load(run)).values["loss"]) == 4


def test_what_fmeta_itself_changes_is_known_as_such(run):
    """More iterations, whose checkpoints stand beside the earlier ones for a while."""
    before = open_run(run)
    changed = change_run(before, before.experiment.changed(iterations=8))
    assert changed.earlier == (before.experiment.digest(),)
    assert open_run(run) == changed
    assert not (run / "evaluation.json").exists()
    assert not (run / "evaluation.safetensors").exists()
    again = change_run(changed, changed.experiment)
    assert again.earlier == changed.earlier
    train(changed.experiment, run, resume=True)
    assert load(run).step == 8
    edit(run, "run", iterations=9)
    with pytest.raises(InputError, match=r"edited by hand: the checkpoint of step 8"):
        open_run(run)


def test_runs_of_another_version_are_refused_by_it_with_the_cure(run, capfd):
    """Version 0.1.0 wrote no format."""
    old = {"fmeta": "0.1.0", "torch": "2.11.0", "recipe": "sinusoid", "scope": "none", "fields": {"learner": "maml"}}
    for stored, version in ((old, "0.1.0"), ({**old, "format": 3, "fmeta": "9.0"}, "9.0")):
        (run / "recipe.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match=re.escape(f"written by fmeta {version}, whose runs this version cannot")):
            open_run(run)
        for command in (["evaluate", str(run)], ["train", "--recipe", str(run / "recipe.json")]):
            assert main(command) == 2
            message = capfd.readouterr().err
            assert f"recipe.json: written by fmeta {version}" in message
            assert "use that version for it, or train it again" in message


def test_a_recipe_that_is_not_installed_is_named_with_what_brings_it(run):
    stored = json.loads((run / "recipe.json").read_text())
    stored["recipe"] |= {"name": "tokens", "from": "fmeta-tokens 1.2"}
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"'tokens' is not installed here.* of fmeta-tokens 1\.2; install fmeta-tok"):
        open_run(run)


def test_an_evaluation_is_read_back_whole_and_only_for_what_it_is_of(trained):
    found = load(trained)
    kept, measured = read_evaluation(trained, found, 3), measure(found)
    assert kept.summary() == measured.summary()
    assert kept.values.keys() == measured.values.keys()
    assert read_evaluation(trained, found, 4) is None
    asked = found.experiment.changed(eval_steps=(0, 2))
    assert read_evaluation(trained, found._replace(experiment=asked), 3) is None
    assert read_evaluation(trained, found._replace(step=2), 3) is None
    assert json.loads((trained / "evaluation.json").read_text())["step"] == 4
