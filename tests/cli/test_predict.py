"""`fmeta predict` and `fmeta.adapt`: a trained run on pictures that it never saw."""

import csv
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import fmeta
from fmeta.cli import main
from fmeta.core import InputError
from fmeta.tasks import glyphs

TINY = ["--width", "8", "--drawings", "4", "--iterations", "40", "--meta-batch", "2", "--eval-tasks", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs on glyphs, by learner."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, more in {
            "protonet": ["--query", "3", "--iterations", "80", "--ways", "10", "--width", "16"],
            "maml": ["--iterations", "2", "--eval-steps", "1"],
            "relation": ["--iterations", "2"],
            "mann": ["--iterations", "1", "--norm", "group"],
            "transfer": ["--iterations", "2", "--inner-steps", "3", "--inner-lr", "0.1", "--head", "cosine"],
            "task_encoder": ["--iterations", "2", "--norm", "task"],
        }.items():
            found[name] = tmp_path_factory.mktemp("runs") / name
            assert main(["train", "glyphs", "--learner", name, *TINY, *more, "--run-dir", str(found[name])]) == 0
        found["sinusoid"] = tmp_path_factory.mktemp("runs") / "sinusoid"
        short = ["--iterations", "2", "--eval-tasks", "2", "--hidden", "4", "--compile", "none"]
        assert main(["train", "sinusoid", *short, "--run-dir", str(found["sinusoid"])]) == 0
        yield found


@pytest.fixture(scope="module")
def data(runs):
    return glyphs("test", drawings=6)


def save(image, path, *, size=(28, 28), bright=True, colour=False):
    """A drawing as a picture on bright or dark paper."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[0].numpy()
    picture = Image.fromarray(255 - pixels if bright else pixels).resize(size, Image.Resampling.BICUBIC)
    (picture.convert("RGB") if colour else picture).save(path)


def pictures(folder, data, classes, shots, **options):
    """Class folders with so many pictures each, and two more of each class as queries."""
    for i, (position, count) in enumerate(zip(classes, shots, strict=True)):
        start = int(data.start[position])
        for j in range(count + 2):
            place = folder / "support" / f"sign {i}" if j < count else folder / "query"
            save(data.examples[start + j], place / f"sign {i} {j}.png", **options)
    return folder


def test_pictures_of_new_classes_are_told_apart(runs, data, tmp_path, capsys):
    """Grey and colour, small and large, one to four of a class."""
    folder = pictures(tmp_path, data, [0, 40, 80, 120, 150], [1, 4, 2, 3, 1], size=(90, 120), colour=True)
    out = tmp_path / "predictions.csv"
    command = ["predict", str(runs["protonet"]), "--support", str(folder / "support"), "--query", str(folder / "query")]
    assert main([*command, "--out", str(out)]) == 0
    assert "10 pictures" in capsys.readouterr().out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    names = [f"sign {i}" for i in range(5)]
    assert [row["file"] for row in rows] == sorted(p.name for p in (folder / "query").iterdir())
    for row in rows:
        shares = [float(row[f"p({name})"]) for name in names]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
        assert row["class"] == names[int(np.argmax(shares))]
    right = sum(row["file"].startswith(row["class"]) for row in rows)
    assert right >= 6, f"{right} of 10 right"


def test_bright_and_dark_paper_are_the_same_and_pictures_do_not_see_one_another(runs, data, tmp_path):
    bright = pictures(tmp_path / "bright", data, [3, 50, 99], [2, 1, 2])
    dark = pictures(tmp_path / "dark", data, [3, 50, 99], [2, 1, 2], bright=False)
    adapted = [fmeta.adapt(runs["protonet"], folder / "support") for folder in (bright, dark)]
    all_of = [a.predict(folder / "query") for a, folder in zip(adapted, (bright, dark), strict=True)]
    torch.testing.assert_close(all_of[0].probabilities, all_of[1].probabilities)
    alone = torch.cat([adapted[0].predict([file]).probabilities for file in all_of[0].files])
    torch.testing.assert_close(alone, all_of[0].probabilities, rtol=1e-4, atol=1e-5)


def test_arrays_serve_as_well_as_files(runs, data):
    one = fmeta.tasks.class_data({f"c{i}": data.examples[data.start[i] : data.start[i] + 2 + i] for i in range(3)})
    adapted = fmeta.adapt(runs["relation"], one)
    found = adapted.predict(data.examples[data.start[:3] + 5].float() / 255)
    assert found.names == ("c0", "c1", "c2")
    assert found.files == ()
    assert len(found.labels()) == 3
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(3))
    for x, came in ((torch.zeros(2, 1, 32, 32), r"\[2, 1, 32, 32\]"), (torch.zeros(1, 28, 28), r"\[1, 28, 28\]")):
        with pytest.raises(
            InputError, match=rf"queries are torch.float32 {came}; expected floats \[query, 1, 28, 28\]"
        ):
            adapted.predict(x)
    with pytest.raises(InputError, match=r"support set has shape \[1, 32, 32\]; expected \[1, 28, 28\]"):
        fmeta.adapt(runs["relation"], fmeta.tasks.class_data({n: torch.zeros(2, 1, 32, 32) for n in "ab"}))


@pytest.mark.parametrize("learner", ["transfer", "task_encoder"])
def test_learners_without_an_inner_loop_take_any_number_of_classes(runs, data, tmp_path, learner):
    seven = pictures(tmp_path, data, range(7), [1] * 7)
    found = fmeta.adapt(runs[learner], seven / "support").predict(seven / "query")
    assert found.probabilities.shape == (14, 7)
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "mann"], "batch statistics would look ahead"),
        (["--learner", "transfer", "--norm", "task"], "no support set to normalise by"),
        (["--learner", "task_encoder", "--network", "conv2"], "expected 'stride' or 'pool'"),
    ],
)
def test_norms_and_networks_that_do_not_fit_are_named(options, message, capsys, tmp_path):
    assert main(["train", "glyphs", *TINY, *options, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_head_takes_as_many_classes_as_it_has_or_fewer(runs, data, tmp_path):
    three = pictures(tmp_path / "3", data, [0, 30, 60], [2, 2, 2])
    adapted = fmeta.adapt(runs["maml"], three / "support", steps=3)
    assert adapted.predict(three / "query").probabilities.shape == (6, 3)
    six = pictures(tmp_path / "6", data, range(6), [1] * 6)
    with pytest.raises(InputError, match=r"has 6 classes; expected at least 2 and at most 5, the outputs of its maml"):
        fmeta.adapt(runs["maml"], six / "support")
    assert fmeta.adapt(runs["protonet"], six / "support").predict(six / "query").probabilities.shape == (12, 6)


def test_what_does_not_fit_is_named(runs, data, tmp_path):
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    alone = pictures(tmp_path / "one", data, [0], [2])
    cases = {
        r"a run of the recipe sinusoid; expected one that classifies images": (runs["sinusoid"], folder),
        r"a run of mann, which reads streams": (runs["mann"], folder),
        r"the support set has 1 classes; expected at least 2 and any number": (runs["protonet"], alone),
        r"no recipe.json there": (tmp_path, folder),
    }
    for message, (run, pictured) in cases.items():
        with pytest.raises(InputError, match=message):
            fmeta.adapt(run, pictured / "support")
    adapted = fmeta.adapt(runs["protonet"], folder / "support")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        adapted.predict(tmp_path / "empty")
    broken = folder / "query" / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"1 of 5 images do not decode, the first .*broken.png"):
        adapted.predict(folder / "query")
    with pytest.warns(UserWarning, match="left out: 1 of 5 images do not decode"):
        assert len(adapted.predict(folder / "query", on_error="skip").files) == 4


def test_a_checkpoint_of_another_learner_is_refused(runs, data, tmp_path, capsys):
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    recipe = runs["maml"] / "recipe.json"
    before = recipe.read_text()
    stored = json.loads(before)
    stored["fields"]["learner"] = "meta_sgd"
    recipe.write_text(json.dumps(stored))
    try:
        command = ["--support", str(folder / "support"), "--query", str(folder / "query")]
        assert main(["predict", str(runs["maml"]), *command]) == 2
    finally:
        recipe.write_text(before)
    assert "checkpoint" in capsys.readouterr().err


def test_bad_options_are_named(runs, data, tmp_path, capsys):
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    command = ["predict", str(runs["protonet"]), "--support", str(folder / "support"), "--query", str(folder / "query")]
    assert main([*command, "--out", str(tmp_path / "none" / "p.csv")]) == 2
    assert "expected a file that can be written" in capsys.readouterr().err
    assert main([*command, "--checkpoint", "7"]) == 2
    assert "not in" in capsys.readouterr().err
    (folder / "support" / "sign 1" / "broken.png").write_bytes(b"no")
    assert main(command) == 2
    assert "broken.png" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*command, "--on-error", "skip"]) == 0
