"""miniImageNet: 100 classes of 600 photographs (Vinyals et al. 2016, https://arxiv.org/abs/1606.04080)."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from fmeta.core import InputError
from fmeta.tasks._cache import cached_file
from fmeta.tasks._class_data import ClassData, Split, laid_out
from fmeta.tasks._images import decode
from fmeta.tasks._pickle import load_arrays

_PARTS = {"train": ("train", 64), "validation": ("val", 16), "test": ("test", 20)}  # name in files, classes
_IMAGES, _SIZE = 600, 84


def mini_imagenet(split: Split, *, data_dir: str | Path) -> ClassData:
    """The classes of one split of Ravi & Larochelle (2017, https://openreview.net/forum?id=rJY0-Kcll), named by their
    WordNet ids in sorted order: 64 / 16 / 20 classes of 600 images, uint8 `[3, 84, 84]`.

    There is no download, because the licence of the photographs forbids it. Photographs are squeezed to 84x84 (Lanczos)
    as the authors did. What was decoded is kept in the cache folder.

    Args:
        split: "train", "validation" or "test".
        data_dir: a folder with either of what goes around: `mini-imagenet-cache-{train,val,test}.pkl`, or the lists
            `{train,val,test}.csv` (filename,label) beside a folder `images`. Pickles are read as data: one that holds
            anything but arrays in plain containers is refused.

    Raises:
        InputError: missing, damaged or foreign files, other numbers of classes or images, and a class in two splits.
    """
    if split not in _PARTS:
        raise InputError(f"mini_imagenet(split={split!r}): expected 'train', 'validation' or 'test'")
    folder = Path(data_dir)
    names = {part: found for part in _PARTS if (found := _names(folder, part)) is not None}
    if split not in names:
        file = _PARTS[split][0]
        raise InputError(
            f"mini_imagenet({split!r}): found neither mini-imagenet-cache-{file}.pkl nor {file}.csv in {folder}; "
            "expected one of the pickles, or the lists train.csv, val.csv and test.csv beside images/; fmeta may not "
            "download the photographs: get them from where you have the right to"
        )
    for part, others in names.items():
        shared = sorted(set(names[split]) & set(others)) if part != split else []
        if shared:
            raise InputError(
                f"mini_imagenet({split!r}): class {shared[0]!r} is in {part} too, as are {len(shared)} in all; "
                "expected splits without a common class; get all files from one place"
            )
    with safe_open(_decoded(folder, split), "pt") as file:
        return laid_out(file.get_tensor("images"), [_IMAGES] * len(names[split]), names[split])


def _names(folder: Path, split: str) -> list[str] | None:
    """The classes of a split, None where its files are not there."""
    if _pickle(folder, split).exists():
        with safe_open(_decoded(folder, split), "pt") as file:
            return json.loads(file.metadata()["names"])
    return sorted(_listed(folder, split)) if _list(folder, split).exists() else None


def _pickle(folder: Path, split: str) -> Path:
    return folder / f"mini-imagenet-cache-{_PARTS[split][0]}.pkl"


def _list(folder: Path, split: str) -> Path:
    return folder / f"{_PARTS[split][0]}.csv"


def _decoded(folder: Path, split: str) -> Path:
    """The split as `images`, `[class · image, 3, 84, 84]` beside its `names`, in a file in the cache folder."""
    path = _pickle(folder, split)
    if path.exists():
        return _kept([path], "", lambda: _from_pickle(path, split))
    classes = _listed(folder, split)
    files = [folder / "images" / name for label in sorted(classes) for name in classes[label]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"mini_imagenet({split!r}): {len(missing)} of the {len(files)} images in {_list(folder, split)} are missing"
            f", the first {missing[0]}; expected them all, directly in images/"
        )

    def photographs() -> tuple[Tensor, list[str]]:
        squeezed = decode(
            "mini_imagenet", files, lambda image: image.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS), 3, "raise"
        )
        return squeezed[0], sorted(classes)

    return _kept(files, json.dumps(classes), photographs)


def _kept(sources: list[Path], more: str, read: Callable[[], tuple[Tensor, list[str]]]) -> Path:
    """The file in the cache folder with what `read` gives, read once for the sources as they are now."""
    stamps = [(str(s.resolve()), s.stat().st_size, s.stat().st_mtime_ns) for s in sources]
    digest = hashlib.sha256(json.dumps([stamps, more, _IMAGES]).encode()).hexdigest()[:16]
    return cached_file(f"mini_imagenet-{digest}", read)


def _listed(folder: Path, split: str) -> dict[str, list[str]]:
    """The files of each class in a list, sorted."""
    path = _list(folder, split)
    classes: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise InputError(
                f"mini_imagenet: {path} has the columns {rows.fieldnames}; expected filename,label in the first line; "
                "get the lists of Ravi & Larochelle"
            )
        for row in rows:
            classes.setdefault(row["label"], []).append(row["filename"])
    _check_counts(path, split, classes)
    return {label: sorted(files) for label, files in classes.items()}


def _from_pickle(path: Path, split: str) -> tuple[Tensor, list[str]]:
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
    rows = {str(name): np.asarray(found).reshape(-1) for name, found in classes.items()}
    _check_counts(path, split, {name: found.tolist() for name, found in rows.items()})
    names = sorted(rows)
    order = np.concatenate([rows[name] for name in names])
    if order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= len(images):
        raise InputError(
            f"mini_imagenet: {path} has rows {order.min()} to {order.max()} in class_dict; expected whole numbers from "
            f"0 to {len(images) - 1}, the images there are; download it again"
        )
    return torch.from_numpy(images[order].transpose(0, 3, 1, 2).copy()), names


def _check_counts(path: Path, split: str, classes: dict[str, list]) -> None:
    expected = _PARTS[split][1]
    if len(classes) != expected:
        raise InputError(
            f"mini_imagenet({split!r}): {path} has {len(classes)} classes; expected {expected}; this is another split, "
            "or not all of it"
        )
    odd = [name for name, found in classes.items() if len(found) != _IMAGES]
    if odd:
        raise InputError(
            f"mini_imagenet({split!r}): {path} has {len(classes[odd[0]])} images of class {odd[0]!r}; expected "
            f"{_IMAGES}; it is not whole"
        )
    image, times = Counter(image for images in classes.values() for image in images).most_common(1)[0]
    if times > 1:
        raise InputError(f"mini_imagenet({split!r}): {path} has image {image!r} twice; expected different ones")
