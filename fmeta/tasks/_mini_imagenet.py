"""miniImageNet: 100 classes of 600 photographs (Vinyals et al. 2016, https://arxiv.org/abs/1606.04080)."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmeta.core import InputError
from fmeta.tasks._cache import Named, cached_images, cached_names
from fmeta.tasks._class_data import ClassData, Split, check_split, laid_out
from fmeta.tasks._images import decode
from fmeta.tasks._pickle import load_arrays

_PARTS: dict[Split, tuple[str, int]] = {  # name in files, classes
    "train": ("train", 64),
    "validation": ("val", 16),
    "test": ("test", 20),
}
_IMAGES, _SIZE = 600, 84


def mini_imagenet(split: Split, *, data_dir: str | Path, whole: bool = True) -> ClassData:
    """The classes of one split of Ravi & Larochelle (2017, https://openreview.net/forum?id=rJY0-Kcll), named by their
    WordNet ids in sorted order: 64 / 16 / 20 classes of 600 images, uint8 `[3, 84, 84]`.

        train = fmeta.tasks.mini_imagenet("train", data_dir="mini-imagenet")   # train.csv, val.csv, test.csv, images/
        sample = fmeta.tasks.episodes(train, ways=5, shots=1, query=15)

    There is no download, because the licence of the photographs forbids it. Photographs are squeezed to 84x84 (Lanczos)
    as the authors did. What was decoded is kept in the cache folder.

    Args:
        split: "train", "validation" or "test".
        data_dir: a folder with either of what goes around: `mini-imagenet-cache-{train,val,test}.pkl`, or the lists
            `{train,val,test}.csv` (filename,label) beside a folder `images`. Pickles are read as data: one that holds
            anything but arrays in plain containers is refused.
        whole: refuse other numbers of classes or images than the published ones. False takes any: part of the data, to
            try something out, or other data in the same files.

    Raises:
        InputError: missing, damaged or foreign files, files that change while they are read, other numbers of classes
            or images where `whole`, an image listed twice, and a class in two splits.
    """
    check_split("mini_imagenet", split)
    found = {part: source for part in _PARTS if (source := _source(Path(data_dir), part, whole)) is not None}
    if split not in found:
        file = _PARTS[split][0]
        raise InputError(
            f"mini_imagenet({split!r}): found neither mini-imagenet-cache-{file}.pkl nor {file}.csv in {data_dir}; "
            "expected one of the pickles, or the lists train.csv, val.csv and test.csv beside images/; fmeta may not "
            "download the photographs: get them from where you have the right to"
        )
    images, labels = found[split].images()
    classes = Counter(labels)  # in the order of the rows
    for part, source in found.items():
        shared = sorted(classes.keys() & set(source.labels())) if part != split else []
        if shared:
            raise InputError(
                f"mini_imagenet({split!r}): class {shared[0]!r} is in {part} too, as are {len(shared)} in all; "
                "expected splits without a common class; get all files from one place"
            )
    return laid_out(images, list(classes.values()), list(classes), pictures=True)


def _source(folder: Path, split: Split, whole: bool) -> _Pickle | _List | None:
    """Where a split comes from, None where its files are not there."""
    name = _PARTS[split][0]
    for kind, file in ((_Pickle, f"mini-imagenet-cache-{name}.pkl"), (_List, f"{name}.csv")):
        if os.path.exists(folder / file):  # unlike Path's, False for a name that no file can have
            return kind(folder / file, split, whole)
    return None


@dataclass(frozen=True)
class _Pickle:
    """A split in one file of arrays."""

    path: Path
    split: Split
    whole: bool

    def labels(self) -> list[str]:
        """The class of each image, class after class."""
        return self._checked(cached_names(self._name(), self._read))

    def images(self) -> Named:
        """The images `[image, 3, 84, 84]`, and their labels."""
        images, labels = cached_images(self._name(), self._read)
        return images, self._checked(labels)

    def _name(self) -> str:
        return _cache_name([self.path])

    def _read(self) -> Named:
        return _at_rest([self.path], lambda: _from_pickle(self.path, self.split))

    def _checked(self, labels: list[str]) -> list[str]:
        _check_counts(self.path, self.split, Counter(labels), self.whole)
        return labels


class _List:
    """A split as a list of photographs, which is read once."""

    def __init__(self, path: Path, split: Split, whole: bool) -> None:
        self.path, self.split = path, split
        classes = _listed(path)
        _check_counts(path, split, {label: len(files) for label, files in classes.items()}, whole)
        _check_once(path, split, (file for files in classes.values() for file in files))
        self._rows = [(label, file) for label in sorted(classes) for file in sorted(classes[label])]

    def labels(self) -> list[str]:
        """The class of each image, class after class."""
        return [label for label, _ in self._rows]

    def images(self) -> Named:
        """The images `[image, 3, 84, 84]`, and their labels."""
        files = [self.path.parent / "images" / file for _, file in self._rows]
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise InputError(
                f"mini_imagenet({self.split!r}): {len(missing)} of the {len(files)} images in {self.path} are missing, "
                f"the first {missing[0]}; expected them all, directly in images/"
            )

        def photographs() -> Named:
            squeezed = decode(
                "mini_imagenet", files, lambda image: image.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS), 3, "raise"
            )
            return squeezed[0], self.labels()

        return cached_images(_cache_name(files, self._rows), lambda: _at_rest(files, photographs))


def _cache_name(sources: Sequence[Path], rows: Sequence[tuple[str, str]] = ()) -> str:
    """A name for what is read from these files as they are now."""
    stamps = [(str(source.resolve()), *_stamp(source)) for source in sources]
    digest = hashlib.sha256(json.dumps(["a label for each image", stamps, rows]).encode()).hexdigest()[:16]
    return f"mini_imagenet-{digest}"


def _at_rest(sources: Sequence[Path], read: Callable[[], Named]) -> Named:
    """What `read` gives, from files that do not change meanwhile: the cache would keep a mixture for ever."""
    before = [_stamp(source) for source in sources]
    found = read()
    for source, stamp in zip(sources, before, strict=True):
        if _stamp(source) != stamp:
            raise InputError(f"mini_imagenet: {source} changed while it was read; expected it at rest; load it again")
    return found


def _stamp(source: Path) -> tuple[int, int]:
    try:
        stat = source.stat()
    except OSError as error:
        raise InputError(f"mini_imagenet: cannot read {source}: {error.strerror}; expected it to stay") from error
    return stat.st_size, stat.st_mtime_ns


def _listed(path: Path) -> dict[str, list[str]]:
    """The files of each class in a list."""
    classes: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.DictReader(file)
            if not {"filename", "label"} <= set(rows.fieldnames or ()):
                raise InputError(
                    f"mini_imagenet: {path} has the columns {rows.fieldnames}; expected filename,label in the first "
                    "line; get the lists of Ravi & Larochelle"
                )
            for row in rows:
                if not (row["filename"] and row["label"]):
                    raise InputError(
                        f"mini_imagenet: {path} has no {'label' if row['filename'] else 'filename'} in line "
                        f"{rows.line_num}; expected filename,label in every line; get the lists of Ravi & Larochelle"
                    )
                classes.setdefault(row["label"], []).append(row["filename"])
    except (OSError, csv.Error) as error:
        raise InputError(f"mini_imagenet: cannot read {path}: {error}; expected a list filename,label") from error
    return classes


def _from_pickle(path: Path, split: Split) -> tuple[Tensor, list[str]]:
    content = load_arrays("mini_imagenet", path)
    images, classes = (
        content.get(name) if isinstance(content, dict) else None for name in ("image_data", "class_dict")
    )
    shape = (_SIZE, _SIZE, 3)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != shape:
        came = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else "no array"
        raise InputError(f"mini_imagenet: {path} has {came} as image_data; expected uint8 [image, 84, 84, 3]")
    if not isinstance(classes, dict):
        raise InputError(f"mini_imagenet: {path} has no class_dict; expected the rows of each class by its name")
    names = sorted(map(str, classes))
    rows = {str(name): _rows(path, str(name), found, len(images)) for name, found in classes.items()}
    _check_once(path, split, (row for name in names for row in rows[name].tolist()))
    order = np.concatenate([np.zeros(0, np.int64), *(rows[name] for name in names)])
    labels = [name for name in names for _ in rows[name]]
    return torch.from_numpy(images[order].transpose(0, 3, 1, 2).copy()), labels


def _rows(path: Path, name: str, found: Any, count: int) -> np.ndarray:
    """The rows of one class, as whole numbers `[image]`."""
    try:
        rows = np.asarray(found).reshape(-1)
    except ValueError:  # nested lists of unequal length
        rows = np.zeros(0)
    if not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count:
        came = f"rows {rows.min()} to {rows.max()}" if len(rows) and rows.dtype.kind in "iuf" else "no rows"
        raise InputError(
            f"mini_imagenet: {path} has {came} in class_dict for class {name!r}; expected whole numbers from 0 to "
            f"{count - 1}, the images there are; download it again"
        )
    return rows.astype(np.int64)


def _check_counts(path: Path, split: Split, images: dict[str, int], whole: bool) -> None:
    """The published numbers, or at least one class and no class without an image."""
    classes = _PARTS[split][1]
    if whole and len(images) != classes:
        raise InputError(
            f"mini_imagenet({split!r}): {path} has {len(images)} classes; expected {classes}; this is another split, "
            "or not all of it; to take it as it is pass whole=False (--no-whole)"
        )
    odd = [name for name, count in images.items() if count != _IMAGES]
    if whole and odd:
        raise InputError(
            f"mini_imagenet({split!r}): {path} has {images[odd[0]]} images of class {odd[0]!r}; expected {_IMAGES}; it "
            "is not whole; to take it as it is pass whole=False (--no-whole)"
        )
    if not images:
        raise InputError(f"mini_imagenet({split!r}): {path} has no images; expected at least one class")


def _check_once(path: Path, split: Split, images: Iterable[int | str]) -> None:
    image, times = next(iter(Counter(images).most_common(1)), (None, 0))
    if times > 1:
        raise InputError(f"mini_imagenet({split!r}): {path} has image {image!r} twice; expected different ones")
