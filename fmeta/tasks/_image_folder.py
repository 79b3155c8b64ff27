"""Classes from a folder of folders of images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from fmeta.core import InputError
from fmeta.core._checks import check_counts
from fmeta.tasks._class_data import ClassData, laid_out
from fmeta.tasks._images import SUFFIXES, OnError, decode, is_image, square

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def image_folder(path: str | Path, *, size: int, channels: int | None = None, on_error: OnError = "raise") -> ClassData:
    """Every folder below `path` that holds images is a class, named by its relative path, `family/class`.

    Images become uint8 `[channel, size, size]` as `read_images` says; classes and images are in sorted order. Files
    count as images by their suffix; all else, and whatever is hidden, is passed over. One class alone loads, but makes
    1-way episodes only.

    Args:
        path: the folder of class folders.
        size: height and width of the examples.
        channels: 1 or 3; None is 3 if any image has colour. Say it where several folders must go together.
        on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

    Raises:
        InputError: no class folders, images outside of them, a folder without images, one with the splits inside,
            names that differ by case or accents' encoding only, a folder found twice by links, images that do not
            decode. Each names the first folder or file.
    """
    check_counts("image_folder", size=size)
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"image_folder({str(path)!r}): not a folder; expected one with a folder of images per class")
    classes = dict(sorted(_classes(root)))
    _check_names(root, list(classes))
    files = [file for images in classes.values() for file in images]
    examples, kept = decode("image_folder", files, square(size), channels, on_error)
    counts = {folder: len(list(images)) for folder, images in groupby(kept, key=lambda file: file.parent)}
    gone = [name for name in classes if root / name not in counts]
    if gone:
        raise InputError(
            f"image_folder({str(path)!r}): no image of class {gone[0]!r} decodes; repair the images or remove the class"
        )
    return laid_out(examples, [counts[root / name] for name in classes], list(classes))


def _classes(root: Path) -> Iterator[tuple[str, list[Path]]]:
    """The names and images of the folders below the root that hold images."""
    seen: dict[str, str] = {}
    for place, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images = sorted(f for f in files if is_image(f))
        first = seen.setdefault(os.path.realpath(place), place)
        if first != place:
            raise InputError(
                f"image_folder({str(root)!r}): {first} and {place} are one folder, by a link; its images would count "
                "twice; remove the link"
            )
        if images and place == str(root):
            raise InputError(
                f"image_folder({str(root)!r}): {images[0]} is in no class folder; expected a folder of images per "
                "class; move it into one"
            )
        if images:
            yield Path(place).relative_to(root).as_posix(), [Path(place, f) for f in images]
        elif not folders:
            what = "has no folders" if place == str(root) else f"{place} holds no images"
            raise InputError(
                f"image_folder({str(root)!r}): {what}; expected a folder of images per class, with one of the suffixes "
                f"{' '.join(SUFFIXES)}; fill it or remove it"
            )


def _check_names(root: Path, names: list[str]) -> None:
    if all("/" in name and name.partition("/")[0].lower() in _SPLITS for name in names):
        first = names[0].partition("/")[0]
        raise InputError(
            f"image_folder({str(root)!r}): holds splits, such as {first}/, each with classes of its own; expected the "
            f"classes; load them one by one, as {str(root / first)!r}"
        )
    alike: dict[str, str] = {}
    for name in names:
        # the same folder copied through another system: Windows and macOS know no case, macOS splits off accents
        other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise InputError(
                f"image_folder({str(root)!r}): classes {other!r} and {name!r} differ only by case or encoding; "
                "expected different names; merge the folders or rename one"
            )


def _refuse(error: OSError) -> None:
    raise InputError(f"image_folder: cannot read {error.filename}: {error.strerror}; make it readable") from error
