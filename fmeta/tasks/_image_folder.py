"""Classes from a folder of folders of images, with splits or without."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fmeta.core import InputError
from fmeta.core._checks import check_counts
from fmeta.tasks._class_data import ClassData, Split, check_split, class_data, laid_out
from fmeta.tasks._images import SUFFIXES, OnError, decode, is_hidden, is_image, warn_passed_over
from fmeta.tasks._splits import SHARES, cut

_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_Classes = dict[str, list[Path]]  # the files of each class, by its path below the folder


def image_folder(path: str | Path, *, size: int, channels: int | None = None, on_error: OnError = "raise") -> ClassData:
    """Every folder below `path` that holds images is a class, named by its relative path, `family/class`.

        data = fmeta.tasks.image_folder("pictures", size=84, channels=3)       # pictures/cat/1.jpg …
        print(data.names, data.size)

    Images become uint8 `[channel, size, size]` as `read_images` says, the middle square of each; classes and images are
    in sorted order. Files count as images by their suffix: all others (HEIC, say) are passed over with one warning that
    counts them, and whatever is hidden without a word. One class alone loads, but makes no episodes. `image_splits`
    cuts the classes into those for training, validation and test.

    Args:
        path: the folder of class folders.
        size: height and width of the examples.
        channels: 1 or 3; None is 3 if any image has colour. Say it where several folders must go together.
        on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

    Raises:
        InputError: no class folders, images outside of them, a folder without images, one with the splits inside,
            names that differ by case or accents' encoding only, a folder found twice by links, images that do not
            decode or are gone before they are read. Each names the first folder or file.
    """
    check_counts("image_folder", size=size)
    call = f"image_folder({str(path)!r})"
    classes = _classes(call, path)
    if all(_split_of(name) for name in classes):
        first = next(iter(classes)).partition("/")[0]
        raise InputError(
            f"{call}: holds splits, such as {first}/, each with classes of its own; expected the classes; load them "
            f"with image_splits, or one by one, as {str(Path(path) / first)!r}"
        )
    return _by_class(call, classes, *decode("image_folder", _files(classes), size, channels, on_error))


def image_splits(
    path: str | Path,
    split: Split,
    *,
    size: int,
    channels: int | None = None,
    shares: Sequence[float] = SHARES,
    ways: int = 1,
    seed: int = 0,
    on_error: OnError = "raise",
) -> ClassData:
    """The classes of one split of a folder of images.

        train = fmeta.tasks.image_splits("pictures", "train", size=84, channels=3)
        test = fmeta.tasks.image_splits("pictures", "test", size=84, channels=3)

    Where the folder holds `train`, `val` (`valid`, `validation`) and `test`, each with class folders of its own, they
    are the splits, and classes are named by their path below them. Any other folder is read as `image_folder` does, and
    its classes are cut as `split_classes` does.

    Args:
        path: the folder of class folders, or of the three splits.
        split: "train", "validation" or "test".
        size: height and width of the examples.
        channels: 1 or 3; None is 3 if any image of any split has colour, for which all must be read.
        shares: of the classes, for the three splits in this order, where the folder has none.
        ways: the least number of classes of each split.
        seed: decides which class goes where, where the folder has no splits.
        on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

    Raises:
        InputError: what `image_folder` and `split_classes` refuse; a split that is missing or has too few classes,
            classes beside the splits, and a class in two of them.
    """
    check_counts("image_splits", size=size, ways=ways)
    check_split("image_splits", split)
    call = f"image_splits({str(path)!r})"
    classes = _classes(call, path)
    if any(_split_of(name) for name in classes):
        names = _names_of_split(call, classes, split, ways)
    else:
        all_names = list(classes)
        names = {all_names[i]: all_names[i] for i in cut("image_splits", len(all_names), shares, ways, seed)[split]}
    read = classes if channels is None else {name: classes[name] for name in names}
    data = _by_class(call, read, *decode("image_splits", _files(read), size, channels, on_error))
    rows = dict(zip(data.names, data.examples.split(data.size.tolist()), strict=True))
    return class_data({shown: rows[name] for name, shown in names.items()}, pictures=True)


def _files(classes: _Classes) -> list[Path]:
    return [file for images in classes.values() for file in images]


def _by_class(call: str, classes: _Classes, examples: Tensor, kept: Sequence[Path]) -> ClassData:
    """`ClassData` from the images of all files that decode, in the order of the classes."""
    owner = {file: name for name, images in classes.items() for file in images}
    counts = Counter(owner[file] for file in kept)
    gone = [name for name in classes if not counts[name]]
    if gone:
        raise InputError(f"{call}: no image of class {gone[0]!r} decodes; repair the images or remove the class")
    return laid_out(examples, [counts[name] for name in classes], list(classes), pictures=True)


def _classes(call: str, path: str | Path) -> _Classes:
    """The classes in sorted order, whose names must not look alike."""
    if not os.path.isdir(path):  # unlike Path's, False for a name that no folder can have
        raise InputError(f"{call}: not a folder; expected one with a folder of images per class")
    walked = list(_walked(call, Path(path)))
    warn_passed_over(call, [file for _, _, others in walked for file in others])
    found = sorted((name, images) for name, images, _ in walked if images)
    _check_alike(call, [name for name, _ in found])
    return dict(found)


def _walked(call: str, root: Path) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """The names of the root and the folders below it, their images, and the files that are none."""
    seen: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        raise InputError(f"{call}: cannot read {error.filename}: {error.strerror}; make it readable") from error

    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images, others = (
            [Path(place, f) for f in sorted(files) if not is_hidden(f) and is_image(f) == wanted]
            for wanted in (True, False)
        )
        first = seen.setdefault(os.path.realpath(place), place)
        if first != place:
            raise InputError(
                f"{call}: {first} and {place} are one folder, by a link; its images would count twice; remove the link"
            )
        if images and place == str(root):
            raise InputError(
                f"{call}: {images[0].name} is in no class folder; expected a folder of images per class; move it into "
                "one"
            )
        yield _readable(Path(place).relative_to(root)), images, others
        if not images and not folders:
            what = "has no folders" if place == str(root) else f"{place} holds no images"
            what += f", but {others[0].name}" if others else ""
            raise InputError(
                f"{call}: {what}; expected a folder of images per class, with one of the suffixes "
                f"{' '.join(SUFFIXES)}; fill it or remove it"
            )


def _readable(path: Path) -> str:
    """A path as text that can be written as UTF-8, whatever bytes the file system has for it."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


def _split_of(name: str) -> Split | None:
    """The split whose folder a class is in."""
    folder, inside, _ = name.partition("/")
    return _SPLITS.get(folder.lower()) if inside else None


def _names_of_split(call: str, classes: _Classes, split: Split, ways: int) -> dict[str, str]:
    """The classes in the folder of a split: their paths, and those below that folder."""
    folders: dict[Split, str] = {}
    below: dict[Split, dict[str, str]] = {}
    for name in classes:
        folder, _, rest = name.partition("/")
        which = _split_of(name)
        if which is None:
            beside = next(n for n in classes if _split_of(n))
            raise InputError(
                f"{call}: holds the split {beside.partition('/')[0]}/ and, beside it, the class {name!r}; expected "
                "train/, validation/ and test/ alone, or classes alone; move it into a split, or rename the folder"
            )
        if folders.setdefault(which, folder) != folder:
            raise InputError(
                f"{call}: {folders[which]}/ and {folder}/ are both for {which}; expected one folder; merge them"
            )
        below.setdefault(which, {})[name] = rest
    where: dict[str, Split] = {}
    for which, names in below.items():
        for name in names.values():
            other = where.setdefault(_plain(name), which)
            if other != which:
                raise InputError(
                    f"{call}: class {name!r} is in {folders[other]}/ and in {folders[which]}/; expected others in each "
                    "split, because tasks are tested on classes never seen; put all class folders into one folder, to "
                    "be cut by shares"
                )
    if split not in below:
        raise InputError(
            f"{call}: holds {', '.join(f'{folder}/' for folder in folders.values())} but no {split}/; expected train/, "
            "validation/ (or val/, valid/) and test/, each with class folders; add it, or put all class folders into "
            "one folder, to be cut by shares"
        )
    if len(below[split]) < ways:
        raise InputError(
            f"{call}: {folders[split]}/ has {len(below[split])} classes; expected at least ways = {ways}; add some, or "
            "ask for fewer ways"
        )
    return below[split]


def _check_alike(call: str, names: Sequence[str]) -> None:
    alike: dict[str, str] = {}
    for name in names:
        if _plain(name) in alike:
            raise InputError(
                f"{call}: classes {alike[_plain(name)]!r} and {name!r} differ only by case or encoding; expected "
                "different names; merge the folders or rename one"
            )
        alike[_plain(name)] = name


def _plain(name: str) -> str:
    """What two copies of a folder have in common: Windows and macOS know no case, macOS splits off accents."""
    return unicodedata.normalize("NFC", name).casefold()
