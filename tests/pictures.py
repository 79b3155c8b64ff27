"""Folders of pictures, as a user has them."""

import numpy as np
from PIL import Image


def save_drawing(image, path, *, size=(28, 28), bright=True, colour=False):
    """A drawing as a picture on bright or dark paper."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[0].numpy()
    picture = Image.fromarray(255 - pixels if bright else pixels).resize(size, Image.Resampling.BICUBIC)
    (picture.convert("RGB") if colour else picture).save(path)


def pictures(folder, data, classes, shots, **options):
    """Class folders with so many pictures each, and two more of each class as queries."""
    for i, (position, count) in enumerate(zip(classes, shots, strict=True)):
        start = int(data.start[position])
        for j in range(count + 2):
            place = folder / "support" / f"sign {i}" if j < count else folder / "query"
            save_drawing(data.examples[start + j], place / f"sign {i} {j}.png", **options)
    return folder


def photographs(folder, names, count=6, size=12, seed=0):
    """Class folders of noisy colour pictures, each class around a colour of its own."""
    random = np.random.default_rng(seed)
    for name in names:
        tint = random.integers(40, 216, 3)
        for number in range(count):
            pixels = np.clip(tint + random.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder
