"""`fmeta.adapt`: a trained run on pictures that it never saw."""

import json
import shutil

import pytest
import torch
from pictures import photographs, pictures

import fmeta
from fmeta.cli import main
from fmeta.core import Examples, InputError
from fmeta.runs import Support, open_run
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
            "mann": ["--iterations", "1"],
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


def test_bright_and_dark_paper_are_the_same_and_pictures_do_not_see_one_another(runs, data, tmp_path):
    bright = pictures(tmp_path / "bright", data, [3, 50, 99], [2, 1, 2])
    dark = pictures(tmp_path / "dark", data, [3, 50, 99], [2, 1, 2], bright=False)
    adapted = [fmeta.adapt(runs["protonet"], folder / "support") for folder in (bright, dark)]
    all_of = [a.predict(folder / "query") for a, folder in zip(adapted, (bright, dark), strict=True)]
    torch.testing.assert_close(all_of[0].probabilities, all_of[1].probabilities)
    alone = torch.cat([adapted[0].predict(bright / "query" / file).probabilities for file in all_of[0].queries])
    torch.testing.assert_close(alone, all_of[0].probabilities, rtol=1e-4, atol=1e-5)


def test_arrays_serve_as_well_as_files(runs, data):
    rows = [data.examples[data.start[i] : data.start[i] + 2 + i].float() / 255 for i in range(3)]
    labels = torch.arange(3).repeat_interleave(torch.tensor([2, 3, 4]))
    adapted = fmeta.adapt(runs["relation"], Support(Examples(torch.cat(rows), labels), ("c0", "c1", "c2")))
    found = adapted.predict(data.examples[data.start[:3] + 5].float() / 255)
    assert found.names == ("c0", "c1", "c2")
    assert found.queries == ()
    assert len(found.labels()) == 3
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(3))
    wrong = {
        r"\[1, 32, 32\]": torch.zeros(2, 1, 32, 32),
        r"\[28, 28\]": torch.zeros(1, 28, 28),
        r"\[1, 28, 28\] of integers": torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
    }
    for came, x in wrong.items():
        with pytest.raises(InputError, match=rf"queries are \[query, …\] of {came}; expected \[1, 28, 28\], as the"):
            adapted.predict(x)
    with pytest.raises(InputError, match=r"support set has shape \[1, 32, 32\]; expected shape \[1, 28, 28\]"):
        fmeta.adapt(runs["relation"], Support(Examples(torch.zeros(2, 1, 32, 32), torch.arange(2)), ("a", "b")))


@pytest.mark.parametrize("learner", ["transfer", "task_encoder"])
def test_learners_without_an_inner_loop_take_any_number_of_classes(runs, data, tmp_path, learner):
    seven = pictures(tmp_path, data, range(7), [1] * 7)
    found = fmeta.adapt(runs[learner], seven / "support").predict(seven / "query")
    assert found.probabilities.shape == (14, 7)
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(14))


def test_a_head_takes_as_many_classes_as_it_has_or_fewer(runs, data, tmp_path):
    three = pictures(tmp_path / "3", data, [0, 30, 60], [2, 2, 2])
    adapted = fmeta.adapt(runs["maml"], three / "support", steps=3)
    assert adapted.predict(three / "query").probabilities.shape == (6, 3)
    six = pictures(tmp_path / "6", data, range(6), [1] * 6)
    with pytest.raises(InputError, match=r"has 6 classes; expected at least 2 and at most 5, as it was trained with"):
        fmeta.adapt(runs["maml"], six / "support")
    assert fmeta.adapt(runs["protonet"], six / "support").predict(six / "query").probabilities.shape == (12, 6)


def test_what_does_not_fit_is_named(runs, data, tmp_path):
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    alone = pictures(tmp_path / "one", data, [0], [2])
    cases = {
        r"recipe sinusoid: it reads no support set of one's own": (runs["sinusoid"], folder),
        r"a run of mann, which takes no support set": (runs["mann"], folder),
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
        assert len(adapted.predict(folder / "query", on_error="skip").queries) == 4


def test_files_of_support_and_queries_that_are_passed_over_are_named(runs, data, tmp_path):
    folder = pictures(tmp_path, data, [0, 30], [2, 2])
    (folder / "support" / "sign 0" / "new.HEIC").write_bytes(b"")
    (folder / "query" / "asked.heic").write_bytes(b"")
    (folder / "query" / ".thumbnails").mkdir()
    shutil.copy(folder / "query" / "sign 0 2.png", folder / "query" / ".thumbnails" / "x.png")
    with pytest.warns(UserWarning, match=r"passed over 1 files .*new.HEIC"):
        adapted = fmeta.adapt(runs["protonet"], folder / "support")
    with pytest.warns(UserWarning, match=r"predict\(.*passed over 1 files .*asked.heic"):
        found = adapted.predict(folder / "query")
    assert len(found.queries) == 4  # what is hidden is not asked for


def test_neither_the_data_of_the_run_nor_its_folder_is_needed(tmp_path):
    """A run of photographs, taken to a machine that has one's own pictures alone."""
    photographs(tmp_path / "data", [f"class {i}" for i in range(9)])
    small = ["--size", "16", "--width", "4", "--ways", "2", "--query", "2", "--meta-batch", "2", "--iterations", "2"]
    command = ["train", "images", "--data", str(tmp_path / "data"), *small, "--eval-tasks", "2"]
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    shutil.rmtree(tmp_path / "data")
    mine = photographs(tmp_path / "mine", ["red [/b]", "blue", "green"], seed=1)
    found = fmeta.adapt(tmp_path / "run", mine).predict(mine / "blue")
    assert found.names == ("blue", "green", "red [/b]")
    assert found.probabilities.shape == (6, 3)
    assert found.queries == tuple(f"{number}.png" for number in range(6))
    assert main(["export", str(tmp_path / "run"), "--to", "torch"]) == 0
    assert open_run(tmp_path / "run").support == {"": [3, 16, 16]}


def test_the_support_of_a_run_that_does_not_say_its_shape_is_that_of_its_tasks(runs, data, tmp_path):
    """As of one that `fmeta.fit` wrote."""
    run = shutil.copytree(runs["relation"], tmp_path / "run")
    stored = json.loads((run / "recipe.json").read_text())
    assert stored.pop("support") == {"": [1, 28, 28]}
    (run / "recipe.json").write_text(json.dumps(stored))
    folder = pictures(tmp_path, data, [0, 30], [1, 1])
    torch.testing.assert_close(
        fmeta.adapt(run, folder / "support").predict(folder / "query").probabilities,
        fmeta.adapt(runs["relation"], folder / "support").predict(folder / "query").probabilities,
    )
