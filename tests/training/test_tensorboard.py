"""`tensorboard`: events that TensorBoard's own reader gives back, and a resumed run that tells each step once."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure

import fmeta
from fmeta.cli import main
from fmeta.core import InputError

pytest.importorskip("tensorboard", reason="needs the package tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

TINY = ["--hidden", "4", "--meta-batch", "2", "--iterations", "8", "--compile", "none", "--outer-schedule", "constant"]
TINY += ["--eval-tasks", "4", "--eval-steps", "0", "1", "--log-every", "2", "--save-every", "4"]

LEARNER = fmeta.maml(fmeta.models.mlp([1, 4, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)


def events(folder):
    return EventAccumulator(str(folder)).Reload()


def scalars(folder):
    """Name -> the steps and values that are shown."""
    found = events(folder)
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def logged(run):
    """The same from metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line} - {"step"}
    return {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}


def assert_same(run):
    shown, written = scalars(run / "tensorboard"), logged(run)
    assert shown.keys() == written.keys()
    for name, points in written.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6)


def test_training_writes_its_metrics_and_its_plot_as_events(tmp_path):
    run = tmp_path / "run"
    assert main(["train", *TINY, "--learner", "meta_sgd", "--run-dir", str(run)]) == 0
    assert_same(run)
    assert {"loss", "validation/loss", "lr/mean", "time/step"} <= scalars(run / "tensorboard").keys()
    (image,) = events(run / "tensorboard").Images("adaptation")
    assert image.step == 8
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.width, image.height) > 200


def test_a_resumed_run_tells_every_step_once(tmp_path):
    """The first run logged step 6, whose checkpoint is that of step 4."""
    run = tmp_path / "run"
    seen = []

    def breaks_off(step, values):
        seen.append(step)
        if step == 6:
            raise fmeta.SaveError("the disk is full")  # the one error after which nothing is saved

    def train(*loggers, resume=False):
        given = {"key": fmeta.key(0), "iterations": 8, "meta_batch": 2, "saving": fmeta.Saving(4)}
        given["logging"] = fmeta.Logging(2, loggers)
        sample = fmeta.tasks.sinusoid(shots=2, query=2)
        fmeta.fit(LEARNER, fmeta.adam(0.1), sample, run_dir=run, resume=resume, **given)

    with pytest.raises(fmeta.SaveError, match="full"):
        train(fmeta.tensorboard(run / "tensorboard"), breaks_off)
    assert [step for step, _ in scalars(run / "tensorboard")["loss"]] == seen == [2, 4, 6]
    train(fmeta.tensorboard(run / "tensorboard", since=4), resume=True)
    assert [step for step, _ in scalars(run / "tensorboard")["loss"]] == [2, 4, 6, 8]
    assert_same(run)


def test_runs_that_go_on_within_a_second_are_shown_in_their_order(tmp_path, monkeypatch):
    """The names of the files end with a count, of which 10 comes before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(8))
    for step in range(4):
        fmeta.tensorboard(tmp_path, since=step)(step + 1, {"loss": float(step)})
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_the_command_line_resumes_its_events_too(tmp_path):
    run = tmp_path / "run"
    for command in (["--iterations", "4"], ["--iterations", "8", "--resume"]):
        assert main(["train", *TINY, *command, "--run-dir", str(run)]) == 0
        assert_same(run)
    assert [image.step for image in events(run / "tensorboard").Images("adaptation")] == [4, 8]


def test_no_tensorboard_writes_none(tmp_path):
    assert main(["train", *TINY, "--no-tensorboard", "--run-dir", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_numbers_of_any_kind_are_scalars_and_are_there_at_once(tmp_path):
    log = fmeta.tensorboard(tmp_path / "events")
    assert not (tmp_path / "events").exists()
    figure = Figure()
    figure.subplots().plot([1, 2])
    log(3, {"whole": 2, "tensor": torch.tensor(0.5), "plot": figure, "none": math.nan})
    shown = scalars(tmp_path / "events")
    assert (shown["whole"], shown["tensor"]) == ([(3, 2.0)], [(3, 0.5)])
    assert math.isnan(shown["none"][0][1])
    assert [image.step for image in events(tmp_path / "events").Images("plot")] == [3]


@pytest.mark.parametrize("value", ["many", [1.0], torch.zeros(2), None])
def test_what_is_neither_number_nor_figure_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(InputError, match=r"'odd': .*; expected a number or a matplotlib figure"):
        fmeta.tensorboard(tmp_path / "events")(1, {"loss": 1.0, "odd": value})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file.*expected a folder that can be written"):
        fmeta.tensorboard(tmp_path / "file" / "events")(1, {"loss": 1.0})


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_where_events_can_no_longer_be_written_a_warning_says_so_and_training_goes_on(tmp_path):
    code = "import resource, signal, sys, fmeta; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); log = fmeta.tensorboard(sys.argv[1])\n"
    code += "for step in range(100): log(step, {'loss': 1.0})\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on no events are written") == 1
    assert 1 < len(scalars(tmp_path)["loss"]) < 100


WITHOUT = """
import sys

sys.modules["tensorboard"] = None  # what an import finds where there is none
import fmeta
from fmeta.cli import main

try:
    fmeta.tensorboard("events")
except fmeta.core.InputError as error:
    print(error)
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_package_the_cure_is_named_and_training_does_without(tmp_path):
    command = [sys.executable, "-c", WITHOUT, "train", *TINY, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'fmeta[tensorboard]'" in done.stdout.splitlines()[0]
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_importing_fmeta_imports_no_tensorboard():
    code = "import sys, fmeta.cli; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0
