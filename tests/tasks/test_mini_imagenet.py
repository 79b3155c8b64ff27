"""miniImageNet in its two layouts, written here: one split of full size, and small ones for all that can be wrong."""

import csv
import itertools
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import fmeta
from fmeta import InputError
from fmeta.tasks import _mini_imagenet as module
from fmeta.tasks import cache_folder, episodes, mini_imagenet

FILES = {"train": "train", "validation": "val", "test": "test"}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The module told to expect 3 / 2 / 2 classes of four images, and a cache of the test's own."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_PARTS", {"train": ("train", 3), "validation": ("val", 2), "test": ("test", 2)})
    monkeypatch.setattr(module, "_IMAGES", 4)


CLASSES = {"train": ["n03", "n01", "n02"], "validation": ["n04", "n05"], "test": ["n07", "n06"]}


def colour(name, image):
    """A colour that says which class and which image this is."""
    return 20 * int(name[1:]), 50 * image, 200


def write_list(path, rows, header=("filename", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def lists(small, tmp_path):
    """Three lists, their rows mixed up, and a flat folder of photographs of many sizes."""
    (tmp_path / "images").mkdir()
    for split, names in CLASSES.items():
        pairs = list(itertools.product(names, range(4)))
        for name, i in pairs:
            photo = Image.new("RGB", (90 + 10 * i, 100), colour(name, i))
            photo.save(tmp_path / "images" / f"{name}_{i}.jpg", quality=100)
        write_list(tmp_path / f"{FILES[split]}.csv", [(f"{name}_{i}.jpg", name) for name, i in pairs[::-1]])
    return tmp_path


def packed(names):
    """What a pickle of these classes holds, its rows mixed up."""
    pairs = list(itertools.product(range(4), names))
    images = np.stack([np.full((84, 84, 3), colour(name, i), np.uint8) for i, name in pairs])
    return {"image_data": images, "class_dict": {n: [r for r, p in enumerate(pairs) if p[1] == n] for n in names}}


@pytest.fixture
def pickles(small, tmp_path):
    for split, names in CLASSES.items():
        (tmp_path / f"mini-imagenet-cache-{FILES[split]}.pkl").write_bytes(pickle.dumps(packed(names)))
    return tmp_path


def check(data, names):
    """Each class has its own four images, sorted."""
    assert data.names == tuple(sorted(names))
    assert data.examples.shape == (4 * len(names), 3, 84, 84)
    assert data.examples.dtype == torch.uint8
    assert data.pictures
    for name, start, size in zip(data.names, data.start.tolist(), data.size.tolist(), strict=True):
        assert size == 4
        for i, image in enumerate(data.examples[start : start + 4]):
            assert ((image.int() - torch.tensor(colour(name, i))[:, None, None]).abs() < 4).all()


# --- both layouts


def test_a_list_of_full_size(monkeypatch, tmp_path):
    """16 classes of 600 images, all links to sixteen small files: the numbers of the published list."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    rows = []
    for c in range(16):
        first = tmp_path / "images" / f"n{c:08}00000000.jpg"
        Image.new("RGB", (8, 8), (16 * c, 0, 0)).save(first)
        rows.append((first.name, f"n{c:08}"))
        for i in range(1, 600):
            rows.append((f"n{c:08}{i:08}.jpg", f"n{c:08}"))
            os.link(first, first.with_name(rows[-1][0]))
    write_list(tmp_path / "val.csv", rows)
    data = mini_imagenet("validation", data_dir=tmp_path)
    assert data.names == tuple(f"n{c:08}" for c in range(16))
    assert data.size.tolist() == [600] * 16
    assert data.examples.shape == (9600, 3, 84, 84)
    assert ((data.examples[::600, 0, 0, 0].int() - 16 * torch.arange(16)).abs() < 4).all()
    tasks = episodes(data, ways=5, shots=5, query=15)(fmeta.key(0), 2)
    assert tasks.query.x.shape == (2, 75, 3, 84, 84)
    write_list(tmp_path / "val.csv", rows[:-1])
    with pytest.raises(InputError, match=r"val.csv has 599 images of class 'n00000015'; expected 600"):
        mini_imagenet("validation", data_dir=tmp_path)
    write_list(tmp_path / "val.csv", rows[600:])
    with pytest.raises(InputError, match=r"val.csv has 15 classes; expected 16"):
        mini_imagenet("validation", data_dir=tmp_path)


@pytest.mark.parametrize("split", FILES)
def test_lists_and_pickles_give_the_same_classes(lists, split):
    """Photographs are squeezed to 84 x 84; with pickles beside them those are read."""
    check(mini_imagenet(split, data_dir=lists), CLASSES[split])
    for part, names in CLASSES.items():
        (lists / f"mini-imagenet-cache-{FILES[part]}.pkl").write_bytes(pickle.dumps(packed(names)))
    (lists / "images").rename(lists / "elsewhere")
    check(mini_imagenet(split, data_dir=lists), CLASSES[split])


def test_photographs_are_squeezed_not_cropped(lists):
    photo = np.zeros((50, 200, 3), np.uint8)
    photo[:, :20] = photo[:, -20:] = 255  # a crop would lose both edges
    Image.fromarray(photo).save(lists / "images" / "n04_0.jpg", quality=100)
    image = mini_imagenet("validation", data_dir=lists).examples[0]
    assert (image[:, 40, [0, -1]] > 250).all()
    assert (image[:, 40, 42] < 5).all()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "rows", [list, np.array, lambda found: list(np.array(found)), lambda found: range(found[0], 8, 2)]
)
def test_pickles_of_every_protocol_are_read(small, tmp_path, protocol, rows):
    """Rows as lists, arrays, lists of NumPy's integers and ranges; images in either memory order."""
    content = packed(["n04", "n05"])
    content["class_dict"] = {name: rows(found) for name, found in content["class_dict"].items()}
    if protocol % 2:
        content["image_data"] = np.asfortranarray(content["image_data"])
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(content, protocol))
    check(mini_imagenet("validation", data_dir=tmp_path), CLASSES["validation"])


def test_pickles_of_python_2_are_read(small, tmp_path):
    """Their strings are bytes, and NumPy was called numpy.core: protocol 2, written opcode by opcode."""
    images = packed(["n04", "n05"])["image_data"].tobytes()

    def text(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
        b"(I1\n(I8\nI84\nI84\nI3\ntcnumpy\ndtype\n(" + text(b"u1") + b"I0\nI1\ntR"
        b"(I3\n" + text(b"|") + b"NNNI-1\nI-1\nI0\ntbI00\n" + text(images) + b"tb"
    )
    classes = b"(d" + b"".join(
        text(name) + b"(l" + b"".join(b"I%d\na" % row for row in range(first, 8, 2)) + b"s"
        for first, name in enumerate((b"n04", b"n05"))
    )
    content = b"\x80\x02(d" + text(b"image_data") + array + b"s" + text(b"class_dict") + classes + b"s."
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(content)
    check(mini_imagenet("validation", data_dir=tmp_path), CLASSES["validation"])


@pytest.mark.parametrize("layout", ["lists", "pickles"])
def test_the_second_load_comes_from_the_cache(layout, request, monkeypatch):
    """Without decoding; a source that has changed is read again."""
    folder = request.getfixturevalue(layout)
    first = mini_imagenet("test", data_dir=folder).examples

    def refuse(*args):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", refuse)
        patch.setattr(module, "load_arrays", refuse)
        assert torch.equal(mini_imagenet("test", data_dir=folder).examples, first)
    assert not list(cache_folder().glob("*.tmp"))
    if layout == "lists":
        Image.new("RGB", (84, 84), (255, 255, 255)).save(folder / "images" / "n06_0.jpg")
    else:
        content = packed(CLASSES["test"])
        content["image_data"][content["class_dict"]["n06"][0]] = 255
        (folder / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(content, 2))
    assert (mini_imagenet("test", data_dir=folder).examples[0] == 255).all()


def test_a_damaged_cache_is_written_anew(lists):
    first = mini_imagenet("test", data_dir=lists).examples.clone()
    (cached,) = cache_folder().glob("mini_imagenet-*.safetensors")
    cached.write_bytes(cached.read_bytes()[:1000])
    assert torch.equal(mini_imagenet("test", data_dir=lists).examples, first)


# --- other numbers than the published ones


@pytest.fixture
def free(monkeypatch, tmp_path):
    """Lists of any sizes, with the published numbers in force."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()

    def write(file, sizes):
        rows = [(f"{name} {i}.png", name) for name, size in sizes.items() for i in range(size)]
        for image, name in rows:
            Image.new("RGB", (20, 10), colour(name, int(image[-5]))).save(tmp_path / "images" / image)
        write_list(tmp_path / file, rows[::-1])
        return tmp_path

    return write


def test_part_of_the_data_is_taken_where_it_need_not_be_whole(free):
    folder = free("val.csv", {"n05": 2, "n04": 3, "n11": 1})
    with pytest.raises(InputError, match=r"val.csv has 3 classes; expected 16; .*pass whole=False"):
        mini_imagenet("validation", data_dir=folder)
    for _ in range(2):  # decoded, and from the cache
        data = mini_imagenet("validation", data_dir=folder, whole=False)
        assert data.names == ("n04", "n05", "n11")
        assert data.size.tolist() == [3, 2, 1]
        assert data.start.tolist() == [0, 3, 5]
        assert data.examples.shape == (6, 3, 84, 84)
        expected = [list(colour(name, i)) for name, size in (("n04", 3), ("n05", 2), ("n11", 1)) for i in range(size)]
        assert data.examples[:, :, 0, 0].tolist() == expected


def test_a_pickle_of_part_of_the_data_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))
    content = packed(["n04", "n05", "n09"])
    content["class_dict"]["n05"] = content["class_dict"]["n05"][:2]
    (tmp_path / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(content))
    for _ in range(2):  # decoded, and from the cache
        data = mini_imagenet("test", data_dir=tmp_path, whole=False)
        assert (data.names, data.size.tolist()) == (("n04", "n05", "n09"), [4, 2, 4])
        assert data.examples[4:6, :, 0, 0].tolist() == [list(colour("n05", i)) for i in range(2)]
        with pytest.raises(InputError, match=r"cache-test.pkl has 3 classes; expected 20"):
            mini_imagenet("test", data_dir=tmp_path)  # what is in the cache is checked as well


def test_a_class_in_two_splits_is_refused_in_any_numbers(free):
    free("val.csv", {"n04": 2, "n05": 2})
    folder = free("test.csv", {"n06": 2, "n05": 2})
    for split in ("validation", "test"):
        with pytest.raises(InputError, match=r"class 'n05' is in (validation|test) too, as are 1 in all"):
            mini_imagenet(split, data_dir=folder, whole=False)


def test_an_image_twice_and_an_empty_list_are_refused_in_any_numbers(free):
    folder = free("val.csv", {"n04": 2, "n05": 2})
    write_list(folder / "val.csv", [("n04 0.png", "n04"), ("n04 0.png", "n05")])
    with pytest.raises(InputError, match=r"val.csv has image 'n04 0.png' twice"):
        mini_imagenet("validation", data_dir=folder, whole=False)
    write_list(folder / "val.csv", [])
    with pytest.raises(InputError, match=r"val.csv has no images; expected at least one class"):
        mini_imagenet("validation", data_dir=folder, whole=False)
    write_list(folder / "val.csv", [("n04 0.png", "n04"), ("n04 1.png", "")])
    with pytest.raises(InputError, match=r"val.csv has no label in line 3"):
        mini_imagenet("validation", data_dir=folder, whole=False)


# --- files that change between two looks


def test_a_photograph_that_changes_while_it_is_read_is_named(lists, monkeypatch):
    """What was decoded is not kept: neither the old nor the new."""
    true_decode = module.decode

    def decode(call, files, *rest):
        found = true_decode(call, files, *rest)
        Image.new("RGB", (50, 60)).save(files[2])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", decode)
        with pytest.raises(InputError, match=r"n06_2.jpg changed while it was read; expected it at rest"):
            mini_imagenet("test", data_dir=lists)
    assert not list(cache_folder().glob("*"))
    assert (mini_imagenet("test", data_dir=lists).examples[2] == 0).all()


def test_a_file_that_vanishes_is_named(lists, monkeypatch):
    true_decode = module.decode

    def decode(call, files, *rest):
        files[2].unlink()
        return true_decode(call, files, *rest)

    monkeypatch.setattr(module, "decode", decode)
    with pytest.raises(InputError, match=r"1 of 8 images do not decode, the first .*n06_2.jpg"):
        mini_imagenet("test", data_dir=lists)
    with pytest.raises(InputError, match=r"mini_imagenet: cannot read .*n06_2.jpg: No such file"):
        module._stamp(lists / "images" / "n06_2.jpg")
    (lists / "test.csv").unlink()
    with pytest.raises(InputError, match=r"mini_imagenet: cannot read .*test.csv: .*No such file"):
        module._listed(lists / "test.csv")


def test_paths_of_any_characters(free, tmp_path):
    folder = free("val.csv", {"n04": 1, "n05": 1})
    odd = tmp_path / "[" / "b]x ü 猫" / ("long" * 40)
    odd.mkdir(parents=True)
    for name in ("images", "val.csv"):
        (folder / name).rename(odd / name)
    assert mini_imagenet("validation", data_dir=odd, whole=False).names == ("n04", "n05")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["long", "null"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(InputError, match=r"found neither mini-imagenet-cache-val.pkl nor val.csv"):
        mini_imagenet("validation", data_dir=name)


# --- what is refused


def test_missing_files_are_named(lists, tmp_path):
    with pytest.raises(InputError, match=r"expected 'train', 'validation' or 'test'"):
        mini_imagenet("val", data_dir=lists)
    message = r"found neither mini-imagenet-cache-val.pkl nor val.csv in .*nowhere; expected one of the pickles, or the"
    with pytest.raises(InputError, match=message):
        mini_imagenet("validation", data_dir=tmp_path / "nowhere")
    (lists / "images" / "n06_0.jpg").unlink()
    (lists / "images" / "n07_3.jpg").unlink()
    with pytest.raises(InputError, match=r"2 of the 8 images in .*test.csv are missing, the first .*n06_0.jpg"):
        mini_imagenet("test", data_dir=lists)


def test_a_photograph_that_does_not_decode_is_named(lists):
    (lists / "images" / "n06_0.jpg").write_text("")
    with pytest.raises(InputError, match=r"mini_imagenet: 1 of 8 images do not decode, the first .*n06_0.jpg"):
        mini_imagenet("test", data_dir=lists)


def test_a_class_in_two_splits_is_named(lists):
    text = (lists / "val.csv").read_text()
    (lists / "val.csv").write_text(text.replace("n05", "n03"))
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=r"class 'n03' is in (train|validation) too.*without a common class"):
            mini_imagenet(split, data_dir=lists)
    mini_imagenet("test", data_dir=lists)  # which has none of it


def test_lists_that_are_no_lists_are_named(lists):
    rows = [(f"{name}_{i}.jpg", name) for name in CLASSES["test"] for i in range(4)]
    write_list(lists / "test.csv", rows, header=("file", "class"))
    with pytest.raises(InputError, match=r"test.csv has the columns \['file', 'class'\]; expected filename,label"):
        mini_imagenet("test", data_dir=lists)
    (lists / "test.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"test.csv has the columns None"):
        mini_imagenet("test", data_dir=lists)
    write_list(lists / "test.csv", [*rows[:-1], rows[4]])
    with pytest.raises(InputError, match=r"test.csv has image 'n06_0.jpg' twice"):
        mini_imagenet("test", data_dir=lists)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_by_name_and_does_not_run(pickles, protocol):
    content = packed(CLASSES["test"]) | {"more": Evil(pickles / "touched")}
    path = pickles / "mini-imagenet-cache-test.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(InputError, match=r"cache-test.pkl asks for (posix|nt).system; expected arrays"):
        mini_imagenet("test", data_dir=pickles)
    assert not (pickles / "touched").exists()
    pickle.loads(path.read_bytes())  # what the plain reader does
    assert (pickles / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        pickle.dumps(np.array([{}], dtype=object)),
        pickle.dumps(np.zeros(2, [("a", "O")])),
    ],
    ids=["eval", "getattr", "numpy.load", "exec", "objects", "fields"],
)
def test_nothing_but_numbers_comes_out_of_a_pickle(pickles, content):
    (pickles / "mini-imagenet-cache-test.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"asks for (builtins|numpy|an array of)"):
        mini_imagenet("test", data_dir=pickles)


def test_arrays_cannot_be_called_with_arguments_of_a_pickle(pickles):
    """numpy.ndarray takes a buffer and a type: as a function it would read pointers out of a file."""
    (pickles / "mini-imagenet-cache-test.pkl").write_bytes(b"cnumpy\nndarray\n((I1\ntS'O'\nS'12345678'\ntR.")
    with pytest.raises(InputError, match=r"cannot read .*not callable"):
        mini_imagenet("test", data_dir=pickles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("image_data"), "no array as image_data; expected uint8"),
        (lambda c: c.update(image_data=c["image_data"][:, :80]), r"uint8 \[8, 80, 84, 3\] as image_data"),
        (lambda c: c.update(image_data=c["image_data"].astype(np.float32)), r"float32 \[8, 84, 84, 3\] as"),
        (lambda c: c.pop("class_dict"), "no class_dict"),
        (lambda c: c["class_dict"].pop("n06"), "1 classes; expected 2; .*pass whole=False"),
        (lambda c: c["class_dict"]["n06"].pop(), "3 images of class 'n06'; expected 4"),
        (lambda c: c["class_dict"].update(n06=c["class_dict"]["n07"]), "image 0 twice"),
        (lambda c: c["class_dict"].update(n06=[1, 3, 5, 8]), "rows 1 to 8 in class_dict for class 'n06'"),
        (lambda c: c["class_dict"].update(n06=[-1, 3, 5, 6]), "rows -1 to 6 in class_dict .* from 0 to 7"),
        (lambda c: c["class_dict"].update(n06=[0.5, 3]), "rows 0.5 to 3.0 in class_dict for class 'n06'"),
        (lambda c: c["class_dict"].update(n06=["a", "b"]), "no rows in class_dict for class 'n06'"),
        (lambda c: c["class_dict"].update(n06=[]), "no rows in class_dict for class 'n06'"),
        (lambda c: c["class_dict"].update(n06=[[1], [2, 3]]), "no rows in class_dict for class 'n06'"),
    ],
)
def test_pickles_of_something_else_are_named(pickles, change, message):
    content = packed(CLASSES["test"])
    change(content)
    (pickles / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=rf"mini_imagenet.*cache-test.pkl has {message}"):
        mini_imagenet("test", data_dir=pickles)


def test_half_a_pickle_is_named(pickles):
    path = pickles / "mini-imagenet-cache-test.pkl"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        InputError, match=r"cannot read .*cache-test.pkl: .*; expected a whole pickle; download it again"
    ):
        mini_imagenet("test", data_dir=pickles)
