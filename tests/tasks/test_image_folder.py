"""Folders of image files, written here in every format and every kind of disorder."""

import os
import struct
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import fmeta
from fmeta import InputError
from fmeta.tasks import _image_folder as module
from fmeta.tasks import episodes, image_folder, image_splits, read_images

RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(seed, height=20, width=20, colour=True):
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path):
    """Two classes of unequal size in a folder with hidden clutter."""
    root = tmp_path / "pets"
    for name, count in (("dog", 3), ("cat", 2)):
        for i in range(count):
            save(noise(10 * count + i), root / name / f"{i}.png")
    (root / "cat" / "._0.png").write_bytes(b"what macOS leaves in archives")
    (root / "cat" / "Thumbs.db").write_bytes(b"and Windows in folders")
    save(noise(1), root / ".thumbnails" / "x.png")
    return root


def pixel(path, **options):
    """The only colour of an image, `[channel]`."""
    x, _ = read_images([path], size=4, **options)
    assert (x == x[:, :, :1, :1]).all()
    return x[0, :, 0, 0].tolist()


# --- classes


def test_each_folder_of_images_is_a_class(pets):
    """Sorted classes, sorted images, without what is hidden; an image of the right size is not touched."""
    data = image_folder(pets, size=20)
    assert data.names == ("cat", "dog")
    assert data.size.tolist() == [2, 3]
    assert data.start.tolist() == [0, 2]
    assert data.examples.dtype == torch.uint8
    expected = [noise(20), noise(21), noise(30), noise(31), noise(32)]
    assert np.array_equal(data.examples.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    tasks = episodes(data, ways=2, shots=1, query=1)(fmeta.key(0), 3)
    assert tasks.support.x.shape == (3, 2, 3, 20, 20)


def test_nested_folders_are_named_by_their_path(tmp_path):
    """The same name in two families is two classes; a folder may hold images and classes at once."""
    for seed, name in enumerate(("b/one", "a/one", "a", "c")):
        save(noise(seed), tmp_path / name / "0.png")
    data = image_folder(tmp_path, size=20)
    assert data.names == ("a", "a/one", "b/one", "c")
    assert np.array_equal(data.examples[data.names.index("b/one")].permute(1, 2, 0).numpy(), noise(0))


def test_one_class_loads_and_episodes_say_so(tmp_path):
    save(noise(0), tmp_path / "only" / "0.png")
    data = image_folder(tmp_path, size=8)
    assert data.names == ("only",)
    with pytest.raises(InputError, match=r"episodes\(ways=2\): the data has 1 classes"):
        episodes(data, ways=2, shots=1, query=1)


def test_every_suffix_is_read(tmp_path):
    for suffix in ("jpg", "JPEG", "png", "bmp", "gif", "webp", "tif", "ppm", "jp2"):
        save(Image.new("RGB", (9, 9), RED), tmp_path / "c" / f"x.{suffix}")
    x = image_folder(tmp_path, size=9).examples.int()
    assert x.shape == (9, 3, 9, 9)
    assert (x[:, 0] > 250).all()
    assert (x[:, 1:] < 5).all()


# --- pixels


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (14, 28)])
def test_shorter_side_then_centre(tmp_path, height, width):
    """Red, blue and red thirds along the longer side: only the middle stays."""
    thirds = np.zeros((height, width, 3), np.uint8) + np.array(RED, np.uint8)
    longer, shorter = max(height, width), min(height, width)
    begin = (longer - shorter) // 2
    middle = (slice(None), slice(begin, begin + shorter)) if width > height else (slice(begin, begin + shorter),)
    thirds[middle] = BLUE
    x, _ = read_images([save(thirds, tmp_path / "x.png")], size=shorter)
    assert (x[0] == torch.tensor(BLUE)[:, None, None]).all()


def test_images_of_which_most_is_cut_off_are_counted(tmp_path):
    """Less than half kept: said once in a process, which may read a folder many times."""
    for name, height, width in (("a/0", 40, 400), ("a/1", 20, 20), ("b/0", 41, 20), ("b/1", 40, 20)):
        save(noise(0, height, width), tmp_path / f"{name}.png")
    message = r"image_folder: of 2 of 4 images less than half is kept.*a/0.png of 400 by 40 pixels; crop or pad"
    with pytest.warns(UserWarning, match=message) as caught:
        image_folder(tmp_path, size=8)
    assert [warning.filename for warning in caught] == [__file__]
    image_folder(tmp_path, size=8)


def test_resizing_is_antialiased(tmp_path):
    """A fine chequerboard becomes grey, not a coarse chequerboard."""
    board = (np.indices((120, 120)).sum(0) % 2 * 255).astype(np.uint8)
    x, _ = read_images([save(board, tmp_path / "x.png")], size=12)
    assert ((x.int() - 127).abs() < 12).all()


def test_exif_orientation_is_respected(tmp_path):
    """A photograph stored lying down, with the note to turn it by 90 degrees."""
    upright = noise(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    stored = np.ascontiguousarray(np.rot90(upright))
    x, _ = read_images([save(stored, tmp_path / "x.png", exif=exif)], size=20)
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), upright)


def test_transparency_lies_over_white(tmp_path):
    """In colour, in grey, in a palette and as one transparent colour."""
    half = save(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), tmp_path / "half.png")
    assert pixel(half) == pytest.approx([255, 127, 127], abs=1)
    assert pixel(save(Image.new("LA", (4, 4), (0, 0)), tmp_path / "grey.png")) == [255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *BLUE])
    assert pixel(save(palette, tmp_path / "palette.png")) == list(BLUE)
    assert pixel(save(palette, tmp_path / "clear.png", transparency=1)) == [255]
    assert pixel(save(Image.new("RGB", (4, 4), RED), tmp_path / "key.png", transparency=RED)) == [255]


def test_other_modes_are_read(tmp_path):
    """One bit, CMYK, and 16-bit grey in each file format that has it."""
    assert pixel(save(Image.new("1", (4, 4), 1), tmp_path / "bit.png")) == [255]
    assert pixel(save(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "ink.tif")) == list(RED)
    for suffix in ("png", "tif", "pgm"):
        deep = np.full((4, 4), 65535 * 3 // 5, np.uint16)
        assert pixel(save(deep, tmp_path / f"deep.{suffix}")) == [153]


RAMP = np.arange(64).reshape(8, 8)


def tiff(path, levels, *, bits=16, order="<", white_is_zero=False, signed=False):
    """An uncompressed grey TIFF, with the tags that Pillow does not write."""
    width = {12: 1.5, 16: 2, 32: 4}[bits] * levels.size
    content = (
        levels.astype(f"{order}i{bits // 8}" if signed else f"{order}u{bits // 8}").tobytes() if bits != 12 else b""
    )
    if bits == 12:
        text = "".join(f"{level:012b}" for level in levels.flat)
        content = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert len(content) == width
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: 8, 279: len(content)}
    tags |= {339: 2 if signed else 1}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    path.write_bytes(head + table + bytes(4) + content)
    return path


@pytest.mark.parametrize(
    ("options", "white"),
    [
        ({}, 65535),
        ({"order": ">"}, 65535),
        ({"bits": 12}, 4095),
        ({"white_is_zero": True}, 65535),
        ({"bits": 32}, 65535),
    ],
)
def test_deep_grey_is_scaled_by_its_white(tmp_path, options, white):
    """Either byte order, 12 bits, white at 0, and 16 bits that were saved as 32."""
    x, _ = read_images([tiff(tmp_path / "x.tif", RAMP * white // 63, **options)], size=8)
    expected = (255 * RAMP / 63).round()
    expected = 255 - expected if "white_is_zero" in options else expected
    assert x[0, 0].numpy() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("options", [{"bits": 32}, {"signed": True}])
def test_deep_grey_that_does_not_say_what_white_is_is_refused(tmp_path, options):
    """Numbers up to 255 in 32 bits would become black, those with a sign half as bright."""
    path = tiff(tmp_path / "x.tif", RAMP * 4, **options)
    with pytest.raises(InputError, match="says not what white is; save it with 8 or 16 bits"):
        read_images([path], size=8)
    dark = save(np.full((4, 4), 200, np.uint16), tmp_path / "dark.pgm")
    assert pixel(dark) == [1]  # a dark picture is one


def test_a_transparent_level_of_deep_grey_lies_over_white(tmp_path):
    levels = np.zeros((4, 4), np.uint16)
    assert pixel(save(levels, tmp_path / "x.png", transparency=0)) == [255]
    assert pixel(save(levels + 257, tmp_path / "y.png", transparency=0)) == [1]


def test_channels_are_decided_by_the_data(tmp_path):
    """1 where all is grey, saved as colour or not; 3 as soon as one image has colour; else what was asked for."""
    grey = noise(0, colour=False)
    save(grey, tmp_path / "a" / "0.png")
    save(grey[..., None].repeat(3, -1), tmp_path / "a" / "1.png")
    x = image_folder(tmp_path, size=20).examples
    assert x.shape == (2, 1, 20, 20)
    assert np.array_equal(x[1, 0].numpy(), grey)
    save(Image.new("RGB", (20, 20), RED), tmp_path / "b" / "0.png")
    x = image_folder(tmp_path, size=20).examples
    assert x.shape == (3, 3, 20, 20)
    assert all(np.array_equal(x[0, c].numpy(), grey) for c in range(3))
    x = image_folder(tmp_path, size=20, channels=1).examples
    assert x.shape == (3, 1, 20, 20)
    assert x[2].unique().tolist() == [76]  # the luma of red, 0.299 · 255
    assert read_images([tmp_path / "a" / "0.png"], size=20, channels=3)[0].shape == (1, 3, 20, 20)


def test_read_images_keeps_the_order_it_was_given(tmp_path):
    paths = [save(noise(i), tmp_path / f"{i}.png") for i in (3, 1, 2)]
    x, kept = read_images([str(p) for p in paths], size=20)
    assert kept == paths
    assert np.array_equal(x[2].permute(1, 2, 0).numpy(), noise(2))


def test_ink_as_cameras_and_printers_save_it(tmp_path):
    """CMYK in a JPEG, which Adobe's programs save inverted."""
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixel(save(ink, tmp_path / "ink.jpg", quality=100)) == pytest.approx(list(RED), abs=4)
    assert pixel(save(Image.new("YCbCr", (16, 16), (76, 85, 255)), tmp_path / "y.jpg")) == pytest.approx(RED, abs=4)


def test_a_palette_with_shades_of_transparency(tmp_path):
    """Each colour of the palette with its own: clear, half and opaque."""
    image = Image.new("P", (6, 3))
    image.putpalette([*RED, *RED, *RED])
    image.putdata([0, 0, 1, 1, 2, 2] * 3)
    path = save(image, tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    x, _ = read_images([path], size=3)  # the centre, of which the middle of its three columns is half
    assert x[0, :, 0, 1].tolist() == pytest.approx([255, 127, 127], abs=1)
    wide = image.resize((6, 6), Image.Resampling.NEAREST)
    x, _ = read_images([save(wide, tmp_path / "y.png", transparency=bytes([0, 128, 255]))], size=6)
    for column, expected in ((0, [255, 255, 255]), (2, [255, 127, 127]), (5, list(RED))):
        assert x[0, :, 3, column].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("suffix", ["gif", "GIF", "png", "webp"])
def test_of_moving_pictures_the_first_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (9, 9), colour) for colour in (RED, BLUE, BLUE)]
    path = tmp_path / "c" / f"x.{suffix}"
    path.parent.mkdir()
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    x = image_folder(tmp_path, size=9).examples
    assert x.shape == (1, 3, 9, 9)
    assert x[0, :, 4, 4].tolist() == pytest.approx(list(RED), abs=6)


def test_colour_photographs_of_any_shape_make_tasks(tmp_path):
    """Tall, wide and tiny, grey among colour, with upper-case suffixes: one size, three channels, 0 to 1."""
    shapes = [(40, 70), (70, 40), (5, 7), (30, 20)]
    for c in range(3):
        for i, (height, width) in enumerate(shapes):
            save(
                noise(10 * c + i, height, width, colour=i != 2), tmp_path / f"c{c}" / f"{i}.{('jpg', 'JPG', 'Png')[c]}"
            )
    data = image_folder(tmp_path, size=16, channels=3)
    assert data.examples.shape == (12, 3, 16, 16)
    assert data.size.tolist() == [4, 4, 4]
    assert (data.examples[2] == data.examples[2, :1]).all()  # grey, repeated
    x = episodes(data, ways=3, shots=1, query=3)(fmeta.key(0), 4).query.x
    assert x.shape == (4, 9, 3, 16, 16)
    assert 0.0 <= float(x.min()) < float(x.max()) <= 1.0


# --- what is passed over


def test_files_that_are_no_images_are_counted_and_named(pets):
    """In the root and in the classes; what is hidden is not. Once in a process, for each call."""
    for name in ("notes.txt", "cat/1.HEIC", "cat/2.heic", "dog/3"):
        (pets / name).write_bytes(b"")
    message = (
        r"passed over 4 files .* \(2 .heic, 1 .txt, 1 without suffix\): .*notes.txt, .*1.HEIC, .*2.heic …; exp.*conv"
    )
    for read, call in (
        (lambda: image_folder(pets, size=8), "image_folder"),
        (lambda: image_splits(pets, "train", size=8, shares=(1, 1, 1)), "image_splits"),
    ):
        save(noise(0), pets / "eel" / "0.png")
        with pytest.warns(UserWarning, match=rf"{call}\(.*pets'\): {message}") as caught:
            data = read()
        assert [warning.filename for warning in caught] == [__file__]
        assert set(data.names) <= {"cat", "dog", "eel"}
        read()


# --- names


@pytest.mark.parametrize(
    "name", ["[", "b]x", "[bold]", "two words", " ", "ü 猫 é", "%s {x}", "a'b\"c", "x" * 200, "-rf", "a\nb"]
)
def test_classes_and_folders_may_have_any_name(tmp_path, name):
    root = tmp_path / name
    for folder in (name, f"family/{name}"):
        save(noise(0), root / folder / "0.png")
    data = image_folder(root, size=8)
    assert sorted(data.names) == sorted([name, f"family/{name}"])
    (root / name / "9.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        image_folder(root, size=8)
    assert str(root / name / "9.png") in str(caught.value)


def test_names_that_are_no_text_become_text(tmp_path):
    """Bytes of another encoding: what is written to a file or a screen later must be UTF-8."""
    try:
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    save(noise(0), tmp_path / os.fsdecode(b"caf\xe9") / "0.png")
    save(noise(1), tmp_path / "tea" / "0.png")
    data = image_folder(tmp_path, size=20)
    assert data.names == ("caf\ufffd", "tea")
    assert np.array_equal(data.examples[0].permute(1, 2, 0).numpy(), noise(0))
    data.names[0].encode("utf-8")
    os.makedirs(os.path.join(os.fsencode(tmp_path), b"caf\xe8"))
    save(noise(2), tmp_path / os.fsdecode(b"caf\xe8") / "0.png")
    with pytest.raises(InputError, match="differ only by case or encoding"):
        image_folder(tmp_path, size=20)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["long", "null"])
def test_names_that_no_folder_can_have_are_refused(name):
    with pytest.raises(InputError, match="not a folder"):
        image_folder(name, size=8)


def test_an_image_that_vanishes_before_it_is_read_is_named(pets, monkeypatch):
    true_decode = module.decode

    def decode(call, files, *rest):
        (pets / "dog" / "1.png").unlink(missing_ok=True)
        return true_decode(call, files, *rest)

    monkeypatch.setattr(module, "decode", decode)
    with pytest.raises(InputError, match=r"1 of 5 images do not decode, the first .*dog/1.png: .*No such file"):
        image_folder(pets, size=8)


# --- what is refused


@pytest.fixture
def damaged(pets):
    """A text file, half a PNG and an empty file among the images."""
    (pets / "cat" / "8.jpg").write_text("no image at all")
    whole = (pets / "dog" / "0.png").read_bytes()
    (pets / "dog" / "8.png").write_bytes(whole[: len(whole) // 2])
    (pets / "dog" / "9.png").write_bytes(b"")
    return pets


def test_images_that_do_not_decode_are_counted_and_the_first_is_named(damaged):
    message = r"image_folder: 3 of 8 images do not decode, the first .*cat/8.jpg: .*pass on_error='skip'"
    with pytest.raises(InputError, match=message):
        image_folder(damaged, size=8)
    with pytest.raises(InputError, match=r"read_images: 1 of 1 images do not decode, the first .*8.jpg.*repair"):
        read_images([damaged / "cat" / "8.jpg"], size=8, on_error="skip")
    with pytest.raises(InputError, match=r"read_images: 1 of 1 .*No such file"):
        read_images([damaged / "gone.png"], size=8)


def test_skipped_images_leave_the_rest_and_one_warning(damaged):
    with pytest.warns(UserWarning, match=r"image_folder: left out: 3 of 8 images do not decode") as caught:
        data = image_folder(damaged, size=20, on_error="skip")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.names == ("cat", "dog")
    assert data.size.tolist() == [2, 3]
    assert np.array_equal(data.examples[2].permute(1, 2, 0).numpy(), noise(30))


def test_a_class_of_broken_images_only_is_named(damaged):
    (damaged / "eel").mkdir()
    (damaged / "eel" / "0.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="left out: 4 of 9"),
        pytest.raises(InputError, match="no image of class 'eel' decodes"),
    ):
        image_folder(damaged, size=8, on_error="skip")


@pytest.mark.parametrize("depth", [np.int32, np.float32])
def test_grey_without_a_white_is_refused(tmp_path, depth):
    path = save(np.full((4, 4), 1 << 20, depth), tmp_path / "x.tif")
    with pytest.raises(InputError, match="says not what white is; save it with 8 or 16 bits"):
        read_images([path], size=4)


def test_folders_that_hold_no_classes_are_named(pets, tmp_path):
    with pytest.raises(InputError, match=r"image_folder\(.*nowhere'\): not a folder"):
        image_folder(tmp_path / "nowhere", size=8)
    with pytest.raises(InputError, match="not a folder"):
        image_folder(pets / "cat" / "0.png", size=8)
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "x.txt").write_text("")
    with pytest.raises(InputError, match=r"has no folders, but x\.txt; expected a folder of images per class"):
        image_folder(tmp_path / "void", size=8)
    (pets / "eel").mkdir()
    (pets / "eel" / "x.HEIC").write_text("")
    with pytest.raises(InputError, match=r"eel holds no images, but x.HEIC; .*fill it or remove it"):
        image_folder(pets, size=8)


def test_images_outside_of_the_classes_are_named(pets):
    save(noise(0), pets / "stray.PNG")
    with pytest.raises(InputError, match=r"stray.PNG is in no class folder; .*move it into one"):
        image_folder(pets, size=8)


def test_a_folder_of_splits_is_not_taken_for_classes(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat", "Test/cat"):
        save(noise(0), tmp_path / name / "0.png")
    with pytest.raises(InputError, match=r"holds splits, such as Test/, each with classes of its own; .*one by one"):
        image_folder(tmp_path, size=8)
    assert image_folder(tmp_path / "train", size=8).names == ("cat", "dog")


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), (unicodedata.normalize("NFC", "né"), unicodedata.normalize("NFD", "né"))]
)
def test_names_that_look_alike_are_refused(tmp_path, names):
    for name in names:
        save(noise(0), tmp_path / name / "0.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes the two names for one")
    with pytest.raises(InputError, match=r"differ only by case or encoding; .*merge the folders or rename one"):
        image_folder(tmp_path, size=8)


def test_links_are_followed_once(pets, tmp_path):
    """A class elsewhere can be linked in; the same folder twice, or a link back up, would count images twice."""
    save(noise(0), tmp_path / "elsewhere" / "eel" / "0.png")
    os.symlink(tmp_path / "elsewhere" / "eel", pets / "eel")
    assert image_folder(pets, size=8).names == ("cat", "dog", "eel")
    for target in (pets / "cat", pets):
        os.symlink(target, pets / "twin")
        with pytest.raises(InputError, match=r"are one folder, by a link; .*remove the link"):
            image_folder(pets, size=8)
        (pets / "twin").unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"image_folder\(size=0\): expected a whole number"),
        ({"size": 8, "channels": 4}, r"image_folder\(channels=4\): expected 1, 3 or None"),
        ({"size": 8, "on_error": "ignore"}, r"image_folder\(on_error='ignore'\): expected 'raise' or 'skip'"),
    ],
)
def test_bad_options_are_refused(pets, options, message):
    with pytest.raises(InputError, match=message):
        image_folder(pets, **options)


def test_no_paths_are_refused():
    with pytest.raises(InputError, match="read_images: got no files"):
        read_images([], size=8)
