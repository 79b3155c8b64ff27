"""Omniglot: the real archives once per session, and small synthetic ones for everything that can be wrong."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmeta import InputError, key
from fmeta.tasks import _omniglot as module
from fmeta.tasks import cache_folder, episodes, load_omniglot, omniglot, select_classes

PARTS = ("images_background", "images_evaluation")
SPLITS = ("train", "validation", "test")


@pytest.fixture
def no_decoder(monkeypatch):
    """From here on a decoded drawing is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("a drawing was decoded")

    monkeypatch.setattr(module.Image, "open", refuse)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Broken data must not meet the cache of the session."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))


# --- the real archives


@pytest.fixture
def real(omniglot_dir):
    """Decoded by the first test that asks, then from the cache of the session."""
    return load_omniglot(omniglot_dir)


def test_real_drawings(real):
    """1,623 characters of 20 drawings: sparse ink on an empty margin, no two alike but two dots in Braille."""
    images, names = real
    assert images.shape == (1623, 20, 28, 28)
    assert images.dtype == torch.uint8
    assert len(names) == 1623
    ink = images.float() / 255
    assert 0.03 < ink.mean() < 0.2
    assert ink.mean((2, 3)).min() > 0  # no drawing is empty
    assert ink.mean((2, 3)).max() < 0.4
    assert (ink == 0).float().mean() > 0.5  # paper is exactly 0
    assert ink.max() == 1
    assert ink[:, :, 10:18, 10:18].mean() > 4 * ink[:, :, [0, -1]].mean()
    assert len({drawing.tobytes() for drawing in images.reshape(-1, 784).numpy()}) == 32459


def test_real_names(real):
    """`alphabet/character`, unique, sorted within background (30 alphabets) and evaluation set (20), none in both."""
    _, names = real
    background, evaluation = names[:964], names[964:]
    assert len(set(names)) == 1623
    assert background == sorted(background)
    assert evaluation == sorted(evaluation)
    alphabets = [{name.split("/")[0] for name in part} for part in (background, evaluation)]
    assert [len(a) for a in alphabets] == [30, 20]
    assert not alphabets[0] & alphabets[1]
    assert {name.count("/") for name in names} == {1}
    assert names[0] == "Alphabet_of_the_Magi/character01"
    assert names[964] == "Angelic/character01"


def test_real_drawing_equals_the_archives(real, omniglot_dir):
    """A character in the middle, decoded here by hand: Lanczos from 105 x 105, ink 255 on paper 0."""
    images, names = real
    for part, name in zip(PARTS, ("Greek/character05", "Tibetan/character20"), strict=True):
        with zipfile.ZipFile(omniglot_dir / f"{part}.zip") as archive:
            entries = sorted(n for n in archive.namelist() if f"/{name}/" in n and n.endswith(".png"))
            for drawing, entry in zip(images[names.index(name)], entries, strict=True):
                original = Image.open(io.BytesIO(archive.read(entry)))
                assert original.size == (105, 105)
                small = original.convert("L").resize((28, 28), Image.Resampling.LANCZOS)
                assert np.array_equal(drawing.numpy(), 255 - np.asarray(small))


def test_second_load_comes_from_the_cache(real, omniglot_dir, no_decoder):
    """Equal, without one PNG being opened."""
    images, names = load_omniglot(omniglot_dir)
    assert torch.equal(images, real[0])
    assert names == real[1]
    assert len(list(cache_folder().glob("omniglot-*.safetensors"))) == 1
    assert not list(cache_folder().glob("*.tmp"))


def test_checksums_are_those_of_the_real_lists(omniglot_dir):
    """What a downloaded list is checked against is the published one. (The archives here may be repacked.)"""
    lists = {name: checksum for name, checksum in module._CHECKSUMS.items() if name.endswith(".txt")}
    assert sorted(lists) == ["test.txt", "train.txt", "val.txt"]
    for name, checksum in lists.items():
        content = (omniglot_dir / "splits_vinyals" / name).read_bytes()
        assert "sha256:" + hashlib.sha256(content).hexdigest() == checksum, name


def test_download_asks_for_the_official_files(real, omniglot_dir, monkeypatch):
    """Without a folder: two archives and one list, each with its checksum, into the cache folder."""
    asked = {}

    def fetch(url, checksum, folder, progress=True):
        asked[url] = (checksum, folder)
        name = url.rsplit("/", 1)[-1]
        return omniglot_dir / name if name.endswith(".zip") else omniglot_dir / "splits_vinyals" / name

    monkeypatch.setattr(module, "fetch", fetch)
    data = omniglot("test", protocol="vinyals")
    assert data.names == omniglot("test", protocol="vinyals", data_dir=omniglot_dir).names
    assert [url.rsplit("/", 1)[-1] for url in asked] == ["images_background.zip", "images_evaluation.zip", "test.txt"]
    assert all(url.startswith("https://raw.githubusercontent.com/") for url in asked)
    assert all(checksum == module._CHECKSUMS[url.rsplit("/", 1)[-1]] for url, (checksum, _) in asked.items())
    assert all(folder.is_relative_to(cache_folder()) for _, folder in asked.values())


def test_finn_splits(real, omniglot_dir):
    """1,100 / 100 / 423 characters, disjoint, covering, shuffled and the same again."""
    parts = [omniglot(split, data_dir=omniglot_dir) for split in SPLITS]
    assert [len(p.names) for p in parts] == [1100, 100, 423]
    together = [name for p in parts for name in p.names]
    assert len(set(together)) == 1623
    assert sorted(together) == sorted(real[1])
    assert together != sorted(together)
    background = set(real[1][:964])
    assert 550 < len(background & set(parts[0].names)) < 750  # 653 expected: both sets are mixed
    assert not any(p.turns.any() for p in parts)
    assert omniglot("train", protocol="finn", data_dir=omniglot_dir).names == parts[0].names


def test_finn_shuffle_is_pinned(omniglot_dir):
    """Results are compared across versions: the split must never move."""
    first = [omniglot(split, data_dir=omniglot_dir).names[0] for split in SPLITS]
    assert first == ["Sanskrit/character21", "ULOG/character04", "Asomtavruli_(Georgian)/character31"]


def test_lake_splits(real, omniglot_dir):
    """964 background characters, and the 659 of the evaluation set to validate and test."""
    train, validation, test = (omniglot(split, protocol="lake", data_dir=omniglot_dir) for split in SPLITS)
    assert list(train.names) == real[1][:964]
    assert list(test.names) == list(validation.names) == real[1][964:]
    assert len(test.names) == 659


def test_vinyals_splits(real, omniglot_dir):
    """4,112 / 688 / 1,692 classes; each character with its four turns, in one split only."""
    seen = set()
    for split, classes in zip(SPLITS, (4112, 688, 1692), strict=True):
        data = omniglot(split, protocol="vinyals", data_dir=omniglot_dir)
        assert len(data.names) == len(set(data.names)) == classes
        assert torch.bincount(data.turns).tolist() == [classes // 4] * 4
        characters = {name.rpartition("/rot")[0] for name in data.names}
        assert len(characters) == classes // 4
        assert not characters & seen
        seen |= characters
        for name, turns in zip(data.names[::97], data.turns[::97].tolist(), strict=True):
            assert int(name[-3:]) == 90 * turns
    assert seen == set(real[1])


@pytest.mark.parametrize("protocol", ["finn", "vinyals", "lake"])
def test_classes_point_at_their_drawings(real, omniglot_dir, protocol):
    """The rows of each class are the 20 drawings of the character it is named after."""
    images, names = real
    data = omniglot("validation", protocol=protocol, data_dir=omniglot_dir)
    assert data.examples.shape == (1623 * 20, 1, 28, 28)
    assert data.examples.dtype == torch.uint8
    assert data.pictures
    assert (data.size == 20).all()
    position = {name: i for i, name in enumerate(names)}
    for name, start in zip(data.names[::13], data.start[::13].tolist(), strict=True):
        character = position[name.rpartition("/rot")[0] or name]
        assert torch.equal(data.examples[start : start + 20, 0], images[character])


def test_real_episodes(real, omniglot_dir):
    """The twenty-way task of the papers: images in 0..1, and turned characters as `Image.rotate` turned them there."""
    data = omniglot("test", protocol="vinyals", data_dir=omniglot_dir)
    tasks = episodes(data, ways=20, shots=1, query=5)(key(0), 2)
    assert tasks.support.x.shape == (2, 20, 1, 28, 28)
    assert tasks.query.x.shape == (2, 100, 1, 28, 28)
    assert 0 <= tasks.query.x.min() < tasks.query.x.max() <= 1
    quarter = data.names.index("Gurmukhi/character42/rot090")
    sample = episodes(select_classes(data, torch.tensor([quarter, 0])), ways=2, shots=1, query=19)
    drawn, label = sample(key(0), 1), sample.classes(key(0), 1)[0].tolist().index(0)
    character = real[0][real[1].index("Gurmukhi/character42")]
    rotated = {np.asarray(Image.fromarray(image.numpy()).rotate(90)).tobytes() for image in character}
    x, y = torch.cat([drawn.support.x, drawn.query.x], 1)[0], torch.cat([drawn.support.y, drawn.query.y], 1)[0]
    seen = (x[y == label, 0] * 255).round().to(torch.uint8)
    assert {image.numpy().tobytes() for image in seen} == rotated


def test_truncated_real_archive(omniglot_dir, own_cache, tmp_path):
    """Half of the official archive: the message names the file and the cure."""
    for part in PARTS:
        content = (omniglot_dir / f"{part}.zip").read_bytes()
        (tmp_path / f"{part}.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read .*images_background.zip.*download it again"):
        load_omniglot(tmp_path)


def test_folders_of_the_real_archives_give_the_same_drawings(real, omniglot_dir, own_cache, monkeypatch, tmp_path):
    """The first four characters of each archive, unpacked: the same drawings, names and order."""
    images, names = real
    monkeypatch.setattr(module, "_PARTS", dict.fromkeys(PARTS, 4))
    chosen = {PARTS[0]: names[:4], PARTS[1]: names[964:968]}
    for part, characters in chosen.items():
        with zipfile.ZipFile(omniglot_dir / f"{part}.zip") as archive:
            wanted = [n for n in archive.namelist() if any(n.startswith(f"{part}/{c}/") for c in characters)]
            archive.extractall(tmp_path, wanted)
    unpacked, found = load_omniglot(tmp_path)
    assert found == names[:4] + names[964:968]
    assert torch.equal(unpacked, torch.cat([images[:4], images[964:968]]))


# --- small archives


def drawing(number):
    """A PNG like those of the archives: 105 x 105, one bit, paper 1 and ink 0."""
    pixels = np.random.default_rng(number).random((15, 15)) > 0.1
    content = io.BytesIO()
    Image.fromarray(pixels.repeat(7, 0).repeat(7, 1)).save(content, "PNG")
    return content.getvalue()


def small_parts():
    """Path -> content of three background and two evaluation characters."""
    characters = {PARTS[0]: ["Aa/c01", "Aa/c02", "Bb_(b)/c01"], PARTS[1]: ["Cc/c01", "Dd/c01"]}
    return {
        part: {
            f"{part}/{name}/{number:04}_{d:02}.png": drawing(100 * PARTS.index(part) + 20 * number + d)
            for number, name in enumerate(names)
            for d in range(1, 21)
        }
        for part, names in characters.items()
    }


def pack(folder, parts):
    folder.mkdir(exist_ok=True)
    for part, files in parts.items():
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    return folder


@pytest.fixture
def small(monkeypatch, own_cache, tmp_path):
    """A folder with the two small archives, and the module told to expect them."""
    monkeypatch.setattr(module, "_PARTS", {PARTS[0]: 3, PARTS[1]: 2})
    return pack(tmp_path / "small", small_parts())


def test_small_archives(small):
    """What the tests below damage is fine as it is."""
    images, names = load_omniglot(small)
    assert images.shape == (5, 20, 28, 28)
    assert names == ["Aa/c01", "Aa/c02", "Bb_(b)/c01", "Cc/c01", "Dd/c01"]
    assert images.reshape(100, -1).unique(dim=0).shape[0] == 100


def test_folders_and_archives_may_be_mixed(small, tmp_path):
    """An unpacked part is preferred to its archive, and gives the same."""
    expected = load_omniglot(small)
    with zipfile.ZipFile(small / f"{PARTS[1]}.zip") as archive:
        archive.extractall(small)
    (small / f"{PARTS[1]}.zip").unlink()
    images, names = load_omniglot(str(small))  # a folder's name will do
    assert torch.equal(images, expected[0])
    assert names == expected[1]


def test_order_of_the_archive_does_not_matter(small, tmp_path):
    """Names and drawings are sorted, however the archive was packed."""
    shuffled = {part: dict(reversed(files.items())) for part, files in small_parts().items()}
    images, names = load_omniglot(pack(tmp_path / "shuffled", shuffled))
    assert names == load_omniglot(small)[1]
    assert torch.equal(images, load_omniglot(small)[0])


def test_an_archive_that_changes_while_it_is_read_is_named(small, monkeypatch):
    """What was decoded is not kept."""
    true_decode = module._decode

    def decode(source, part):
        found = true_decode(source, part)
        with (small / f"{PARTS[0]}.zip").open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(module, "_decode", decode)
    with pytest.raises(InputError, match=rf"{PARTS[0]}.zip changed while it was read; expected it at rest"):
        load_omniglot(small)
    assert not list(cache_folder().glob("*"))


def test_an_archive_that_vanishes_is_named(small, monkeypatch):
    true_fingerprint = module._fingerprint

    def fingerprint(source):
        found = true_fingerprint(source)
        source.unlink()
        return found

    monkeypatch.setattr(module, "_fingerprint", fingerprint)
    with pytest.raises(InputError, match=rf"omniglot: cannot read .*{PARTS[0]}.zip: .*No such file"):
        load_omniglot(small)
    with pytest.raises(InputError, match=rf"omniglot: cannot read .*{PARTS[0]}.zip: No such file.* at rest"):
        true_fingerprint(small / f"{PARTS[0]}.zip")


def test_other_archives_are_not_taken_from_the_cache(small, tmp_path):
    """The cache goes by content: another archive of the same name is decoded anew."""
    first, _ = load_omniglot(small)
    parts = small_parts()
    path = next(iter(parts[PARTS[0]]))
    parts[PARTS[0]][path] = drawing(9999)
    second, _ = load_omniglot(pack(small, parts))
    assert not torch.equal(first[0, 0], second[0, 0])
    assert torch.equal(first[1:], second[1:])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_a_cache_file_is_decoded_again(small, share):
    """A cut cache file costs time, never an error or other drawings; afterwards the cache is whole again."""
    expected, names = load_omniglot(small)
    expected = expected.clone()
    (cached,) = cache_folder().glob("omniglot-*.safetensors")
    content = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(content[: int(share * len(content))])
    images, again = load_omniglot(small)
    assert torch.equal(images, expected)
    assert again == names
    assert cached.read_bytes() == content
    assert list(cache_folder().iterdir()) == [cached]


def test_without_a_cache_drawings_are_decoded(small, no_decoder):
    """The decoder is what the test of the cache watches: without a cache it is called."""
    with pytest.raises(AssertionError, match="was decoded"):
        load_omniglot(small)


def remove_character(parts):
    files = parts[PARTS[0]]
    parts[PARTS[0]] = {p: c for p, c in files.items() if "/Aa/c02/" not in p}


def remove_drawing(parts):
    del parts[PARTS[1]][f"{PARTS[1]}/Cc/c01/0000_07.png"]


def add_level(parts):
    parts[PARTS[0]] = {f"{PARTS[0]}/deeper{p.removeprefix(PARTS[0])}": c for p, c in parts[PARTS[0]].items()}


def swap(parts):
    parts[PARTS[0]], parts[PARTS[1]] = parts[PARTS[1]], parts[PARTS[0]]


def empty(parts):
    parts[PARTS[0]] = {}


def foreign(parts):
    parts[PARTS[0]] = {f"holiday/beach{i}.png": drawing(i) for i in range(4)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_character, r"images_background.zip holds 2 characters; expected 3"),
        (remove_drawing, r"images_evaluation.zip holds 2 characters, among them 'Cc/c01' with 19 drawings"),
        (add_level, r"images_background.zip holds 3 characters, among them 'deeper/Aa/c01' with 20"),
        (swap, r"images_background.zip holds 2 characters; expected 3"),
        (empty, r"images_background.zip holds 0 characters; expected 3"),
        (foreign, r"images_background.zip holds 1 characters, among them '' with 4 drawings.*not the official"),
    ],
)
def test_wrong_archives(small, tmp_path, damage, message):
    """A readable archive with other contents: the message tells what it holds and what was expected."""
    parts = small_parts()
    damage(parts)
    with pytest.raises(InputError, match=message):
        load_omniglot(pack(tmp_path / "damaged", parts))
    assert not list(tmp_path.glob("cache/*"))  # nothing of it was kept


def test_archive_without_drawings(small, tmp_path):
    """A text file named like a drawing."""
    parts = small_parts()
    parts[PARTS[0]][f"{PARTS[0]}/Aa/c01/0000_01.png"] = b"not a drawing"
    with pytest.raises(InputError, match=r"cannot read .*images_background.zip.*PNG"):
        load_omniglot(pack(tmp_path / "damaged", parts))


def test_truncated_drawing_in_a_folder(small, tmp_path):
    """An unpacking that broke off in the middle of a file."""
    for part in PARTS:
        with zipfile.ZipFile(small / f"{part}.zip") as archive:
            archive.extractall(tmp_path / "unpacked")
    path = tmp_path / "unpacked" / PARTS[0] / "Aa" / "c01" / "0000_03.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"cannot read .*images_background"):
        load_omniglot(tmp_path / "unpacked")


@pytest.mark.parametrize("length", [0, 10, 500, -1])
def test_truncated_archive(small, length):
    """A download by hand that broke off, at any place."""
    path = small / f"{PARTS[1]}.zip"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"cannot read .*images_evaluation.zip.*download it again"):
        load_omniglot(small)


def test_page_of_html_instead_of_an_archive(small):
    """What a proxy's login page leaves behind."""
    (small / f"{PARTS[0]}.zip").write_text("<html><body>Please log in</body></html>")
    with pytest.raises(InputError, match=r"cannot read .*images_background.zip"):
        load_omniglot(small)


@pytest.mark.parametrize("missing", PARTS)
def test_missing_archive(small, missing):
    """The message names the part and both forms it may have."""
    (small / f"{missing}.zip").unlink()
    with pytest.raises(InputError, match=rf"found neither {missing}/ nor {missing}\.zip"):
        load_omniglot(small)


def test_missing_folder(own_cache, tmp_path):
    """The message shows the folder as it was given."""
    with pytest.raises(InputError, match=r"found neither images_background/.*leave data_dir out") as caught:
        omniglot("train", data_dir=tmp_path / "nowhere")
    assert repr(str(tmp_path / "nowhere")) in str(caught.value)


# --- arguments and lists


def test_unknown_split(small):
    """The message names the three that are known."""
    with pytest.raises(InputError, match=r"split='val'.*'train', 'validation' or 'test'"):
        omniglot("val", data_dir=small)


def test_unknown_protocol(small):
    """The message names the three that are known."""
    with pytest.raises(InputError, match=r"protocol='matching'.*'finn', 'vinyals' or 'lake'"):
        omniglot("train", protocol="matching", data_dir=small)


TURNS = ("000", "090", "180", "270")


def write_lists(folder, lines):
    (folder / "splits_vinyals").mkdir(exist_ok=True)
    Path(folder, "splits_vinyals", "val.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def listed(small, monkeypatch):
    """The small archives with a list of two characters in four turns, and its lines."""
    monkeypatch.setattr(module, "_VINYALS", module._VINYALS | {"validation": ("val.txt", 8)})
    lines = [f"{name}/rot{turn}" for name in ("Bb_(b)/c01", "Cc/c01") for turn in TURNS]
    write_lists(small, lines)
    return small, lines


def test_list_of_classes(listed):
    """Each line is a class: its character's rows and its turn."""
    folder, lines = listed
    data = omniglot("validation", protocol="vinyals", data_dir=folder)
    assert data.names == tuple(lines)
    assert data.turns.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert data.start.tolist() == [40] * 4 + [60] * 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: ["Klingon/c01/rot000", *lines[1:]], r"has 8 lines, one of them 'Klingon/c01/rot000'"),
        (lambda lines: [*lines[:-1], "Cc/c01/rot045"], r"has 8 lines, one of them 'Cc/c01/rot045'"),
        (lambda lines: [*lines[:-1], "Cc/c01"], r"has 8 lines, one of them"),
        (lambda lines: lines[:-1], r"has 7 lines; expected 8 different lines"),
        (lambda lines: [*lines, lines[0]], r"has 9 lines; expected 8 different lines"),
        (lambda lines: [*lines[:-1], lines[0]], r"has 8 lines; expected 8 different lines"),
        (lambda lines: [], r"has 0 lines; expected 8 different lines"),
    ],
    ids=["unknown character", "unknown turn", "no turn", "too few lines", "too many lines", "one twice", "empty"],
)
def test_damaged_list(listed, damage, message):
    """The message names the file, an example of what is strange, and what was expected."""
    folder, lines = listed
    write_lists(folder, damage(lines))
    with pytest.raises(InputError, match=rf"val\.txt {message}"):
        omniglot("validation", protocol="vinyals", data_dir=folder)


def test_missing_list(small):
    """The other protocols do without the lists; this one says which is missing."""
    with pytest.raises(InputError, match=r"splits_vinyals.*train\.txt is missing"):
        omniglot("train", protocol="vinyals", data_dir=small)
