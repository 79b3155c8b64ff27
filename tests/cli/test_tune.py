"""`fmeta tune`: a study that many processes may work on and that can be broken off."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import lines_of, options_of
from PIL import Image

from fmeta.cli import main
from fmeta.runs import _study, _tuning

optuna = pytest.importorskip("optuna")

TINY = ["--hidden", "4", "--meta-batch", "2", "--compile", "none", "--eval-tasks", "4", "--eval-steps", "0", "1"]
QUICK = ["tune", "sinusoid", *TINY, "--iterations", "1", "--inner-lr", "0.001:1:log", "--learner", "maml,anil"]
GRID = ["tune", "sinusoid", *TINY, "--sampler", "grid", "--inner-lr", "0.001,0.002,0.003,0.004,0.005,1"]
RATES = [*GRID, "--iterations", "20"]


def trials_of(folder):
    return json.loads((folder / "trials.json").read_text())["trials"]


def proposed(folder):
    return [trial["fields"] for trial in trials_of(folder)]


def states(folder):
    return [trial["state"] for trial in trials_of(folder)]


def begin(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "fmeta", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of a grid whose last combination is far the worst."""
    folder = tmp_path_factory.mktemp("study") / "rates"
    assert main([*RATES, "--trials", "9", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def fails(capfd):
    """A command that must be refused."""

    def run_it(*arguments):
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        message = capfd.readouterr().err
        assert message.startswith("fmeta: ")
        assert message.count("\n") == 1
        return message

    return run_it


# the study


def test_a_grid_covers_each_combination_once_and_ends_there(study, capfd):
    assert [fields["inner_lr"] for fields in proposed(study)] == [0.001, 0.002, 0.003, 0.004, 0.005, 1.0]
    capfd.readouterr()
    assert main([*RATES, "--trials", "9", "--run-dir", str(study)]) == 0
    out = capfd.readouterr().out
    assert "the grid is exhausted: it has 6 combinations" in out
    assert "trial 6" not in out
    assert len(trials_of(study)) == 6


def test_a_trial_is_judged_by_its_last_validation_and_sees_no_test_task(study):
    for trial in trials_of(study):
        folder = study / f"trial-{trial['number']:04d}"
        assert trial["value"] == lines_of(folder)[-1]["validation/loss"]
        assert not (folder / "evaluation.json").exists()
        assert trial["seconds"] > 0


def test_what_falls_behind_is_pruned_after_fewer_steps(study):
    assert states(study) == ["finished"] * 5 + ["pruned"]
    steps = [lines_of(study / f"trial-{number:04d}")[-1]["step"] for number in range(6)]
    assert steps == [20] * 5 + [2]


def test_the_best_trial_is_a_recipe_that_trains_to_the_same_bits(study, tmp_path):
    best = min((t for t in trials_of(study) if t["state"] == "finished"), key=lambda trial: trial["value"])
    trial, run = study / f"trial-{best['number']:04d}", tmp_path / "run"
    assert main(["train", "--recipe", str(study / "best.json"), "--run-dir", str(run)]) == 0
    assert json.loads((run / "recipe.json").read_text()) == json.loads((trial / "recipe.json").read_text())
    state = "checkpoints/00000020/state.safetensors"
    assert (run / state).read_bytes() == (trial / state).read_bytes()
    assert (run / "evaluation.json").exists()


def test_plots_and_a_table_of_the_best_trials(tmp_path, capfd):
    folder = tmp_path / "study[red]1"
    assert main([*QUICK, "--trials", "3", "--run-dir", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "no importance.png: it takes 4 finished trials and two options" in out
    assert not (folder / "importance.png").exists()
    assert main([*QUICK, "--trials", "6", "--run-dir", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "6 finished" in out
    ranked = sorted(trials_of(folder), key=lambda trial: trial["value"])
    rows = [line.strip("│ ").split("│")[0].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows == [str(trial["number"]) for trial in ranked[:5]]
    assert f"fmeta train --recipe '{folder}/best.json'" in out
    for name in ("history.png", "importance.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100


def test_a_study_that_goes_on_reaches_its_number_with_the_proposals_of_one_that_never_stopped(tmp_path, capfd):
    """The estimator takes over from chance after ten trials."""
    for name, parts in {"whole": [12], "parts": [3, 11, 12, 12], "other": [1]}.items():
        seed = ["--seed", "5"] if name == "other" else []
        for trials in parts:
            assert main([*QUICK, *seed, "--trials", str(trials), "--run-dir", str(tmp_path / name)]) == 0
            assert len(trials_of(tmp_path / name)) == trials
    assert proposed(tmp_path / "parts") == proposed(tmp_path / "whole")
    assert len({str(fields) for fields in proposed(tmp_path / "whole")}) == 12
    assert proposed(tmp_path / "other")[0] != proposed(tmp_path / "whole")[0]
    out = capfd.readouterr().out
    assert f"more trials: fmeta tune sinusoid {' '.join(QUICK[2:])} --run-dir" in out


TOGETHER = """
import os, pathlib, sys, time
import optuna
from fmeta.cli import main
folder = pathlib.Path(sys.argv[1])
(folder / f"{os.getpid()}.ready").touch()
while len([*folder.glob("*.ready")]) < 2:  # imports take one longer than the other
    time.sleep(0.01)
sys.exit(main(sys.argv[2:]))
"""


def test_processes_share_a_study_without_doing_a_trial_twice(tmp_path):
    database = f"sqlite:///{tmp_path / 'trials.db'}"
    command = [*QUICK, "--sampler", "random", "--trials", "16", "--storage", database]
    words = [sys.executable, "-c", TOGETHER, str(tmp_path), *command, "--run-dir", str(tmp_path / "study")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(words, env=os.environ, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    own = [{int(line.split()[1][:-1]) for line in text.splitlines() if line.startswith("trial ")} for text in said]
    assert own[0]
    assert own[1]
    assert not own[0] & own[1]
    assert own[0] | own[1] == set(range(16))
    assert len({str(fields) for fields in proposed(tmp_path / "study")}) == 16
    assert not (tmp_path / "study" / "study.db").exists()


def test_workers_train_at_the_same_time_and_the_first_sums_up(tmp_path, capfd):
    folder, rates = tmp_path / "study", ["--inner-lr", "0.005,0.004,0.003,0.002,0.001,0.006,0.007,0.008"]
    options = ["--sampler", "grid", "--iterations", "200", "--trials", "8", "--workers", "2", "--run-dir", str(folder)]
    assert main(["tune", "sinusoid", *TINY, *rates, *options]) == 0
    out = capfd.readouterr().out
    assert sorted(int(line.split()[1][:-1]) for line in out.splitlines() if line.startswith("trial ")) == [*range(8)]
    assert out.count("train the best") == 1
    assert set(states(folder)) <= {"finished", "pruned"}
    trials = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}").trials
    assert any(b.datetime_start < a.datetime_complete for a, b in itertools.pairwise(trials))


def test_after_a_kill_the_broken_trial_is_begun_again_and_the_number_reached(tmp_path):
    folder, command = tmp_path / "study", [*GRID, "--iterations", "150", "--trials", "6"]
    process = begin(*command, "--run-dir", folder)
    begun, deadline = folder / "trial-0001" / "metrics.jsonl", time.monotonic() + 200
    while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert main([*command, "--run-dir", str(folder)]) == 0
    found = trials_of(folder)
    broken = [trial["number"] for trial in found if trial["state"] == "broken off"]
    assert broken == [1]
    ended = [trial for trial in found if trial["state"] in ("finished", "pruned")]
    assert sorted(trial["fields"]["inner_lr"] for trial in ended) == [0.001, 0.002, 0.003, 0.004, 0.005, 1.0]


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(number):
    """Those that run this Python's trials; multiprocessing has one more that keeps track of resources."""
    found = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [int(n) for n in found if "spawn_main" in Path(f"/proc/{n}/cmdline").read_text()]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_first_process(tmp_path, asked):
    folder = tmp_path / "study"
    process = begin(
        *QUICK[:-4], "--iterations", "100000", "--inner-lr", "0.001:1:log", "--workers", "2", "--run-dir", folder
    )
    deadline = time.monotonic() + 200
    while len(list(folder.glob("trial-*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children_of(process.pid)
    assert len(workers) == 1
    process.send_signal(asked)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}[asked], output
    assert asked == signal.SIGKILL or "interrupted; go on with: fmeta tune sinusoid" in output
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_storage_that_no_longer_answers_ends_the_study_with_its_reason(tmp_path, monkeypatch, capfd):
    """Another process holds the database for longer than anyone waits."""
    folder, command = tmp_path / "study", [*QUICK, "--trials", "2", "--run-dir", str(tmp_path / "study")]
    held = []

    def locks(self, step, values):
        if not held:
            held.append(sqlite3.connect(folder / "study.db", isolation_level=None))
            held[0].execute("begin exclusive")

    with monkeypatch.context() as patch:
        patch.setattr(_tuning._Follow, "__call__", locks)
        patch.setattr(_study, "_WAITS", 0.2)
        assert main(command) == 1
    held[0].close()
    err = capfd.readouterr().err
    assert "tune: the storage of the trials failed: (sqlite3.OperationalError) database is locked" in err
    assert "go on with: fmeta tune sinusoid" in err
    assert "Traceback" not in err
    assert main(command) == 0
    assert states(folder) == ["broken off", "finished", "finished"]


def test_a_relative_storage_is_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ["--storage", "sqlite:///trials.db", "--run-dir"]
    assert main([*QUICK, "--trials", "1", *options, "study"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main([*QUICK, "--trials", "2", "--run-dir", "../study"]) == 0
    assert states(tmp_path / "study") == ["finished"] * 2
    assert not list((tmp_path / "elsewhere").iterdir())


def test_trials_are_validated_when_it_is_asked(tmp_path):
    folder = tmp_path / "study"
    assert main([*QUICK, "--iterations", "20", "--validate-every", "8", "--trials", "1", "--run-dir", str(folder)]) == 0
    lines = lines_of(folder / "trial-0000")
    assert [line["step"] for line in lines if "validation/loss" in line] == [8, 16, 20]


def test_ctrl_c_says_how_to_go_on_and_the_trial_is_not_counted(tmp_path, monkeypatch, capfd):
    real, calls = _tuning._Follow.__call__, []

    def interrupts(self, step, values):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(_tuning._Follow, "__call__", interrupts)
        assert main([*QUICK, "--trials", "4", "--run-dir", str(tmp_path / "study")]) == 130
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("interrupted")]
    assert main(line.split()[5:]) == 0
    assert states(tmp_path / "study") == ["finished"] * 2 + ["broken off"] + ["finished"] * 2


def test_a_trial_that_diverges_or_does_not_fit_fails_with_its_message_and_the_study_goes_on(tmp_path):
    folder = tmp_path / "study"
    options = ["--inner-lr", "0.01,1e30", "--gradient", "truncated", "--last", "2", "--inner-steps", "2,1"]
    assert main(["tune", *TINY, "--iterations", "3", *options, "--sampler", "grid", "--run-dir", str(folder)]) == 0
    found = {(t["fields"]["inner_lr"], t["fields"]["inner_steps"]): t for t in trials_of(folder)}
    assert found[0.01, 2]["state"] == "finished"
    assert "fit(maml): loss, meta-gradient or update not finite" in found[1e30, 2]["error"]
    assert all("truncated(last=2): maml takes 1 inner steps" in found[rate, 1]["error"] for rate in (0.01, 1e30))
    assert all(found[key]["state"] == "failed" for key in ((1e30, 2), (0.01, 1), (1e30, 1)))
    assert options_of(folder / "best.json")["inner_lr"] == 0.01


def test_a_study_whose_trials_all_fail_ends_with_the_reason(tmp_path, fails):
    options = ["--inner-lr", "1e30:1e31", "--trials", "2", "--run-dir", tmp_path / "study"]
    message = fails("tune", "sinusoid", *TINY, "--iterations", "3", *options)
    assert "tune --trials 2: every trial failed, the last so: fit(maml)" in message
    assert states(tmp_path / "study") == ["failed", "failed"]
    assert not (tmp_path / "study" / "best.json").exists()


def test_without_a_space_both_rates_and_the_inner_steps_are_tuned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *TINY, "--iterations", "1", "--trials", "1", "--inner-lr", "0.02"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("tune-sinusoid-")
    space = json.loads((folder / "study.json").read_text())["space"]
    assert space == {"inner_lr": "0.002:0.2:log", "outer_lr": "0.0003:0.03:log", "inner_steps": "1:5"}


# mistakes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trials", "0"], "tune --trials 0: "),
        (["--workers", "0"], "tune --workers 0: "),
        (["--grid-points", "1"], "tune --grid-points 1: expected at least 2"),
        (["--inner-lr", "1:0.1"], "tune --inner-lr 1:0.1: from 1.0 to 0.1 is no range"),
        (["--inner-steps", "2:2"], "tune --inner-steps 2:2: from 2 to 2 is no range"),
        (["--inner-lr", "0:1:log"], "tune --inner-lr 0:1:log: a log scale from 0.0"),
        (["--inner-lr", "slow:fast"], "tune --inner-lr slow:fast: expected LOW:HIGH or LOW:HIGH:log, numbers"),
        (["--inner-lr", "0.1:nan"], "tune --inner-lr 0.1:nan: "),
        (["--inner-lr", "0.1:1:cube"], "tune --inner-lr 0.1:1:cube: "),
        (["--inner-lr", "0.1:"], "tune --inner-lr 0.1:: "),
        (["--inner-steps", "1:2.5"], "tune --inner-steps 1:2.5: expected LOW:HIGH or LOW:HIGH:log, whole numbers"),
        (["--learner", "1:5"], "tune --learner 1:5: it is no option of one number"),
        (["--hidden", "4:8"], "tune --hidden 4:8: it is no option of one number"),
        (["--hidden", "4,8"], "tune --hidden 4,8: each value is several numbers"),
        (["--inner-lr", "0.1,0.1"], "tune --inner-lr 0.1,0.1: a value is given twice"),
        (["--inner-lr", "0.1,0.10"], "tune --inner-lr 0.1,0.10: a value is given twice"),
        (["--validation-tasks", "5,200"], "tune --validation-tasks 5|200: it changes where a trial runs, or how"),
        (["--threads", "1,2"], "tune --threads 1|2: it changes where a trial runs"),
        (["--inner-lr", "0.1:1", "--inner-lr", "0.1"], "tune --inner-lr 0.1: it is given twice"),
        (["--inner-lr", ","], "tune --inner-lr ,: no values"),
        (["--multi-step", "yes,no"], "tune --multi-step yes: expected nothing after it, or true or false"),
        (["--seed", "1:3"], "tune --seed 1:3: it changes"),
        (["--shots", "1,5"], "tune --shots 1|5: it changes the validation tasks"),
        (["--meta-batch", "0"], "tune --meta-batch 0: expected at least 1"),
        (["--learner", "protonet,ridge"], "tune --learner protonet: recipe sinusoid gives no classes"),
        (["--learner", "protonet"], "tune --learner protonet: recipe sinusoid gives no classes"),
        (["--sampler", "tpee"], "tune --sampler tpee: did you mean 'tpe'?"),
        (["--inner-lr", "0.1,fast"], "tune --inner-lr fast: expected a number"),
        (["--iner-lr", "0.1:1"], "tune --iner-lr 0.1:1: no such option here; did you mean '--inner-lr'?"),
        (["--context", "1:5"], "maml with unrolled does not take it; expected it with cavia"),
    ],
)
def test_a_space_that_does_not_fit_is_named_before_the_folder_is_made(tmp_path, fails, arguments, named):
    assert named in fails("tune", "sinusoid", *TINY, *arguments, "--run-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_option_is_tuned_for_the_learners_that_take_it(tmp_path):
    """`context` is cavia's alone, `maml.inner_lr` addresses one; the others keep their default."""
    space = ["--learner", "maml,cavia", "--context", "1:3", "--maml.inner-lr", "0.1,0.2", "--sampler", "grid"]
    command = ["tune", "sinusoid", *TINY, "--iterations", "1", *space, "--grid-points", "2", "--trials", "9"]
    assert main([*command, "--run-dir", str(tmp_path / "study")]) == 0
    assert proposed(tmp_path / "study") == [
        {"learner": "maml", "maml.inner_lr": 0.1}, {"learner": "maml", "maml.inner_lr": 0.2},
        {"learner": "cavia", "context": 1}, {"learner": "cavia", "context": 3},
    ]  # fmt: skip
    own = [options_of(tmp_path / "study" / f"trial-{n:04d}" / "recipe.json") for n in range(4)]
    assert [(o["learner"], o["inner_lr"], o.get("context")) for o in own] == [
        ("maml", 0.1, None), ("maml", 0.2, None), ("cavia", 0.01, 1), ("cavia", 0.01, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("study.db", "Could not parse"),
        ("nonsense://x", "Can't load plugin"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("sqlite://", "it ends with the process"),
        ("sqlite:///{}/text.db", "file is not a database"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_and_the_folder_stays_free(tmp_path, fails, storage, named):
    (tmp_path / "text.db").write_text("this is no database, but long enough to be taken for one")
    url, command = storage.format(tmp_path), [*QUICK, "--trials", "1", "--run-dir", str(tmp_path / "study")]
    message = fails(*command, "--storage", url)
    assert f"tune --storage {url}: " in message or f"tune(storage={url!r})" in message
    assert named in message
    assert main(command) == 0


def test_a_study_that_differs_is_refused_by_what_differs(study, fails):
    command = ["--trials", "9", "--run-dir", study]
    assert "the study in" in (message := fails("tune", "omniglot", *command, "--data-dir", "x"))
    assert "is of sinusoid" in message
    assert "inner_lr: '0.001|0.002|0.003|0.004|0.005|1.0' in the study, '0.1:1.0' asked for" in fails(
        *RATES[:-3], "0.1:1", *RATES[-2:], *command
    )
    assert "iterations: 20 in the study, 30 asked for" in fails(*GRID, "--iterations", "30", *command)
    assert "clip: None in" not in (message := fails(*RATES, "--clip", "1:2", *command))
    assert "clip: 0.0 in the study, '1.0:2.0' asked for" in message
    assert "storage: None in the study, 'sqlite:////x.db' asked for" in fails(
        *RATES, *command, "--storage", "sqlite:////x.db"
    )
    assert len(trials_of(study)) == 6


def test_a_storage_that_has_lost_the_study_and_one_that_has_anothers_are_refused(tmp_path, fails):
    database = tmp_path / "trials.db"
    command = [*QUICK, "--trials", "1", "--storage", f"sqlite:///{database}", "--run-dir"]
    assert main([*command, str(tmp_path / "a" / "study")]) == 0
    assert "the storage holds another study 'study'" in fails(*command, tmp_path / "b" / "study")
    database.unlink()
    assert "the storage holds no study 'study'" in fails(*command, tmp_path / "a" / "study")


def test_the_folder_of_a_run_and_a_damaged_study_are_refused(study, tmp_path, fails):
    assert "the folder holds a run" in fails(*QUICK, "--run-dir", study / "trial-0000")
    stored = json.loads((study / "study.json").read_text())
    for damaged in (
        "{",
        json.dumps({**stored, "space": 3}),
        json.dumps({**stored, "recipe": {"name": "sinusoid", "options": {"colour": 1}}}),
    ):
        (tmp_path / "study.json").write_text(damaged)
        message = fails(*RATES, "--run-dir", tmp_path)
        assert f"{tmp_path / 'study.json'} is damaged" in message
    (tmp_path / "file").write_text("")
    assert "expected a folder that can be written" in fails(*QUICK, "--run-dir", tmp_path / "file" / "study")


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'fmeta[tune]'" in fails(*QUICK, "--run-dir", tmp_path / "study")
    assert not (tmp_path / "study").exists()
