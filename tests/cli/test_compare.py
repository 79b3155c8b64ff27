"""`fmeta compare`: the same tasks for every run, figures and plots that can be read back."""

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image

import fmeta
from fmeta.cli import main
from fmeta.core.tree import tree_map
from fmeta.runs import open_run

TINY = ["--hidden", "4", "4", "--meta-batch", "2", "--iterations", "4", "--compile", "none", "--eval-tasks", "6"]


def words(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished sinusoid runs that differ in learner, steps and seed; the last in its shots."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "maml": ["--eval-steps", "0", "1", "3"],
        "meta_sgd": ["--learner", "meta_sgd", "--seed", "5", "--eval-steps", "0", "2"],
        "anil": ["--learner", "anil"],
        "shots": ["--shots", "4"],
    }
    for name, own in options.items():
        assert main(["train", *TINY, *own, "--run-dir", str(folder / name)]) == 0
    return folder


@pytest.fixture
def fails(capfd, tmp_path):
    def run_it(*arguments):
        capfd.readouterr()
        assert main(["compare", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        message = capfd.readouterr().err
        assert message.startswith("fmeta: ")
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return message

    return run_it


def colours(path):
    with Image.open(path) as image:
        assert min(image.size) > 200
        found = image.convert("RGB").getcolors(maxcolors=1 << 20)
    return len([c for _, c in found if max(c) - min(c) > 60])


def test_all_runs_are_measured_on_the_first_ones_tasks(runs, tmp_path, capfd):
    """Differences are those of `fmeta evaluate` where the seeds agree, and paired; the runs stay as they were."""
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    folders = [str(runs / name) for name in ("maml", "meta_sgd", "anil")]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    out = words(capfd.readouterr().out)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["metric"] == "loss"
    assert [run["run"] for run in found["runs"]] == folders
    protocols = [run["evaluation"]["protocol"] for run in found["runs"]]
    assert len({p["task list"] for p in protocols}) == 1
    assert [p["tasks"] for p in protocols] == [6, 6, 6]
    for name, run in zip(("maml", "anil"), found["runs"][::2], strict=True):
        own = json.loads((runs / name / "evaluation.json").read_text())
        assert run["evaluation"]["loss"] == own["loss"]
    last = [run["evaluation"]["loss"]["mean"][-1] for run in found["runs"]]
    for run, mean in zip(found["runs"], last, strict=True):
        difference = run["difference to the first"]
        assert difference["mean"] == pytest.approx(mean - last[0], abs=1e-9)
        low, high = difference["interval95"]
        assert low <= difference["mean"] <= high
        assert f"{mean:.4f}" in out
    assert found["runs"][0]["difference to the first"]["tied"] == 1.0
    assert found["runs"][1]["difference to the first"]["steps"] == [2, 3]
    for plot in ("adaptation.png", "differences.png"):
        assert colours(tmp_path / "out" / plot) > 3
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == before


def test_more_tasks_and_an_earlier_comparison(runs, tmp_path, capfd, monkeypatch):
    """By default the folder is ./comparison, and what stood there is replaced."""
    monkeypatch.chdir(tmp_path)
    folders = [str(runs / name) for name in ("maml", "anil")]
    for tasks in ("3", "40"):
        assert main(["compare", *folders, "--tasks", tasks]) == 0
    found = json.loads((tmp_path / "comparison" / "compare.json").read_text())
    assert found["runs"][0]["evaluation"]["protocol"]["tasks"] == 40
    assert "40 test tasks of" in capfd.readouterr().out


def test_bad_input_is_named_and_leaves_nothing(runs, fails, tmp_path):
    maml = runs / "maml"
    assert "expected the folders of two or more runs" in fails(maml)
    assert "expected the folders of two or more runs" in fails(maml, maml)
    message = fails(maml, runs / "anil", runs / "shots")
    assert f"run '{runs / 'shots'}'" in message
    assert "shots 4 where the first run has 10" in message
    assert "no recipe.json there" in fails(maml, tmp_path / "nothing")
    assert "compare --tasks 1: " in fails(maml, runs / "anil", "--tasks", "1")
    assert "compare --metric accuracy: run" in fails(maml, runs / "anil", "--metric", "accuracy")
    assert "not in" in fails(maml, runs / "anil", "--checkpoint", "3")


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    folders = [str(runs / name) for name in ("maml", "anil")]
    assert main(["compare", *folders, "--out", str(tmp_path / "file")]) == 2
    assert f"compare --out {tmp_path / 'file'}: " in capfd.readouterr().err


def test_omniglot_runs_of_two_learners(runs, omniglot_dir, tmp_path, capfd):
    """With classes precision, recall, F1 and calibration stand beside the accuracy; another domain is refused."""
    small = ["--iterations", "1", "--meta-batch", "2", "--width", "4", "--compile", "none", "--eval-tasks", "4"]
    options = [*small, "--eval-steps", "0", "1", "--data-dir", str(omniglot_dir)]
    for name, own in {"maml": [], "protonet": ["--learner", "protonet"]}.items():
        assert main(["train", "omniglot", *options, *own, "--run-dir", str(tmp_path / name)]) == 0
    capfd.readouterr()
    folders = [str(tmp_path / name) for name in ("maml", "protonet")]
    assert main(["compare", *folders, "--metric", "f1", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    own = json.loads((tmp_path / "protonet" / "evaluation.json").read_text())
    assert found["runs"][1]["evaluation"]["accuracy"] == own["accuracy"]
    assert found["runs"][1]["evaluation"]["classes"] == own["classes"]
    means = [run["evaluation"]["f1"]["mean"][-1] for run in found["runs"]]
    assert found["runs"][1]["difference to the first"]["mean"] == pytest.approx(means[1] - means[0], abs=1e-9)
    out = capfd.readouterr().out
    for run in found["runs"]:
        name, figures = run["run"].rpartition("/")[2], run["evaluation"]
        row = next(line for line in out.splitlines() if re.search(rf"│ {name}\s", line))
        shares = [figures[metric]["mean"][-1] for metric in ("f1", "precision", "recall")]
        shares.append(figures["calibration error"]["pooled"][-1])
        assert all(f" {100 * share:.2f} " in row for share in shares)
    assert main(["compare", folders[0], str(runs / "maml"), "--out", str(tmp_path / "out")]) == 2
    message = capfd.readouterr().err
    assert "recipe 'sinusoid' where the first run has 'omniglot'" in message
    assert "ways None where the first run has 5" in message


def test_a_run_whose_figures_are_nan_can_be_compared(runs, tmp_path):
    """Weights of NaN, as a broken run leaves them."""
    broken = shutil.copytree(runs / "anil", tmp_path / "broken")
    of = open_run(broken).experiment
    like = fmeta.trainer(of.build_learner(), of.optimizer(), of.phases(of.build_learner())).init(of.key())
    state = fmeta.load_checkpoint(broken / "checkpoints" / "00000004", like)
    nan = tree_map(lambda p: torch.full_like(p, torch.nan), state.meta)
    fmeta.save_checkpoint(broken / "checkpoints", state._replace(meta=nan), 4)
    assert main(["compare", str(runs / "maml"), str(broken), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["runs"][1]
    assert all(math.isnan(value) for value in found["evaluation"]["loss"]["mean"])
    assert found["difference to the first"]["won"] == found["difference to the first"]["tied"] == 0.0
