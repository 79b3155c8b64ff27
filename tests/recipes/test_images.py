"""The recipes of photographs: any folder of class folders, in colour, and mini-ImageNet's lists."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from pictures import photographs
from PIL import Image

from fmeta.cli import main
from fmeta.recipes import Images
from fmeta.runs import experiment

TINY = ["--ways", "2", "--query", "2", "--width", "4", "--meta-batch", "2", "--iterations", "2", "--eval-tasks", "3"]
TINY += ["--no-tensorboard"]


def shown(run):
    """The pictures of the report, as [picture, height, width, channel]."""
    text = (run / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return np.stack([np.array(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources])


def test_a_folder_of_colour_pictures_trains_reports_and_predicts(tmp_path, capfd):
    """Pictures are shown as they are, in colour, and never as a negative."""
    names = [f"class {i}" for i in range(9)]
    data, run = photographs(tmp_path / "data", names, size=20), tmp_path / "run"
    command = ["train", "images", "--data", str(data), "--size", "16", *TINY]
    assert main([*command, "--run-dir", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text())["protocol"]["size"] == 16
    assert main(["report", str(run)]) == 0
    pictures = shown(run)
    assert pictures.shape[1:] == (16, 16, 3)
    originals = {tuple(np.array(Image.open(path)).mean((0, 1)).round(-1)) for path in data.rglob("*.png")}
    for picture in pictures:
        mean = picture.mean((0, 1))
        assert min(max(abs(mean - np.array(original))) for original in originals) < 12
    mine = photographs(tmp_path / "mine", ["[red]", "b"], size=30, seed=4)
    capfd.readouterr()
    assert main(["predict", str(run), "--support", str(mine), "--query", str(mine / "b" / "0.png")]) == 0
    assert "0.png" in capfd.readouterr().out


def test_pictures_can_be_grey_and_split_as_the_folder_says(tmp_path):
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        photographs(tmp_path / split, [f"{split} {i}" for i in range(count)])
    of = experiment("images", data=str(tmp_path), colour=False, size=16, ways=2)
    assert of.recipe.shape() == (1, 16)
    assert [len(of.recipe.classes(split).names) for split in ("train", "validation", "test")] == [4, 2, 3]
    assert of.test_tasks(2).support.x.shape == (2, 2, 1, 16, 16)
    assert of.test_classes(2)[1] == ("test 0", "test 1", "test 2")


def test_where_the_pictures_are_does_not_decide_a_run():
    assert experiment("images", data="here").digest() == experiment("images", data="there").digest()
    assert experiment("images", size=32).digest() != experiment("images").digest()
    assert Images.movable == ("data",)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["images"], "train --data: expected a folder with a folder of pictures for each class"),
        (["images", "--data", "nowhere"], "nowhere"),
        (["mini_imagenet"], "train --data-dir: expected the folder of mini-ImageNet"),
    ],
)
def test_missing_pictures_are_named_and_no_run_is_made(tmp_path, monkeypatch, capfd, command, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *command, *TINY, "--run-dir", "run"]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_mini_imagenets_lists_train_report_and_predict(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for split, count in {"train": 3, "val": 2, "test": 2}.items():
        with (tmp_path / "data" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for i in range(count):
                photographs(tmp_path / "made", [f"n{split}{i}"], size=90, seed=i)
                for number in range(6):
                    name = f"n{split}{i}{number:08d}.jpg"
                    Image.open(tmp_path / "made" / f"n{split}{i}" / f"{number}.png").save(
                        tmp_path / "data/images" / name
                    )
                    rows.writerow([name, f"n{split}{i}"])
    run = tmp_path / "run"
    command = ["train", "mini_imagenet", "--data-dir", str(tmp_path / "data"), "--no-whole", *TINY]
    assert main([*command, "--run-dir", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert shown(run).shape[1:] == (84, 84, 3)
    made = tmp_path / "made"
    assert main(["predict", str(run), "--support", str(made), "--query", str(made / "ntest0")]) == 0
