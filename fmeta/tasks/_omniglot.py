"""Omniglot: 1,623 handwritten characters, 20 drawers each (Lake et al. 2015, https://doi.org/10.1126/science.aab3050)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fmeta.core import InputError, key, permutation
from fmeta.operators import cache_folder
from fmeta.tasks._cache import cached_images
from fmeta.tasks._class_data import ClassData, Split, check_split, select_classes
from fmeta.tasks._download import fetch

Protocol = Literal["finn", "vinyals", "lake"]

_ARCHIVES = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_LISTS = "https://raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot/splits/vinyals/"
_PARTS = {"images_background": 964, "images_evaluation": 659}  # characters
_CHECKSUMS = {
    "images_background.zip": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "md5:6b91aef0f799c5bb55b94e3f2daec811",
    "train.txt": "sha256:984522c194c30fb678ce53304a160a42faf5403ad4f9a67010f32dd3a35738e0",
    "val.txt": "sha256:11f99e54faee3e26f53d3231c1cceac5bf7b8730e9be31cb6dab256551dc0c1a",
    "test.txt": "sha256:845264cc5c156180828ccf17915668b17ee21424d0170df6e7d81676aa5d1204",
}
_VINYALS = {"train": ("train.txt", 4112), "validation": ("val.txt", 688), "test": ("test.txt", 1692)}
_DRAWERS, _SIZE = 20, 28
# what zipfile and Pillow raise for damaged files, an encrypted or oddly compressed entry among them
_UNREADABLE = (zipfile.BadZipFile, zlib.error, UnidentifiedImageError, EOFError, OSError, RuntimeError, SyntaxError)


def omniglot(split: Split, *, protocol: Protocol = "finn", data_dir: str | Path | None = None) -> ClassData:
    """The classes of one split, 28x28, ink 1 on paper 0, 20 examples each.

        train = fmeta.tasks.omniglot("train")                  # downloads 10 MB the first time
        sample = fmeta.tasks.episodes(train, ways=5, shots=1, query=15, rotate=True)

    Args:
        split: "train", "validation" or "test".
        protocol: "finn": all 1,623 characters shuffled, then 1,100 / 100 / 423, as Finn et al. 2017 (their shuffle
            depended on the file system; this one is fixed). Train with `episodes(rotate=True)`.
            "vinyals": the published lists of Vinyals et al. 2016 with every quarter turn a class of its own:
            4,112 / 688 / 1,692 classes.
            "lake": the 964 background characters to train, the 659 of the evaluation set to validate and test.
        data_dir: a folder that holds `images_background` and `images_evaluation`, as folders or as zip archives (and
            `splits_vinyals/*.txt` for "vinyals"). None downloads the official archives into the cache folder.

    Raises:
        InputError: missing, truncated or foreign archives or lists, and downloads that fail.
    """
    images, names = load_omniglot(data_dir)
    data = ClassData(
        images.reshape(-1, 1, _SIZE, _SIZE),
        torch.arange(len(names)) * _DRAWERS,
        torch.full((len(names),), _DRAWERS),
        torch.zeros(len(names), dtype=torch.int64),
        tuple(names),
        pictures=True,
    )
    check_split("omniglot", split)
    if protocol == "lake":
        background, evaluation = torch.arange(len(names)).split(list(_PARTS.values()))
        return select_classes(data, background if split == "train" else evaluation)
    if protocol == "finn":
        order = permutation(key(0), len(names))
        ends = {"train": (0, 1100), "validation": (1100, 1200), "test": (1200, 1623)}[split]
        return select_classes(data, order[ends[0] : ends[1]])
    if protocol == "vinyals":
        return _rotated_classes(data, split, data_dir)
    raise InputError(f"omniglot(protocol={protocol!r}): expected 'finn', 'vinyals' or 'lake'")


def load_omniglot(data_dir: str | Path | None = None) -> tuple[Tensor, list[str]]:
    """All drawings, uint8 `[1623, 20, 28, 28]`, and the characters' names `alphabet/character`, background set first.

    Decoded once (Lanczos from 105x105, inverted) and kept in the cache folder under the sources' fingerprint.
    """
    sources = [_source(part, data_dir) for part in _PARTS]
    prints = [_fingerprint(source) for source in sources]
    digest = hashlib.sha256("".join(prints).encode()).hexdigest()[:16]

    def decode() -> tuple[Tensor, list[str]]:
        decoded = [_decode(source, part) for part, source in zip(_PARTS, sources, strict=True)]
        for source, before in zip(sources, prints, strict=True):
            if _fingerprint(source) != before:
                raise InputError(f"omniglot: {source} changed while it was read; expected it at rest; load it again")
        return torch.cat([d[0] for d in decoded]), decoded[0][1] + decoded[1][1]

    return cached_images(f"omniglot-{digest}", decode)


def _source(part: str, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        return fetch(f"{_ARCHIVES}{part}.zip", _CHECKSUMS[f"{part}.zip"], cache_folder() / "omniglot")
    for found in (Path(data_dir, part), Path(data_dir, f"{part}.zip")):
        if os.path.exists(found):  # unlike Path's, False for a name that no file can have
            return found
    raise InputError(
        f"omniglot(data_dir={str(data_dir)!r}): found neither {part}/ nor {part}.zip; expected the official archives "
        "or their folders; leave data_dir out to download them"
    )


def _fingerprint(source: Path) -> str:
    try:
        if not source.is_dir():
            return hashlib.sha256(source.read_bytes()).hexdigest()
        found = ((str(p.relative_to(source)), p.stat()) for p in source.rglob("*.png"))
        files = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    except OSError as error:
        raise InputError(
            f"omniglot: cannot read {error.filename or source}: {error.strerror}; expected the official archives or "
            "their folders, at rest; load them again"
        ) from error


def _drawings(source: Path) -> Iterator[tuple[str, bytes]]:
    """Paths below the part's own folder, `alphabet/character/drawing.png`, with the files' contents."""
    if source.is_dir():
        for path in sorted(source.rglob("*.png")):
            yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for entry in sorted(n for n in archive.namelist() if n.endswith(".png")):
            yield entry.partition("/")[2], archive.read(entry)


def _decode(source: Path, part: str) -> tuple[Tensor, list[str]]:
    characters: dict[str, list[np.ndarray]] = {}
    try:
        for path, content in _drawings(source):
            image = Image.open(io.BytesIO(content)).convert("L").resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
            characters.setdefault(path.rpartition("/")[0], []).append(255 - np.asarray(image))
    except _UNREADABLE as error:
        raise InputError(
            f"omniglot: cannot read {source}: {error}; expected a whole archive of PNG drawings; download it again"
        ) from error
    odd = [name for name, drawings in characters.items() if len(drawings) != _DRAWERS or name.count("/") != 1]
    if len(characters) != _PARTS[part] or odd:
        what = f", among them {odd[0]!r} with {len(characters[odd[0]])} drawings" if odd else ""
        raise InputError(
            f"omniglot: {source} holds {len(characters)} characters{what}; expected {_PARTS[part]} as "
            f"alphabet/character with {_DRAWERS} drawings each; this is not the official {part}, or not all of it"
        )
    names = sorted(characters)
    return torch.from_numpy(np.stack([np.stack(characters[n]) for n in names])), names


def _rotated_classes(data: ClassData, split: Split, data_dir: str | Path | None) -> ClassData:
    name, expected = _VINYALS[split]
    if data_dir is None:
        path = fetch(
            f"{_LISTS}{name}", _CHECKSUMS[name], cache_folder() / "omniglot" / "splits_vinyals", progress=False
        )
    else:
        path = Path(data_dir, "splits_vinyals", name)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"does not open: {error.strerror}"
        raise InputError(
            f"omniglot(protocol='vinyals'): {path} {what}; expected the published class lists; "
            "leave data_dir out to download them"
        ) from error
    position = {n: i for i, n in enumerate(data.names)}
    pairs = [(character, turn) for character, _, turn in (line.rpartition("/rot") for line in lines)]
    strange = [f"{c}/rot{t}" for c, t in pairs if c not in position or t not in ("000", "090", "180", "270")]
    if strange or not len(pairs) == len(set(pairs)) == expected:
        what = f", one of them {strange[0]!r}" if strange else ""
        raise InputError(
            f"omniglot(protocol='vinyals'): {path} has {len(pairs)} lines{what}; "
            f"expected {expected} different lines alphabet/character/rotNNN; download it again"
        )
    chosen = select_classes(data, torch.tensor([position[c] for c, _ in pairs]))
    return chosen._replace(turns=torch.tensor([int(t) // 90 for _, t in pairs]), names=tuple(lines))
