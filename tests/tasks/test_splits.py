"""Classes cut by shares, and folders that come with splits."""

import numpy as np
import pytest
import torch
from PIL import Image

import fmeta
from fmeta import InputError
from fmeta.tasks import class_data, image_folder, image_splits, select_classes, split_classes

SPLITS = ("train", "validation", "test")


def numbered(count, size=2):
    return class_data({f"class{c}": torch.full((size, 1), float(c)) for c in range(count)})


def parts(count, **options):
    return [split_classes(numbered(count), split, **options).names for split in SPLITS]


# --- by shares


@pytest.mark.parametrize(
    ("count", "options", "sizes"),
    [
        (10, {}, [6, 2, 2]),
        (3, {}, [1, 1, 1]),
        (5, {}, [3, 1, 1]),
        (100, {"shares": (0.7, 0.15, 0.15)}, [70, 15, 15]),
        (100, {"shares": (64, 16, 20)}, [64, 16, 20]),
        (7, {"shares": (1, 1, 1)}, [3, 2, 2]),
        (16, {"ways": 5}, [6, 5, 5]),
        (15, {"ways": 5, "shares": (0.98, 0.01, 0.01)}, [5, 5, 5]),
        (21, {"ways": 5, "shares": (0.98, 0.01, 0.01)}, [11, 5, 5]),
        (20, {"ways": 5, "shares": (0.1, 0.1, 0.8)}, [5, 5, 10]),
    ],
)
def test_sizes_go_by_share_and_suffice_for_the_ways(count, options, sizes):
    found = parts(count, **options)
    assert [len(names) for names in found] == sizes
    assert sorted(name for names in found for name in names) == sorted(numbered(count).names)


def test_a_split_is_a_function_of_the_seed_that_shuffles():
    assert parts(30) == parts(30) != parts(30, seed=1)
    everywhere = {split_classes(numbered(9), "test", seed=s).names[0] for s in range(60)}
    assert len(everywhere) > 5  # no class is always trained on
    for names in parts(30):  # in the order of the data
        assert list(names) == sorted(names, key=lambda name: int(name[5:]))


def test_examples_stay_with_their_classes():
    for split in SPLITS:
        data = split_classes(numbered(12), split)
        for name, start in zip(data.names, data.start.tolist(), strict=True):
            assert data.examples[start].item() == float(name[5:])


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {}, r"\(ways=1\): there are 2 classes; expected at least 3, 1 for each of"),
        (14, {"ways": 5}, r"\(ways=5\): there are 14 classes; expected at least 15, 5 for each of"),
        (9, {"ways": 0}, r"\(ways=0\): expected a whole number, at least 1"),
        (9, {"shares": (0.5, 0.5)}, r"\(shares=\(0.5, 0.5\)\): expected three positive numbers"),
        (9, {"shares": (0.8, 0.0, 0.2)}, r"\(shares=.*\): expected three positive numbers"),
        (9, {"shares": (float("nan"), 1.0, 1.0)}, r"\(shares=.*\): expected three positive numbers"),
        (9, {"shares": (float("inf"), 1.0, 1.0)}, r"\(shares=.*\): expected three positive numbers"),
    ],
)
def test_what_cannot_be_cut_is_refused(count, options, message):
    with pytest.raises(InputError, match=rf"split_classes{message}"):
        split_classes(numbered(count), "train", **options)


def test_a_split_of_another_name_is_refused():
    with pytest.raises(InputError, match=r"split_classes\(split='val'\): expected 'train', 'validation' or 'test'"):
        split_classes(numbered(9), "val")


def test_turns_of_one_class_are_not_torn_apart():
    """They would be trained on in one way up and tested on in another."""
    data = class_data({f"c{c}": torch.zeros(2, 1, 4, 4) for c in range(3)})
    turned = select_classes(data, torch.arange(3).repeat(4))._replace(turns=torch.arange(4).repeat_interleave(3))
    with pytest.raises(InputError, match=r"the same examples, turned.*split them first, then turn them"):
        split_classes(turned, "train")


# --- folders


def shade(name):
    return sum(name.encode()) % 200


def fill(root, names, colour=False):
    """One image for each class, of a grey (or a red) that says which it is."""
    for name in names:
        value = shade(name.rpartition("/")[2])
        (root / name).mkdir(parents=True)
        image = Image.new("RGB", (7, 5), (value + 50, value, value)) if colour else Image.new("L", (7, 5), value)
        image.save(root / name / "0.png")
    return root


def check(data, names, channels=1):
    assert data.names == tuple(names)
    assert data.examples.shape == (len(names), channels, 4, 4)
    for name, row in zip(data.names, data.start.tolist(), strict=True):
        assert data.examples[row, -1].unique().tolist() == [shade(name.rpartition("/")[2])]


@pytest.mark.parametrize(
    "folders", [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "validation", "testing")]
)
@pytest.mark.parametrize("channels", [None, 1])
def test_folders_of_splits_are_the_splits(tmp_path, folders, channels):
    """Each gives what `image_folder` gives of it."""
    classes = {"train": ["ant", "family/bee", "family/cow"], "validation": ["dog"], "test": ["eel", "fox"]}
    for split, folder in zip(SPLITS, folders, strict=True):
        fill(tmp_path / folder, classes[split])
    for split, folder in zip(SPLITS, folders, strict=True):
        data = image_splits(tmp_path, split, size=4, channels=channels)
        check(data, classes[split])
        alone = image_folder(tmp_path / folder, size=4)
        assert data.names == alone.names
        assert torch.equal(data.examples, alone.examples)


@pytest.mark.parametrize("channels", [None, 3])
def test_a_folder_of_classes_is_cut_as_its_data_would_be(tmp_path, channels):
    """With the same classes, whether all or only those of the split are read."""
    fill(tmp_path, ["kind/ant", "kind/bee", *(f"c{i}" for i in range(8))], colour=True)
    options = {"shares": (0.4, 0.3, 0.3), "seed": 5, "ways": 2}
    seen = []
    for split in SPLITS:
        data = image_splits(tmp_path, split, size=4, channels=channels, **options)
        expected = split_classes(image_folder(tmp_path, size=4), split, **options)
        check(data, expected.names, channels=3)
        seen += data.names
    assert sorted(seen) == sorted(image_folder(tmp_path, size=4).names)


def test_colour_in_one_split_is_colour_in_all(tmp_path):
    """Else a network trained on grey would be tested on colour."""
    fill(tmp_path / "train", ["ant", "bee"])
    fill(tmp_path / "val", ["cow"])
    fill(tmp_path / "test", ["dog"], colour=True)
    assert image_splits(tmp_path, "train", size=4).examples.shape == (2, 3, 4, 4)
    assert image_splits(tmp_path, "train", size=4, channels=1).examples.shape == (2, 1, 4, 4)


def test_channels_that_are_given_spare_the_other_splits(tmp_path):
    fill(tmp_path / "train", ["ant", "bee"])
    fill(tmp_path / "val", ["cow"])
    fill(tmp_path / "test", ["dog"])
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"damaged")
    check(image_splits(tmp_path, "train", size=4, channels=1), ["ant", "bee"])
    with pytest.raises(InputError, match=r"image_splits: 1 of 4 images do not decode, the first .*dog.0.png"):
        image_splits(tmp_path, "train", size=4)


def test_broken_images_are_skipped_with_the_caller_named(tmp_path):
    fill(tmp_path, ["ant", "bee", "cow"])
    for name in ("ant", "bee", "cow"):
        (tmp_path / name / "1.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="image_splits: left out: 3 of 6 images do not decode") as caught:
        image_splits(tmp_path, "test", size=4, on_error="skip")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/a", "test/b"],
            r"holds test/, train/ but no validation/; expected train/, validation/ \(or val/",
        ),
        (["train/a", "val/b", "test/c", "d"], r"holds the split test/ and, beside it, the class 'd'; .*alone"),
        (["train/a", "val/b", "valid/c", "test/d"], r"val/ and valid/ are both for validation; .*merge them"),
        (["train/a", "val/b", "test/a"], r"class 'a' is in test/ and in train/; expected others in each split"),
        (["train/a", "val/b", "test/A"], r"class 'a' is in test/ and in train/; expected others in each split"),
        (["a", "b"], r"image_splits\(ways=1\): there are 2 classes; expected at least 3"),
    ],
)
def test_folders_that_are_no_splits_are_named(tmp_path, names, message):
    fill(tmp_path, names)
    with pytest.raises(InputError, match=message):
        image_splits(tmp_path, "validation", size=4)


def test_a_split_with_too_few_classes_is_named(tmp_path):
    fill(tmp_path, ["train/a", "train/b", "val/c", "test/d"])
    assert len(image_splits(tmp_path, "train", size=4, ways=2).names) == 2
    with pytest.raises(InputError, match=r"image_splits\(.*\): val/ has 1 classes; expected at least ways = 2"):
        image_splits(tmp_path, "validation", size=4, ways=2)


def test_bad_options_are_refused(tmp_path):
    fill(tmp_path, ["a", "b", "c"])
    for options, message in (
        ({"split": "val"}, r"image_splits\(split='val'\): expected 'train'"),
        ({"size": 0}, r"image_splits\(size=0\)"),
        ({"channels": 2}, r"image_splits\(channels=2\): expected 1, 3 or None"),
        ({"shares": (1, 1)}, r"image_splits\(shares=\(1, 1\)\): expected three positive"),
    ):
        with pytest.raises(InputError, match=message):
            image_splits(tmp_path, **({"split": "train", "size": 4} | options))
    with pytest.raises(InputError, match=r"image_splits\(.*nowhere'\): not a folder"):
        image_splits(tmp_path / "nowhere", "train", size=4)


def test_tasks_are_drawn_from_it(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(6):
        (tmp_path / f"c{c}").mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"c{c}" / f"{i}.jpg")
    data = image_splits(tmp_path, "test", size=8, channels=3, ways=2)
    tasks = fmeta.tasks.episodes(data, ways=2, shots=1, query=2)(fmeta.key(0), 4)
    assert tasks.query.x.shape == (4, 4, 3, 8, 8)
    assert tasks.query.x.dtype == torch.float32
