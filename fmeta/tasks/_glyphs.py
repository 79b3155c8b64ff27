"""Glyphs: characters of many scripts, drawn from the fonts that matplotlib ships. Needs no download."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fmeta.core import InputError, fold, key, uniform
from fmeta.core._checks import check_counts
from fmeta.tasks._cache import cached_images
from fmeta.tasks._class_data import ClassData, Split, check_split, class_data

# Unicode blocks. Where two scripts share a shape, the one listed first has it.
_SCRIPTS: dict[Split, dict[str, range]] = {
    "test": {
        "Armenian": range(0x0530, 0x0590),
        "Arabic": range(0x0600, 0x0700),
        "Lao": range(0x0E80, 0x0F00),
        "Tifinagh": range(0x2D30, 0x2D80),
        "Braille": range(0x2800, 0x2840),
    },
    "validation": {
        "Georgian": range(0x10A0, 0x1100),
        "Hebrew": range(0x0590, 0x0600),
        "N'Ko": range(0x07C0, 0x0800),
        "Ogham": range(0x1680, 0x16A0),
        "Old Italic": range(0x10300, 0x10330),
    },
    "train": {
        "Latin": range(0x0041, 0x02B0),
        "Greek": range(0x0370, 0x0400),
        "Cyrillic": range(0x0400, 0x0530),
        "Canadian syllabics": range(0x1400, 0x1680),
        "Mathematical operators": range(0x2200, 0x2300),
    },
}
_LETTERS = {"Lu", "Ll", "Lo"}
_SYMBOLS = {"Braille": "So", "Mathematical operators": "Sm"}
_EXCHANGED = {"⋒", "⋓"}  # STIX draws each as DejaVu draws the other
_PLAIN = "DejaVuSans"  # has all of these scripts
_FACES = (
    _PLAIN, "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
_ALIKE = 0.9  # correlation
_SIZE, _FINE = 28, 3  # pixels of a drawing, and how much finer it is drawn at first
_EM = 72  # pixels, of the finer drawing


class _Face(NamedTuple):
    font: ImageFont.FreeTypeFont
    characters: frozenset[str]


class _Jitter(NamedTuple):
    """What makes a drawing differ from the plain one: each in -1..1, where 0 is plain."""

    turn: float = 0.0
    shear: float = 0.0
    aspect: float = 0.0
    extent: float = 0.0
    right: float = 0.0
    down: float = 0.0
    weight: float = 0.0


def glyphs(split: Split, *, drawings: int = 20, seed: int = 0) -> ClassData:
    """Characters of one split, uint8 `[row, 1, 28, 28]`, ink 255 on paper 0. About 715 / 145 / 250 classes.

        train = fmeta.tasks.glyphs("train")                    # draws them the first time, in about a minute
        sample = fmeta.tasks.episodes(train, ways=5, shots=1, query=15)

    No script is in two splits. Train: Latin, Greek, Cyrillic, Canadian syllabics, mathematical operators. Validation:
    Georgian, Hebrew, N'Ko, Ogham, Old Italic. Test: Armenian, Arabic, Lao, Tifinagh, Braille. A class is named
    `script/character`.

    Each drawing takes one of the faces of DejaVu and STIX (16 in all) that have the character, thickens its strokes by
    up to 3% of the em on each side, stretches, shears and turns it by up to 12 degrees, scales it to 17 to 24 pixels,
    and moves it as far as nothing is cut.

    Left out are characters that Unicode decomposes (accents, ligatures, styled forms), and those that look like one
    before them, in the order test, validation, train, then by code point: their plain drawings in DejaVu Sans, centred,
    scaled to one size and averaged over 3x3 pixels, correlate by more than 0.9. So a letter that is another one's
    scaled copy, or is shared by scripts, is there once. In other faces two letters may come closer.

    The drawings are made once and kept in the cache folder, under a fingerprint of the fonts, of the versions of Pillow
    and FreeType, and of the arguments. Fewer drawings are the first ones of more.

    Args:
        split: "train", "validation" or "test".
        drawings: of each character.
        seed: decides faces and distortions, not the characters.

    Raises:
        InputError: unknown split, fewer than one drawing, or fonts that are missing from matplotlib.
    """
    check_split("glyphs", split)
    check_counts("glyphs", drawings=drawings)
    files = _files()
    images, names = cached_images(
        f"glyphs-{_fingerprint(files, drawings, seed)}", lambda: _draw_all(_faces(files), drawings, seed)
    )
    chosen = [i for i, name in enumerate(names) if name.rpartition("/")[0] in _SCRIPTS[split]]
    return class_data({names[i]: images[i, :, None] for i in chosen}, pictures=True)


def _files() -> list[Path]:
    import matplotlib  # slow to import, and `import fmeta` does without

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = [folder / f"{face}.ttf" for face in _FACES]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(
            f"glyphs: {missing[0]} is not in {folder}; expected the fonts that matplotlib ships; reinstall matplotlib"
        )
    return files


def _fingerprint(files: Sequence[Path], drawings: int, seed: int) -> str:
    versions = (PIL.__version__, features.version("freetype2"), unicodedata.unidata_version)
    digest = hashlib.sha256(repr((drawings, seed, versions)).encode())
    for file in (*files, Path(__file__)):  # this file holds all other settings
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _faces(files: Sequence[Path]) -> dict[str, _Face]:
    from matplotlib.ft2font import FT2Font  # Pillow cannot tell which characters a font has

    # the basic layout does not depend on whether Raqm is installed
    return {
        file.stem: _Face(
            ImageFont.truetype(file, _EM, layout_engine=ImageFont.Layout.BASIC),
            frozenset(map(chr, FT2Font(str(file)).get_charmap())),
        )
        for file in files
    }


def _draw_all(faces: dict[str, _Face], drawings: int, seed: int) -> tuple[Tensor, list[str]]:
    """All drawings, `[character, drawing, 28, 28]`, and the characters' names."""
    names = _distinct(faces[_PLAIN])
    images = []
    for name in names:
        character = name[-1]
        fonts = [face.font for face in faces.values() if character in face.characters]
        numbers = uniform(fold(key(seed), ord(character)), (drawings, 8), -1.0, 1.0, torch.float64).tolist()
        for which, *jitter in numbers:
            images.append(_draw(fonts[int((which + 1) / 2 * len(fonts))], character, _Jitter(*jitter)))
    return torch.from_numpy(np.stack(images)).reshape(len(names), drawings, _SIZE, _SIZE), names


def _distinct(plain: _Face) -> list[str]:
    """`script/character` of the characters that look like none before them."""
    names = [
        f"{script}/{character}"
        for scripts in _SCRIPTS.values()
        for script, block in scripts.items()
        for character in map(chr, block)
        if character in plain.characters
        and character not in _EXCHANGED
        and unicodedata.category(character) in _LETTERS | {_SYMBOLS.get(script)}
        and not unicodedata.decomposition(character)
        and plain.font.getmask(character).getbbox()  # has ink
    ]
    drawn = torch.from_numpy(np.stack([_draw(plain.font, name[-1], _Jitter()) for name in names]))
    alike = torch.corrcoef(avg_pool2d(drawn.to(torch.float64), 3, 1).flatten(1)) > _ALIKE
    kept: list[int] = []
    for i, others in enumerate(alike):
        if not others[kept].any():
            kept.append(i)
    return [names[i] for i in kept]


def _draw(font: ImageFont.FreeTypeFont, character: str, jitter: _Jitter) -> np.ndarray:
    """One drawing, `[28, 28]`."""
    ink = _ink(font, character, int(1.5 + 1.5 * jitter.weight))
    angle, stretch = math.radians(12.0 * jitter.turn), math.exp(0.15 * jitter.aspect)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    there = rotation @ np.array([[1.0, 0.2 * jitter.shear], [0.0, 1.0]]) @ np.diag([stretch, 1.0 / stretch])
    extent = 20.5 + 3.5 * jitter.extent
    there *= _FINE * extent / (np.abs(there) @ ink.size).max()  # the box around the turned ink has this extent
    room = (_SIZE - 2 - extent) / 2  # leaves a pixel's margin
    centre = _FINE * (_SIZE / 2 + room * np.array([jitter.right, jitter.down]))
    back = np.linalg.inv(there)
    start = np.array(ink.size) / 2 - back @ centre
    placing = (*back[0], start[0], *back[1], start[1])
    fine = ink.transform((_FINE * _SIZE,) * 2, Image.Transform.AFFINE, placing, Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(_FINE))


def _ink(font: ImageFont.FreeTypeFont, character: str, thicker: int) -> Image.Image:
    """The character, its strokes wider by `thicker` pixels on each side, in an image without margins."""
    left, top, right, bottom = font.getbbox(character, stroke_width=thicker)
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font, stroke_width=thicker)
    return image.crop(image.getbbox())
