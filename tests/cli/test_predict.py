"""`fmeta predict`: what a trained run says of one's own pictures."""

import csv
import shutil
import warnings

import numpy as np
import pytest
from pictures import pictures

from fmeta.cli import main
from fmeta.tasks import glyphs

TINY = ["--width", "8", "--drawings", "4", "--iterations", "40", "--meta-batch", "2", "--eval-tasks", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on glyphs that tells characters apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = tmp_path_factory.mktemp("runs") / "protonet"
        more = ["--learner", "protonet", "--query", "3", "--iterations", "120", "--ways", "10", "--width", "16"]
        assert main(["train", "glyphs", *TINY, *more, "--run-dir", str(run)]) == 0
        yield run


@pytest.fixture(scope="module")
def data(run):
    return glyphs("test", drawings=6)


def test_pictures_of_new_classes_are_told_apart(run, data, tmp_path, capsys):
    """Grey and colour, small and large, one to four of a class."""
    folder = pictures(tmp_path, data, [0, 40, 80, 120, 150], [1, 4, 2, 3, 1], size=(90, 120), colour=True)
    out = tmp_path / "predictions.csv"
    command = ["predict", str(run), "--support", str(folder / "support"), "--query", str(folder / "query")]
    assert main([*command, "--out", str(out)]) == 0
    assert f"10 answers: {out}" in capsys.readouterr().out
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"sign {i}" for i in range(5)]
    assert [row["file"] for row in rows] == sorted(p.name for p in (folder / "query").iterdir())
    for row in rows:
        shares = [float(row[f"p({name})"]) for name in names]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
        assert row["class"] == names[int(np.argmax(shares))]
    right = sum(row["file"].startswith(row["class"]) for row in rows)
    assert right >= 6, f"{right} of 10 right"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "mann", "--norm", "batch"], "--norm batch: not with this learner: it must see each example by"),
        (["--learner", "transfer", "--norm", "task"], "--norm task: not with this learner: pretraining has no support"),
        (["--learner", "task_encoder", "--network", "conv2"], "--network conv2: "),
    ],
)
def test_norms_and_networks_that_do_not_fit_are_named(options, message, capsys, tmp_path):
    assert main(["train", "glyphs", *TINY, *options, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_bad_options_are_named(run, data, tmp_path, capsys):
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    command = ["predict", str(run), "--support", str(folder / "support"), "--query", str(folder / "query")]
    assert main([*command, "--out", str(tmp_path / "none" / "p.csv")]) == 2
    assert "expected a place that can be written" in capsys.readouterr().err
    assert main([*command, "--checkpoint", "7"]) == 2
    assert "not in" in capsys.readouterr().err
    (folder / "support" / "sign 1" / "broken.png").write_bytes(b"no")
    assert main(command) == 2
    assert "broken.png" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*command, "--on-error", "skip"]) == 0


def test_names_of_classes_and_files_are_no_markup(run, data, tmp_path, capsys):
    """A folder and a file whose names rich would take for tags."""
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    (folder / "support" / "sign 0").rename(folder / "support" / "[b]x[red]")
    (folder / "query" / "[").mkdir()
    next((folder / "query").glob("*.png")).rename(folder / "query" / "[/b]x.png")
    shutil.move(run, tmp_path / "run [bold]")
    try:
        command = ["predict", str(tmp_path / "run [bold]"), "--query", str(folder / "query")]
        assert main([*command, "--support", str(folder / "support"), "--out", str(tmp_path / "[i]p.csv")]) == 0
    finally:
        shutil.move(tmp_path / "run [bold]", run)
    out = capsys.readouterr().out
    assert "[/b]x.png" in out
    assert f"4 answers: {tmp_path / '[i]p.csv'}" in out
    assert "p([b]x[red])" in (tmp_path / "[i]p.csv").read_text(encoding="utf-8")
