"""Glyphs: drawings of the real fonts, and what is kept in the cache."""

import unicodedata

import pytest
import torch

from fmeta import InputError, key
from fmeta.tasks import _glyphs as module
from fmeta.tasks import cache_folder, episodes, glyphs

SPLITS = ("train", "validation", "test")


@pytest.fixture
def parts():
    """The three splits, six drawings each: drawn by the first test that asks, then from the cache of the session."""
    return {split: glyphs(split, drawings=6) for split in SPLITS}


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Two short scripts and a cache of their own: what the tests below draw again and again."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "cache"))
    blocks = {"test": {"Hebrew": range(0x05D0, 0x05D6)}, "validation": {}, "train": {"Greek": range(0x0391, 0x03A0)}}
    monkeypatch.setattr(module, "_SCRIPTS", blocks)


@pytest.fixture
def no_drawing(few, monkeypatch):
    """From here on a drawing that is made is an error."""

    def refuse(*args):
        raise AssertionError("a character was drawn")

    def forbid():
        monkeypatch.setattr(module, "_draw", refuse)

    return forbid


def drawings_of(data):
    return data.examples.reshape(len(data.names), -1, 28, 28)


def same(a, b):
    return a.names == b.names and all(
        torch.equal(getattr(a, f), getattr(b, f)) for f in ("examples", "start", "size", "turns")
    )


# --- what is drawn


def test_hundreds_of_classes_in_each_split(parts):
    """About two thirds of some thousand characters to train, a quarter to test."""
    classes = {split: len(data.names) for split, data in parts.items()}
    total = sum(classes.values())
    assert 600 <= total <= 1200
    assert 0.55 < classes["train"] / total < 0.7
    assert 0.1 < classes["validation"] / total < 0.2
    assert 0.2 < classes["test"] / total < 0.3


def test_no_script_is_in_two_splits(parts):
    """And no character is there twice."""
    scripts = [{name.rpartition("/")[0] for name in data.names} for data in parts.values()]
    assert [len(s) for s in scripts] == [5, 5, 5]
    assert len(set.union(*scripts)) == 15
    characters = [name[-1] for data in parts.values() for name in data.names]
    assert len(characters) == len(set(characters))


def test_classes_are_what_their_names_say(parts):
    """Each character belongs to the script of its name, by Unicode's own name for it."""
    own = {"Greek": ("GREEK", "COPTIC"), "N'Ko": "NKO", "Mathematical operators": ""}
    for data in parts.values():
        for name in data.names:
            script, _, character = name.rpartition("/")
            assert unicodedata.name(character).startswith(own.get(script, script.upper())), name
            assert not unicodedata.decomposition(character)


def test_shapes(parts):
    """The drawings of each class one after another, as uint8 images."""
    for data in parts.values():
        classes = len(data.names)
        assert data.examples.shape == (6 * classes, 1, 28, 28)
        assert data.examples.dtype == torch.uint8
        assert data.pictures
        assert data.start.tolist() == list(range(0, 6 * classes, 6))
        assert (data.size == 6).all()
        assert not data.turns.any()


def test_every_drawing_has_ink_and_none_is_cut(parts):
    """Ink on every drawing, and none on the outermost pixels."""
    for data in parts.values():
        images = data.examples[:, 0]
        assert images.flatten(1).amax(1).min() > 200
        assert images.float().mean((1, 2)).min() / 255 > 0.005
        assert images.float().mean((1, 2)).max() / 255 < 0.8
        edge = torch.ones(28, 28, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        assert not images[:, edge].any()


def test_drawings_fill_the_image(parts):
    """The ink of every drawing reaches over at least 14 pixels one way, and over 25 at most."""
    for data in parts.values():
        ink = data.examples[:, 0] > 0
        reach = torch.stack([ink.any(2).sum(1), ink.any(1).sum(1)]).amax(0)
        assert reach.max() <= 26
        assert reach.float().mean() > 18


def test_no_two_drawings_are_the_same(parts):
    """Not of one class, and not of two."""
    images = torch.cat([data.examples for data in parts.values()])
    assert len({image.tobytes() for image in images.numpy()}) == len(images)


def test_no_character_is_drawn_as_missing(parts):
    """The box that a font draws for what it has not is among no face's plain drawings."""
    faces = module._faces(module._files())
    names = [name for data in parts.values() for name in data.names[::7]]
    for face in faces.values():
        box = module._draw(face.font, "\uffff", module._Jitter())
        assert "\uffff" not in face.characters
        for name in names:
            if name[-1] in face.characters:
                assert (module._draw(face.font, name[-1], module._Jitter()) != box).any(), name


@pytest.mark.parametrize(
    ("characters", "kept"),
    [
        pytest.param("AΑА", 1, id="three scripts"),
        pytest.param("Ss", 1, id="a smaller copy"),
        pytest.param("Gg", 2, id="two forms"),
        pytest.param("KЖ", 2, id="two letters"),
        pytest.param("EÉЖ", 2, id="an accent"),
        pytest.param("ᐂЖ\u1400", 2, id="not in the font"),
        pytest.param("Жᚁ\u1680", 2, id="a space"),
        pytest.param("Ж7+W", 2, id="no letters"),
        pytest.param("⋒⋓ЖW", 2, id="fonts disagree"),
    ],
)
def test_which_characters_are_classes(monkeypatch, characters, kept):
    """One of homoglyphs and of scaled copies, both of different letters, and none without a shape of its own."""
    blocks = {"test": {f"script {i}": range(ord(c), ord(c) + 1) for i, c in enumerate(characters)}}
    monkeypatch.setattr(module, "_SCRIPTS", blocks)
    plain = module._faces(module._files())[module._PLAIN]
    assert len(module._distinct(plain)) == kept


def test_classes_can_be_told_apart_but_not_by_pixels(parts):
    """The nearest support image decides 47% of 5-way 1-shot test queries (chance is 20%)."""
    tasks = episodes(parts["test"], ways=5, shots=1, query=5)(key(0), 200)
    distance = torch.cdist(tasks.query.x.flatten(2), tasks.support.x.flatten(2))
    chosen = tasks.support.y.gather(1, distance.argmin(2))
    right = (chosen == tasks.query.y).float().mean()
    assert 0.40 < right < 0.55


# --- seed and number of drawings


def test_same_seed_same_drawings(few, tmp_path, monkeypatch):
    """Made twice, in two caches."""
    first = glyphs("train", drawings=3)
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "another"))
    assert same(first, glyphs("train", drawings=3))


def test_another_seed_other_drawings_of_the_same_classes(few):
    """The seed decides no class."""
    first, second = glyphs("train", drawings=3), glyphs("train", drawings=3, seed=1)
    assert first.names == second.names
    assert not any(torch.equal(a, b) for a, b in zip(first.examples, second.examples, strict=True))


def test_fewer_drawings_are_the_first_of_more(few):
    """So a larger set only adds."""
    three, five = drawings_of(glyphs("train", drawings=3)), drawings_of(glyphs("train", drawings=5))
    assert torch.equal(three, five[:, :3])


# --- the cache


def test_second_call_comes_from_the_cache(few, no_drawing):
    """Equal, from one file, without one character being drawn; other arguments have a file of their own."""
    first = glyphs("test", drawings=2)
    (cached,) = cache_folder().iterdir()
    assert cached.name.startswith("glyphs-")
    no_drawing()
    assert same(first, glyphs("test", drawings=2))
    assert glyphs("train", drawings=2).names  # all splits are in the file
    with pytest.raises(AssertionError, match="was drawn"):
        glyphs("test", drawings=3)
    with pytest.raises(AssertionError, match="was drawn"):
        glyphs("test", drawings=2, seed=1)
    assert list(cache_folder().iterdir()) == [cached]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_a_cache_file_is_drawn_again(few, share):
    """A cut cache file costs time, never an error or other drawings; afterwards the cache is whole again."""
    first = glyphs("test", drawings=2)
    first = first._replace(examples=first.examples.clone())
    (cached,) = cache_folder().iterdir()
    content = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(content[: int(share * len(content))])
    assert same(first, glyphs("test", drawings=2))
    assert cached.read_bytes() == content
    assert list(cache_folder().iterdir()) == [cached]


# --- mistakes


@pytest.mark.parametrize("split", ["val", "Train", "", None])
def test_unknown_split(split):
    """The message names the three that are known."""
    with pytest.raises(InputError, match=rf"glyphs\(split={split!r}\): expected 'train', 'validation' or 'test'"):
        glyphs(split)


@pytest.mark.parametrize("drawings", [0, -1, 2.5, True])
def test_impossible_number_of_drawings(drawings):
    """The message names the argument and what came."""
    with pytest.raises(InputError, match=rf"glyphs\(drawings={drawings}\): expected a whole number, at least 1"):
        glyphs("train", drawings=drawings)


def test_missing_font(monkeypatch):
    """An installation of matplotlib without its fonts: the message names the file, the folder and the cure."""
    monkeypatch.setattr(module, "_FACES", (*module._FACES, "DejaVuSlab"))
    with pytest.raises(InputError, match=r"DejaVuSlab\.ttf is not in .*fonts.*reinstall matplotlib"):
        glyphs("train")
