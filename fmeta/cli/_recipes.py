"""The recipes that `fmeta train` knows, by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

import fmeta
from fmeta.cli._recipe import Recipe
from fmeta.core import InputError, Learner, Model
from fmeta.core._checks import nearest
from fmeta.execution import Scope
from fmeta.tasks import ClassData, Episodes, Sampler, Split, batches, episodes, glyphs, omniglot, sinusoid, stream


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Recipe):
    """MAML on sine waves (Finn et al. 2017, section 5.1): needs no data, trains in seconds.

    The outer rate is three times the paper's and falls to 0: 15,000 meta-steps then get as far as many more at 1e-3.
    """

    hidden: tuple[int, ...] = (40, 40)
    """widths of the hidden layers"""
    threads: int = 1  # so small a net only waits for a second one
    outer_lr: float = 3e-3
    outer_schedule: Literal["constant", "linear", "cosine"] = "cosine"

    name: ClassVar[str] = "sinusoid"

    def sampler(self, split: Split) -> Sampler:
        return sinusoid(shots=self.shots, query=self.query if split == "train" else 100)

    def model(self) -> Model:
        if self.encodes:
            self.comparing()  # refuses
        return fmeta.models.mlp([1 + (self.context if self.learner == "cavia" else 0), *self.hidden, 1])


@dataclass(frozen=True, kw_only=True)
class Images(Recipe):
    """The choices of every recipe that classifies images of characters, 28x28."""

    ways: int = 5
    """classes of a task"""
    network: Literal["stride", "pool", "conv2"] = "stride"
    """Finn's strided Conv4, the max-pool Conv4, or the textbooks' two-layer net"""
    width: int = 64
    """channels of Conv4"""
    norm: Literal["batch", "support", "task", "group", "none"] = "batch"
    """whose statistics Conv4 normalises by: the present batch's, in test too (transductive), the support set's, the
    support set's mixed with the example's own (TaskNorm), the example's own"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """what protonet compares by"""
    full_context: bool = False
    """full context embeddings of matching"""
    head: Literal["linear", "cosine"] = "linear"
    """the classifier of transfer, in pretraining and on new classes"""
    meta_batch: int = 32
    shots: int = 1
    query: int = 1
    inner_lr: float = 2.0
    log_every: int = 50
    save_every: int = 500
    eval_steps: tuple[int, ...] = (0, 1, 2, 3)

    size: ClassVar[int] = 28

    @abstractmethod
    def data(self, split: Split) -> ClassData:
        """The classes of a split."""

    def episodes(self, split: Split) -> Episodes:
        return episodes(self.data(split), ways=self.ways, shots=self.shots, query=self.query)

    def sampler(self, split: Split) -> Sampler:
        if self.learner == "transfer" and split == "train":
            return batches(self.data(split), size=self.ways * (self.shots + self.query))
        drawn = self.episodes(split)
        return stream(drawn, ways=self.ways) if self.learner == "mann" else drawn

    def pictures(self, images: torch.Tensor) -> torch.Tensor:
        """One's own pictures, uint8 `[picture, 1, size, size]`, as the data is: ink bright on dark paper, in 0..1.

        Paper is what most of a picture's border shows.
        """
        border = torch.cat([images[..., [0, -1], :].flatten(1), images[..., :, [0, -1]].flatten(1)], 1).float()
        bright = (border.median(1).values > 127.5)[:, None, None, None]
        return torch.where(bright, 255 - images, images).float() / 255.0

    def build_learner(self) -> Learner:
        learner = self._transfer() if self.learner == "transfer" else super().build_learner()
        return fmeta.in_context(learner) if self.norm in ("support", "task") and self.network != "conv2" else learner

    def check(self) -> None:
        super().check()
        if self.learner == "mann" and self.network != "conv2" and self.norm not in ("group", "none"):
            raise InputError(
                f"recipe(learner='mann', norm={self.norm!r}): batch statistics would look ahead in the stream, and it "
                "has no support set; expected norm 'group' or 'none'"
            )
        if self.learner == "transfer" and self.network != "conv2" and self.norm in ("support", "task"):
            raise InputError(
                f"recipe(learner='transfer', norm={self.norm!r}): pretraining has no support set to normalise by; "
                "expected norm 'batch', 'group' or 'none'"
            )

    def model(self) -> Model:
        ways = None if self.encodes else self.ways
        channels = 1 + self.context if self.learner == "cavia" else 1
        if self.network == "conv2":
            return fmeta.models.conv2(ways, channels=channels)
        return fmeta.models.conv4(ways, channels=channels, form=self.network, width=self.width, norm=self.norm)

    def comparing(self) -> dict[str, Any]:
        metrics, features = {"accuracy": fmeta.accuracy}, self._features()
        own: dict[str, Callable[[], dict[str, Any]]] = {
            "protonet": lambda: {"distance": self.distance, "metrics": metrics},
            "matching": lambda: {"full_context": features if self.full_context else None, "metrics": metrics},
            "relation": lambda: {"comparison": fmeta.models.mlp([2 * features, 64, 1]), "metrics": metrics},
            "ridge": lambda: {"metrics": metrics},
            "task_encoder": lambda: {"network": self._modulated(features), "metrics": metrics},
            "mann": lambda: {"features": features, "instances": self.shots + self.query},
        }
        return {"ways": self.ways, **own[self.learner]()}

    def _transfer(self) -> Learner:
        """Pretraining on all training classes at once, then a new head by the inner optimizer."""
        encoder, features = self._encoder(), self._features()
        classifier = fmeta.models.with_head(encoder, len(self.data("train").names), features=features, head=self.head)
        kind: dict[str, Any] = {"optimizer": self.inner(), "steps": self.inner_steps, "head": self.head}
        fine_tune = fmeta.fine_tune(encoder, ways=self.ways, metrics={"accuracy": fmeta.accuracy}, **kind)
        return fmeta.transfer(classifier, fine_tune)

    def _encoder(self) -> Model:
        return fmeta.with_precision(self.model(), self.precision, self.where())

    def _features(self) -> int:
        return (
            128 if self.network == "conv2" else self.width * (1 if self.network == "stride" else (self.size // 16) ** 2)
        )

    def _modulated(self, embedding: int) -> Model:
        if self.network == "conv2":
            raise InputError("recipe(learner='task_encoder', network='conv2'): expected 'stride' or 'pool'")
        return fmeta.models.conv4(None, form=self.network, width=self.width, norm=self.norm, film=embedding)

    def condition(self) -> Callable[[Any, torch.Tensor], Any]:
        """As constant channels beside the image's."""
        return lambda x, context: torch.cat([x, context[:, None, None].expand(len(x), -1, *x.shape[2:])], 1)

    def each_step(self) -> dict[str, str]:
        return {} if self.network != "conv2" and self.norm != "none" else super().each_step()

    def metric(self) -> str:
        return "accuracy"

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"split": "test", "ways": self.ways, "query": self.query, "norm": self.norm}

    def losses(self) -> dict[str, Any]:
        return {"loss": fmeta.cross_entropy, "metrics": {"accuracy": fmeta.accuracy}}


@dataclass(frozen=True, kw_only=True)
class Omniglot(Images):
    """Few-shot Omniglot by the protocol of Finn et al. 2017: 5-way 1-shot, 1,100 / 100 / 423 characters, rotations."""

    data_dir: str | None = None
    """folder with images_background and images_evaluation, as folders or zip archives; none downloads them"""
    protocol: Literal["finn", "vinyals", "lake"] = "finn"
    """split: Finn's 1,100 / 100 / 423 characters, Vinyals' rotated classes, or Lake's background and evaluation sets"""
    iterations: int = 60_000

    name: ClassVar[str] = "omniglot"
    movable: ClassVar[tuple[str, ...]] = (*Recipe.movable, "data_dir")

    def data(self, split: Split) -> ClassData:
        return omniglot(split, protocol=self.protocol, data_dir=self.data_dir).to(self.where())

    def episodes(self, split: Split) -> Episodes:
        turned = self.protocol == "finn"
        return episodes(self.data(split), ways=self.ways, shots=self.shots, query=self.query, rotate=turned)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"split": f"{self.protocol} test"}


@dataclass(frozen=True, kw_only=True)
class Glyphs(Images):
    """Few-shot characters that are drawn from fonts: 5-way 1-shot on scripts never seen, needs no data."""

    drawings: int = 20
    """drawings of each character"""
    iterations: int = 800
    meta_batch: int = 16
    outer_lr: float = 3e-3
    outer_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    width: int = 32
    threads: int = 1  # a second one gains a third, and stalls where the core is shared
    compile: Scope = "none"  # so short a run ends before a compiler has earned its time

    name: ClassVar[str] = "glyphs"

    def data(self, split: Split) -> ClassData:
        return glyphs(split, drawings=self.drawings).to(self.where())


RECIPES: dict[str, type[Recipe]] = {r.name: r for r in (Sinusoid, Omniglot, Glyphs)}


def recipe_class(name: str) -> type[Recipe]:
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]
