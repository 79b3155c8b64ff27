"""`fmeta ablate`: a grid over seeds that can be broken off, gone on with, and read back."""

import json
import math
import statistics

import pytest
from helpers import options_of
from PIL import Image

from fmeta.cli import _printing, main

TINY = ["--meta-batch", "2", "--iterations", "2", "--compile", "none", "--eval-tasks", "4", "--eval-steps", "0", "1"]
GRID = ["ablate", "sinusoid", "--learner", "maml,anil", "--hidden", "4 4|5", *TINY, "--seeds", "2", "--seed", "3"]


def files(folder):
    """What the runs hold, with the time of the last change."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("seed-*/**/*") if p.is_file()}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "grid"
    assert main([*GRID, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def fails(capfd, tmp_path):
    """An ablation that must be refused before anything trains."""

    def run_it(*arguments):
        capfd.readouterr()
        assert main(["ablate", "sinusoid", *TINY, *map(str, arguments), "--run-dir", str(tmp_path / "out")]) == 2
        message = capfd.readouterr().err
        assert message.startswith("fmeta: ")
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return message

    return run_it


def test_every_combination_is_trained_over_all_seeds(ablation):
    found = json.loads((ablation / "ablation.json").read_text())
    assert (found["recipe"], found["metric"], found["seeds"]) == ("sinusoid", "loss", 2)
    grid = [("maml", [4, 4]), ("maml", [5]), ("anil", [4, 4]), ("anil", [5])]
    assert [tuple(c["fields"].values()) for c in found["combinations"]] == grid
    for (learner, hidden), combination in zip(grid, found["combinations"], strict=True):
        assert len(combination["runs"]) == 2
        for seed, run in zip((3, 4), combination["runs"], strict=True):
            fields = options_of(ablation / run / "recipe.json")
            assert fields["learner"] == learner
            assert fields["hidden"] == hidden
            assert (fields["seed"], fields["iterations"]) == (seed, 2)
    with Image.open(ablation / "ablation.png") as image:
        assert min(image.size) > 200


def test_one_seed_has_no_interval_over_seeds(tmp_path, capfd):
    """Said in words."""
    command = ["ablate", "sinusoid", "--hidden", "4", *TINY, "--seeds", "1", "--run-dir", str(tmp_path)]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "one run" in said
    assert "nan" not in said


def test_a_run_whose_evaluation_is_damaged_is_evaluated_again(tmp_path):
    command = ["ablate", "sinusoid", "--hidden", "4", *TINY, "--seeds", "1", "--run-dir", str(tmp_path)]
    assert main(command) == 0
    evaluation, table = next(tmp_path.rglob("evaluation.json")), tmp_path / "ablation.json"
    whole, told = evaluation.read_text(), table.read_text()
    evaluation.write_text(whole[:-50])
    assert main(command) == 0
    assert (evaluation.read_text(), table.read_text()) == (whole, told)


def test_intervals_are_over_seeds_and_over_tasks(ablation):
    """Student's t with one degree of freedom; the errors of independent tasks add in squares."""
    for combination in json.loads((ablation / "ablation.json").read_text())["combinations"]:
        runs = [json.loads((ablation / run / "evaluation.json").read_text())["loss"] for run in combination["runs"]]
        means, halves = ([run[figure][-1] for run in runs] for figure in ("mean", "interval95"))
        assert combination["means"] == means
        assert combination["mean"] == pytest.approx(statistics.fmean(means))
        assert combination["over_seeds"] == pytest.approx(12.7062 * statistics.stdev(means) / math.sqrt(2), rel=1e-4)
        assert combination["over_tasks"] == pytest.approx(math.sqrt(halves[0] ** 2 + halves[1] ** 2) / 2)


def test_a_run_of_the_grid_is_that_of_train(ablation, tmp_path):
    options = ["--learner", "anil", "--hidden", "5", "--seed", "4", *TINY, "--run-dir", str(tmp_path / "run")]
    assert main(["train", "sinusoid", *options]) == 0
    run = json.loads((ablation / "ablation.json").read_text())["combinations"][3]["runs"][1]
    for name in ("recipe.json", "evaluation.json"):
        assert (tmp_path / "run" / name).read_text() == (ablation / run / name).read_text()


def test_finished_runs_are_skipped_and_a_wider_grid_trains_the_new_ones_only(ablation, capfd):
    before = files(ablation)
    table = json.loads((ablation / "ablation.json").read_text())
    capfd.readouterr()
    assert main([*GRID, "--run-dir", str(ablation)]) == 0
    assert capfd.readouterr().out.count("is finished") == 8
    assert files(ablation) == before
    assert json.loads((ablation / "ablation.json").read_text()) == table
    wider = [word.replace("maml,anil", "maml,anil,boil") for word in GRID]
    assert main([*wider, "--run-dir", str(ablation)]) == 0
    after = files(ablation)
    assert {p: after[p] for p in before} == before
    assert len([p for p in after if p.name == "evaluation.json"]) == 12
    assert main([*GRID, "--run-dir", str(ablation)]) == 0  # as the other tests found it
    assert json.loads((ablation / "ablation.json").read_text()) == table


def test_an_interrupted_ablation_goes_on_where_it_stood(tmp_path, monkeypatch, capfd):
    command = ["ablate", "sinusoid", "--learner", "maml,anil", *TINY, "--log-every", "1", "--save-every", "1"]
    command += ["--seeds", "1", "--hidden", "4"]
    real, calls = _printing.Bar.__call__, []

    def interrupts(self, step, values):
        calls.append(step)
        if len(calls) == 3:  # the first step of the second run
            raise KeyboardInterrupt
        real(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(_printing.Bar, "__call__", interrupts)
        assert main([*command, "--run-dir", str(tmp_path / "cut")]) == 130
    assert f"--run-dir {tmp_path / 'cut'}" in capfd.readouterr().out
    assert not (tmp_path / "cut" / "ablation.json").exists()
    assert (tmp_path / "cut" / "learner=anil" / "seed-0" / "checkpoints" / "00000001").exists()
    assert main([*command, "--run-dir", str(tmp_path / "cut")]) == 0
    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "cut" / "ablation.json").read_text() == (tmp_path / "whole" / "ablation.json").read_text()


def test_without_run_dir_a_new_folder_below_runs_is_made_and_seeds_alone_are_enough(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *TINY, "--hidden", "4", "--seeds", "1"]) == 0  # sinusoid is the default
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("ablation-sinusoid-")
    (combination,) = json.loads((folder / "ablation.json").read_text())["combinations"]
    assert combination["fields"] == {}
    assert math.isnan(combination["over_seeds"])
    assert "kept in: runs/ablation-sinusoid-" in capfd.readouterr().out


def test_flags_are_given_as_true_and_false(tmp_path):
    options = ["--multi-step", "true,false", "--hidden", "4", "--inner-steps", "2", "--seeds", "1"]
    assert main(["ablate", "sinusoid", *TINY, *options, "--run-dir", str(tmp_path / "out")]) == 0
    found = {p.parent.parent.name: options_of(p)["multi_step"] for p in tmp_path.rglob("recipe.json")}
    assert found == {"multi_step=True": True, "multi_step=False": False}


def test_a_run_that_diverges_is_reported_and_the_others_go_on(tmp_path, capfd):
    options = ["--inner-lr", "1e30,0.01", "--hidden", "4", "--seeds", "1", "--run-dir", str(tmp_path / "out")]
    assert main(["ablate", "sinusoid", *TINY, *options]) == 0
    assert "it diverged: fit(maml)" in capfd.readouterr().out
    bad, good = json.loads((tmp_path / "out" / "ablation.json").read_text())["combinations"]
    assert (bad["means"], math.isnan(bad["mean"])) == ([], True)
    assert len(good["means"]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--hidden", "4,5"], "ablate --hidden 4,5: each value is several numbers; expected values separated by |"),
        (["--seed", "1,2"], "ablate --seed 1,2: expected one number, where seeds begin; --seeds says how many"),
        (["--inner-lr", "0.1,0.1"], "ablate --inner-lr 0.1,0.1: a value is given twice"),
        (["--learner", "anil", "--adapt", "head.*|head.?"], "two combinations would share the folder 'adapt=head._'"),
        (["--multi-step", "yes,no"], "ablate --multi-step yes: expected nothing after it, or true or false"),
        (["--seeds", "0"], "ablate --seeds 0: expected at least 1"),
        (["--inner-steps", "1,0"], "ablate --inner-steps 0: expected at least 1"),
        (["--learner", "maml,protonet"], "ablate --learner protonet: recipe sinusoid gives no classes"),
        (["--iterations", "2,0"], "ablate --iterations 0: expected at least 1"),
        (["--inner-lr", "0.1,fast"], "ablate --inner-lr fast: expected a number"),
        (["--learner", "maml,mamal"], "ablate --learner mamal: did you mean 'maml'?"),
        (["--iner-lr", "1,2"], "ablate --iner-lr 1,2: no such option here; did you mean '--inner-lr'?"),
        (["--context", "3,5"], "ablate --context 3: maml with unrolled does not take it; expected it with cavia"),
        (["--learner", "maml,anil", "--damping", "3"], "ablate --damping 3.0: maml with unrolled does not take it"),
        (["--cavia.inner-lr", "0.1,0.2"], "ablate --cavia.inner-lr 0.1: "),
        (["--mamal.inner-lr", "0.1,0.2"], "ablate --mamal.inner-lr 0.1,0.2: no such option here"),
    ],
)
def test_bad_values_are_named_before_anything_trains(fails, arguments, named):
    assert named in fails(*arguments)


def test_an_option_counts_for_those_of_the_learners_that_take_it(tmp_path, capfd):
    """One learner's own option, one of several, and one that is addressed; no combination twice."""
    options = ["--learner", "maml,cavia", "--context", "1,2", "--maml.inner-lr", "0.1,0.2", "--cavia.inner-steps", "2"]
    command = ["ablate", "sinusoid", *TINY, "--hidden", "4", *options, "--seeds", "1", "--run-dir", str(tmp_path)]
    assert main(command) == 0
    combinations = json.loads((tmp_path / "ablation.json").read_text())["combinations"]
    assert [c["fields"] for c in combinations] == [
        {"learner": "maml", "maml.inner_lr": 0.1}, {"learner": "maml", "maml.inner_lr": 0.2},
        {"learner": "cavia", "context": 1}, {"learner": "cavia", "context": 2},
    ]  # fmt: skip
    own = [options_of(tmp_path / c["runs"][0] / "recipe.json") for c in combinations]
    assert [o["inner_lr"] for o in own] == [0.1, 0.2, 0.01, 0.01]
    assert [o["inner_steps"] for o in own] == [1, 1, 2, 2]
    assert [o.get("context") for o in own] == [None, None, 1, 2]
    out = capfd.readouterr().out
    assert out.count("run 4 of 4") == 1
    assert "–" in out  # of a learner that does not take it


def test_a_folder_of_another_ablation_is_refused_and_untouched(ablation, capfd):
    before = files(ablation)
    other = [word if word != "2" else "3" for word in GRID]  # iterations, meta-batch and seeds
    assert main([*other, "--run-dir", str(ablation)]) == 2
    assert "the recipe differs" in capfd.readouterr().err
    assert files(ablation) == before


def test_an_unknown_recipe_is_named(capfd):
    assert main(["ablate", "sinusiod", "--seeds", "1"]) == 2
    assert "unknown recipe 'sinusiod'; did you mean 'sinusoid'?" in capfd.readouterr().err
