"""Recipes of characters, 28x28: Omniglot, and glyphs drawn from fonts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmeta.recipes._pictures import Pictures, as_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from fmeta.tasks import ClassData, Episodes, Split


@dataclass(frozen=True, kw_only=True)
class Characters(Pictures):
    """Ink, bright on dark paper, in 0..1."""

    defaults: ClassVar[dict[str, Any]] = {
        "inner_lr": 2.0, "meta_batch": 32, "log_every": 50, "save_every": 500, "eval_steps": (0, 1, 2, 3),
    }  # fmt: skip

    def shape(self) -> tuple[int, int]:
        return 1, 28

    def from_files(self, pixels: Tensor) -> Tensor:
        """Ink is bright on dark paper; paper is what most of a picture's border shows."""
        import torch

        border = torch.cat([pixels[..., [0, -1], :].flatten(1), pixels[..., :, [0, -1]].flatten(1)], 1).float()
        bright = (border.median(1).values > 127.5)[:, None, None, None]
        return torch.where(bright, 255 - pixels, pixels).float() / 255.0

    def to_show(self, picture: Tensor) -> Tensor:
        """Dark ink on white paper."""
        return as_bytes(1.0 - picture)


@dataclass(frozen=True, kw_only=True)
class Omniglot(Characters):
    """Few-shot Omniglot by the protocol of Finn et al. 2017: 5-way 1-shot, 1,100 / 100 / 423 characters, rotations."""

    data_dir: str | None = None
    """folder with images_background and images_evaluation, as folders or zip archives; none downloads them"""
    protocol: Literal["finn", "vinyals", "lake"] = "finn"
    """split: Finn's 1,100 / 100 / 423 characters, Vinyals' rotated classes, or Lake's background and evaluation sets"""

    name: ClassVar[str] = "omniglot"
    movable: ClassVar[tuple[str, ...]] = ("data_dir",)
    defaults: ClassVar[dict[str, Any]] = Characters.defaults | {"iterations": 60_000}

    def classes(self, split: Split) -> ClassData:
        from fmeta.tasks import omniglot

        return omniglot(split, protocol=self.protocol, data_dir=self.data_dir)

    def episodes(self, data: ClassData) -> Episodes:
        from fmeta.tasks import episodes

        turned = self.protocol == "finn"
        return episodes(data, ways=self.ways, shots=self.shots, query=self.query, rotate=turned)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"split": f"{self.protocol} test"}


@dataclass(frozen=True, kw_only=True)
class Glyphs(Characters):
    """Few-shot characters that are drawn from fonts: 5-way 1-shot on scripts never seen, needs no data."""

    drawings: int = 20
    """drawings of each character"""
    width: int = 32

    name: ClassVar[str] = "glyphs"
    # a second thread gains a third and stalls where the core is shared; so short a run ends before a compiler has
    # earned its time
    defaults: ClassVar[dict[str, Any]] = Characters.defaults | {
        "iterations": 800, "meta_batch": 16, "outer_lr": 3e-3, "outer_schedule": "cosine", "threads": 1,
        "compile": "none",
    }  # fmt: skip

    def classes(self, split: Split) -> ClassData:
        from fmeta.tasks import glyphs

        return glyphs(split, drawings=self.drawings)
