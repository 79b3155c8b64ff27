"""What the recipes that classify pictures share: networks, episodes, one's own files, and what the report shows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmeta._errors import InputError
from fmeta.runs._options import OptionError
from fmeta.runs._recipe import ACCURACY, Answered, Metric, Offer, OnError, Queries, Recipe, Support

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fmeta.core import Model
    from fmeta.runs._shown import Episode
    from fmeta.tasks import ClassData, Episodes, Sampler, Split


@dataclass(frozen=True, kw_only=True)
class Pictures(Recipe):
    """The choices of every recipe that classifies pictures."""

    ways: int = 5
    """classes of a task"""
    shots: int = 1
    """support examples of a class in a task"""
    query: int = 1
    """query examples of a class in a task"""
    network: Literal["stride", "pool", "conv2", "resnet12"] = "stride"
    """Finn's strided Conv4, the max-pool Conv4, the textbooks' two-layer net, or ResNet-12"""
    width: int = 64
    """channels of Conv4, and of ResNet-12's first block"""
    norm: Literal["auto", "batch", "support", "task", "group", "none"] = "auto"
    """whose statistics Conv4 and ResNet-12 normalise by: the present batch's, in test too (transductive), the support
    set's, the support set's mixed with the example's own (TaskNorm), the example's own; auto is batch, or group for a
    learner that must see each example by itself"""

    metric: ClassVar[Metric] = ACCURACY
    gives: ClassVar[frozenset[str]] = frozenset({"head", "context", "classes", "features", "film", "batches"})
    own_facts: ClassVar[frozenset[str]] = frozenset({"query", "norm"})

    # ---- what a recipe of pictures decides -------------------------------------------------------

    @abstractmethod
    def classes(self, split: Split) -> ClassData:
        """The classes of a split."""

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Channels, and height and width, of a picture."""

    @abstractmethod
    def from_files(self, pixels: Tensor) -> Tensor:
        """One's own pictures, uint8 `[picture, channel, size, size]`, as the network takes the data."""

    @abstractmethod
    def to_show(self, picture: Tensor) -> Tensor:
        """A picture as the network takes it, as uint8 `[height, width]` or `[height, width, 3]` for people."""

    # ---- tasks -----------------------------------------------------------------------------------

    def episodes(self, data: ClassData) -> Episodes:
        from fmeta.tasks import episodes

        return episodes(data, ways=self.ways, shots=self.shots, query=self.query)

    def sampler(self, split: Split, device: torch.device) -> Sampler:
        return self.episodes(self.classes(split).to(device))

    def batches(self, device: torch.device) -> Sampler:
        from fmeta.tasks import batches

        return batches(self.classes("train").to(device), size=self.ways * (self.shots + self.query))

    def facts(self) -> dict[str, Any]:
        own = {} if self.norm == "auto" else {"norm": self.norm}
        return {"split": "test", "ways": self.ways, "shots": self.shots, "query": self.query, **own}

    # ---- networks --------------------------------------------------------------------------------

    def offer(self) -> Offer:
        from fmeta.core import accuracy, cross_entropy
        from fmeta.learners import in_context

        normed = self.network != "conv2" and self.norm != "none"
        return Offer(
            self._network,
            cross_entropy,
            {"accuracy": accuracy},
            ways=self.ways,
            features=self._features(),
            examples=self.shots + self.query,
            condition=_beside_pixels,
            norms="*norm*" if self.network == "resnet12" else "norm*" if normed else "",
            training_classes=lambda: len(self.classes("train").names),
            finish=in_context if self.network != "conv2" and self.norm in ("support", "task") else None,
        )

    def _network(self, outputs: str = "head", *, context: int = 0, film: int = 0, beside: str = "support") -> Model:
        from fmeta.models import conv2, conv4, resnet12

        channels, size = self.shape()
        ways = self.ways if outputs == "head" else None
        shape: dict[str, Any] = {"channels": channels + context, "size": size}
        if self.network == "conv2":
            if film:
                raise OptionError("network", "conv2", "it cannot be modulated; expected stride, pool or resnet12")
            for option, usual in (("norm", ("auto", "none")), ("width", (type(self).width,))):
                if getattr(self, option) not in usual:
                    raise OptionError(option, getattr(self, option), "conv2 has none to choose; leave it out")
            return conv2(ways, **shape)
        shape |= {"norm": self._norm(beside), "film": film or None}
        if self.network == "resnet12":
            return resnet12(ways, widths=[self.width * times for times in (1, 2, 4, 8)], **shape)
        return conv4(ways, form=self.network, width=self.width, **shape)

    def _norm(self, beside: str) -> Any:
        """The policy, where an example is seen beside the support set, beside others of its batch, or alone."""
        if self.norm == "auto":
            return "group" if beside == "nothing" else "batch"
        suited = {"support": ("batch", "support", "task", "group", "none"), "batch": ("batch", "group", "none")}
        if self.norm not in suited.get(beside, ("group", "none")):
            why = "pretraining has no support set" if beside == "batch" else "it must see each example by itself"
            raise OptionError("norm", self.norm, f"not with this learner: {why}; expected auto, group or none")
        return self.norm

    def _features(self) -> int:
        size = self.shape()[1]
        of_pool = self.width * (size // 16) ** 2
        return {"conv2": 128, "stride": self.width, "pool": of_pool, "resnet12": 8 * self.width}[self.network]

    # ---- one's own files, and the report -----------------------------------------------------------

    def read_support(self, path: str | Path, on_error: OnError) -> Support:
        import torch

        from fmeta.core import Examples
        from fmeta.tasks import image_folder

        channels, size = self.shape()
        data = image_folder(path, size=size, channels=channels, on_error=on_error)
        labels = torch.arange(len(data.names)).repeat_interleave(data.size)
        return Support(Examples(self.from_files(data.examples), labels), data.names)

    def read_queries(self, path: str | Path, on_error: OnError) -> Queries:
        from fmeta.tasks import read_images

        channels, size = self.shape()
        files = _image_files(Path(path))
        pixels, kept = read_images(files, size=size, channels=channels, on_error=on_error)
        root = Path(path) if Path(path).is_dir() else Path(path).parent
        return Queries(self.from_files(pixels), tuple(str(file.relative_to(root)) for file in kept))

    def show(self, answered: Answered) -> Episode:
        from fmeta.runs._shown import class_episode

        return class_episode(answered, self.to_show)


def unit(pixels: Tensor) -> Tensor:
    """uint8 as the 0..1 that `episodes` makes of it."""
    return pixels.float() / 255.0


def as_bytes(picture: Tensor) -> Tensor:
    """0..1 `[channel, height, width]` as uint8 `[height, width]`, or `[height, width, 3]` in colour."""
    import torch

    pixels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)


def _beside_pixels(x: Tensor, context: Tensor) -> Tensor:
    """cavia's context as constant channels beside the picture's."""
    import torch

    return torch.cat([x, context[:, None, None].expand(len(x), -1, *x.shape[2:])], 1)


def _image_files(path: Path) -> list[Path]:
    from fmeta.tasks._images import is_hidden, is_image, warn_passed_over

    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not any(map(is_hidden, p.relative_to(path).parts)))
    found = [file for file in files if is_image(file.name)]
    warn_passed_over(f"predict({str(path)!r})", [file for file in files if not is_image(file.name)])
    if not found:
        raise InputError(f"predict({str(path)!r}): holds no images; expected image files, in any folder below")
    return found
