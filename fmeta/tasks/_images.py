"""Image files as one tensor: decoded in threads, upright, laid over white, brought to one size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fmeta.core import InputError
from fmeta.core._checks import check_counts

OnError = Literal["raise", "skip"]
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def read_images(
    paths: Sequence[str | Path], *, size: int, channels: int | None = None, on_error: OnError = "raise"
) -> tuple[Tensor, list[Path]]:
    """The files as uint8 `[image, channel, size, size]`, and the paths that are in it, in the order they came.

    Each image is turned as its EXIF orientation says, laid over white where it is transparent, resized (Lanczos,
    antialiased) until its shorter side is `size`, and cropped around its centre. 16-bit grey becomes 8-bit. Of
    moving pictures the first is read.

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
    return decode("read_images", paths, square(size), channels, on_error)


def is_image(name: str) -> bool:
    """By the file's name: one of the suffixes, and not hidden."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def square(size: int) -> Callable[[Image.Image], Image.Image]:
    """Shorter side to `size`, then the centre."""
    return lambda image: ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def decode(
    call: str,
    paths: Sequence[str | Path],
    resized: Callable[[Image.Image], Image.Image],
    channels: int | None,
    on_error: OnError,
) -> tuple[Tensor, list[Path]]:
    """`read_images`, with another way to bring an image to the common size."""
    if channels not in (None, 1, 3):
        raise InputError(f"{call}(channels={channels}): expected 1, 3 or None, which looks at the images")
    if on_error not in ("raise", "skip"):
        raise InputError(f"{call}(on_error={on_error!r}): expected 'raise' or 'skip'")
    if not paths:
        raise InputError(f"{call}: got no files; expected the paths of images")
    with ThreadPoolExecutor() as pool:
        found = list(zip(map(Path, paths), pool.map(lambda path: _pixels(path, resized), paths), strict=True))
    kept = [(path, pixels) for path, pixels in found if isinstance(pixels, np.ndarray)]
    broken = [(path, error) for path, error in found if isinstance(error, Exception)]
    if broken:
        what = f"{len(broken)} of {len(found)} images do not decode, the first {broken[0][0]}: {broken[0][1]}"
        if on_error == "raise" or not kept:
            cure = ", or pass on_error='skip'" if kept else ""
            raise InputError(f"{call}: {what}; expected whole image files; repair or remove what is broken{cure}")
        warnings.warn(f"{call}: left out: {what}", stacklevel=3)
    channels = channels or max(1 if pixels.ndim == 2 else 3 for _, pixels in kept)
    return torch.from_numpy(np.stack([_with(channels, pixels) for _, pixels in kept])), [path for path, _ in kept]


def _pixels(path: str | Path, resized: Callable[[Image.Image], Image.Image]) -> np.ndarray | Exception:
    """`[height, width]` where every pixel is grey, else `[height, width, 3]`; or why the file does not decode."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(resized(_eight_bit(ImageOps.exif_transpose(image))))
    except Exception as error:  # damaged files make Pillow's decoders raise whatever they trip over
        return error
    return pixels[..., 0] if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image as "L" or "RGB", without transparency."""
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("32-bit grey says not what white is; save it with 8 or 16 bits")
        return Image.fromarray((levels / 257.0).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point grey says not what white is; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _with(channels: int, pixels: np.ndarray) -> np.ndarray:
    """`[height, width]` or `[height, width, 3]` -> `[channel, height, width]`."""
    if pixels.ndim == 2:
        return pixels[None].repeat(channels, 0)
    if channels == 1:
        return np.asarray(Image.fromarray(pixels).convert("L"))[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
