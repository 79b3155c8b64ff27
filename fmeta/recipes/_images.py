"""Recipes of photographs: a folder with a folder for each class, and mini-ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmeta.recipes._pictures import Pictures, as_bytes, unit
from fmeta.runs._options import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from fmeta.tasks import ClassData, Split


@dataclass(frozen=True, kw_only=True)
class Photographs(Pictures):
    """Pictures as they are, in 0..1."""

    network: Literal["stride", "pool", "conv2", "resnet12"] = "pool"
    width: int = 32
    query: int = 5

    defaults: ClassVar[dict[str, Any]] = {
        "learner": "protonet", "inner_lr": 0.1, "inner_steps": 5, "meta_batch": 4, "iterations": 2_000,
        "log_every": 50, "save_every": 500, "eval_tasks": 600, "eval_steps": (0, 1, 5, 10), "compile": "none",
    }  # fmt: skip

    def from_files(self, pixels: Tensor) -> Tensor:
        return unit(pixels)

    def to_show(self, picture: Tensor) -> Tensor:
        return as_bytes(picture)


@dataclass(frozen=True, kw_only=True)
class Images(Photographs):
    """Few-shot pictures of your own: any folder with a folder of pictures for each class.

    Where it holds train, val and test, each with classes of its own, these are the splits; else the classes are split
    by chance, always alike.
    """

    data: str = ""
    """folder with a folder of pictures for each class"""
    size: int = 84
    """height and width that pictures are brought to, the middle square of each"""
    colour: bool = True
    """in colour, or grey"""
    split_seed: int = 0
    """decides which classes train, validate and test, where the folder does not say"""

    name: ClassVar[str] = "images"
    movable: ClassVar[tuple[str, ...]] = ("data",)

    def shape(self) -> tuple[int, int]:
        return 3 if self.colour else 1, self.size

    def classes(self, split: Split) -> ClassData:
        from fmeta.tasks import image_splits

        if not self.data:
            raise OptionError("data", self.data, "expected a folder with a folder of pictures for each class")
        return image_splits(
            self.data, split, size=self.size, channels=self.shape()[0], seed=self.split_seed, ways=self.ways
        )

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"size": self.size}


@dataclass(frozen=True, kw_only=True)
class MiniImagenet(Photographs):
    """Few-shot mini-ImageNet by the split of Ravi & Larochelle 2017: 64 / 16 / 20 classes of 600 photographs."""

    data_dir: str = ""
    """folder with mini-imagenet-cache-*.pkl, or train.csv, val.csv and test.csv beside images/"""
    whole: bool = True
    """expect all classes and photographs; without it any numbers are taken"""

    name: ClassVar[str] = "mini_imagenet"
    movable: ClassVar[tuple[str, ...]] = ("data_dir",)
    defaults: ClassVar[dict[str, Any]] = Photographs.defaults | {"iterations": 60_000}

    def shape(self) -> tuple[int, int]:
        return 3, 84

    def classes(self, split: Split) -> ClassData:
        from fmeta.tasks import mini_imagenet

        if not self.data_dir:
            raise OptionError(
                "data_dir", self.data_dir, "expected the folder of mini-ImageNet, which fmeta may not download"
            )
        return mini_imagenet(split, data_dir=self.data_dir, whole=self.whole)
