"""Image files as one tensor: decoded in threads, upright, laid over white, brought to one size."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fmeta.core import InputError
from fmeta.core._checks import check_counts

OnError = Literal["raise", "skip"]
Resized = Callable[[Image.Image], Image.Image]
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_told = set[tuple[str, Path]]()
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


def read_images(
    paths: Sequence[str | Path], *, size: int, channels: int | None = None, on_error: OnError = "raise"
) -> tuple[Tensor, list[Path]]:
    """The files as uint8 `[image, channel, size, size]`, and the paths that are in it, in the order they came.

    Each image is turned as its EXIF orientation says, laid over white where it is transparent, resized (Lanczos,
    antialiased) until its shorter side is `size`, and cropped around its centre: of a picture that is not square only
    the middle stays, and one warning counts those of which less than half does. 16-bit grey becomes 8-bit by the level
    that the file has for white. Of moving pictures the first is read.

        images, files = fmeta.tasks.read_images(["a.jpg", "b.png"], size=84, channels=3)
        x = images.float() / 255                                               # as tasks hold them

    Args:
        paths: the files, in any format that Pillow reads.
        size: height and width of the result.
        channels: 3 repeats grey, 1 takes the luma of colour; None is 3 if any of the images has colour.
        on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

    Raises:
        InputError: files that do not decode (the first and their number), or none that does.
    """
    check_counts("read_images", size=size)
    return decode("read_images", paths, size, channels, on_error)


def is_image(name: str) -> bool:
    """By the file's name: one of the suffixes, and not hidden."""
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """By the name of a file or folder, on any system."""
    return name.startswith(".") or name.lower() in ("desktop.ini", "thumbs.db")


def warn_passed_over(call: str, files: Sequence[Path]) -> None:
    """Counts and names the files of a folder that are no images by their suffix, at the line two callers up."""
    if not files:
        return
    kinds = Counter(file.suffix.lower() or "without suffix" for file in files).most_common(5)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds)
    named = ", ".join(map(str, files[:3])) + (" …" if len(files) > 3 else "")
    _warn_once(
        f"{call}: passed over {len(files)} files that are no images by their suffix ({counted}): {named}; expected "
        f"{' '.join(SUFFIXES)}; convert what is an image to one of these",
        files[0],
        stacklevel=5,
    )


def _warn_once(text: str, file: Path, stacklevel: int) -> None:
    """Once in a process: a run reads its folder several times, and what it calls resets Python's own memory of it."""
    told = (text, file.resolve())
    if told not in _told:
        _told.add(told)
        warnings.warn(text, stacklevel=stacklevel)


def decode(
    call: str, paths: Sequence[str | Path], to: int | Resized, channels: int | None, on_error: OnError
) -> tuple[Tensor, list[Path]]:
    """`read_images`: the shorter side to a size, then the centre; or with another way to one common size."""
    if channels not in (None, 1, 3):
        raise InputError(f"{call}(channels={channels}): expected 1, 3 or None, which looks at the images")
    if on_error not in ("raise", "skip"):
        raise InputError(f"{call}(on_error={on_error!r}): expected 'raise' or 'skip'")
    if not paths:
        raise InputError(f"{call}: got no files; expected the paths of images")
    with ThreadPoolExecutor() as pool:
        found = list(zip(map(Path, paths), pool.map(lambda path: _read(path, to), paths), strict=True))
    kept = [(path, read) for path, read in found if isinstance(read, _Read)]
    broken = [(path, error) for path, error in found if isinstance(error, Exception)]
    if broken:
        what = f"{len(broken)} of {len(found)} images do not decode, the first {broken[0][0]}: {broken[0][1]}"
        if on_error == "raise" or not kept:
            cure = ", or pass on_error='skip'" if kept else ""
            raise InputError(f"{call}: {what}; expected whole image files; repair or remove what is broken{cure}")
        warnings.warn(f"{call}: left out: {what}", stacklevel=3)
    long = [(path, read.size) for path, read in kept if max(read.size) > 2 * min(read.size)]
    if isinstance(to, int) and long:
        path, (width, height) = long[0]
        _warn_once(
            f"{call}: of {len(long)} of {len(found)} images less than half is kept, the square in the middle; the "
            f"first is {path} of {width} by {height} pixels; crop or pad them to squares first, if the rest matters",
            path,
            stacklevel=4,
        )
    channels = channels or max(1 if read.pixels.ndim == 2 else 3 for _, read in kept)
    return torch.from_numpy(np.stack([_with(channels, read.pixels) for _, read in kept])), [path for path, _ in kept]


class _Read(NamedTuple):
    """An image of the common size."""

    pixels: np.ndarray  # [height, width] where every pixel is grey, else [height, width, 3]
    size: tuple[int, int]  # width and height before, upright


def _read(path: str | Path, to: int | Resized) -> _Read | Exception:
    """The image, or why the file does not decode."""
    try:
        with Image.open(path) as file:
            image = _eight_bit(ImageOps.exif_transpose(file), getattr(file, "tag_v2", {}))
        fitted = ImageOps.fit(image, (to, to), Image.Resampling.LANCZOS) if isinstance(to, int) else to(image)
        pixels = np.asarray(fitted)
    except Exception as error:  # damaged files make Pillow's decoders raise whatever they trip over
        return error
    grey = pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return _Read(pixels[..., 0] if grey else pixels, image.size)


def _eight_bit(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """The image as "L" or "RGB", without transparency. The tags are those of a TIFF file."""
    if image.mode.startswith("I"):
        return _deep_grey(np.asarray(image).astype(np.int64), image.info.get("transparency"), tags)
    if image.mode == "F":
        raise ValueError("floating-point grey says not what white is; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _deep_grey(levels: np.ndarray, transparent: int | None, tags: Mapping[int, Any]) -> Image.Image:
    """Grey of more than 8 bits. Pillow stretches all but TIFF's 12 bits to 16, and opens 16 as 32 in some formats."""
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    unclear = bits == 32 and 0 < levels.max() < 256  # 8 bits in 32, or the dark end of 16
    if (signed and bits == 16) or unclear or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("grey of 32 bits or with a sign says not what white is; save it with 8 or 16 bits")
    shown = levels / (4095.0 if bits == 12 else 65535.0)
    shown = 1.0 - shown if tags.get(_PHOTOMETRIC) == 0 else shown  # white is zero
    shown = shown if transparent is None else np.where(levels == transparent, 1.0, shown)
    return Image.fromarray((255.0 * shown).round().astype(np.uint8))


def _with(channels: int, pixels: np.ndarray) -> np.ndarray:
    """`[height, width]` or `[height, width, 3]` -> `[channel, height, width]`."""
    if pixels.ndim == 2:
        return pixels[None].repeat(channels, 0)
    if channels == 1:
        return np.asarray(Image.fromarray(pixels).convert("L"))[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
