"""The learners that the command line knows: a row each, with the options of it alone. Needs no torch.

A row is a dataclass: its fields are options, `needs` says what a recipe must give, `build` makes the learner of what
the recipe offers. To add a learner, add its row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmeta.runs._options import LearnerRow, OptionError, registered

if TYPE_CHECKING:
    import torch

    from fmeta.core import Learner, Optimizer
    from fmeta.runs._recipe import Offer, Recipe
    from fmeta.tasks import Sampler, Split

LEARNERS: dict[str, type[LearnerRow]] = {}
_CLASSES = frozenset({"features", "classes"})


@dataclass(frozen=True, kw_only=True)
class Stepping(LearnerRow):
    """Learners with an inner loop."""

    inner_lr: float = 0.01
    """rate of the inner loop, on the mean loss (where it starts, for learned rates)"""
    inner_steps: int = 1
    """inner steps in training"""

    def check(self) -> None:
        if not self.inner_lr > 0:
            raise OptionError("inner_lr", self.inner_lr, "expected a positive rate")
        if self.inner_steps < 1:
            raise OptionError("inner_steps", self.inner_steps, "expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Descending(Stepping):
    """Learners whose inner loop runs a chosen optimizer."""

    inner_optimizer: Literal["sgd", "momentum", "rmsprop", "adam"] = "sgd"
    """optimizer of the inner loop"""
    inner_clip: float = 0.0
    """largest norm of the inner gradient; 0 does not clip"""

    def loop(self) -> dict[str, Any]:
        """What its learner takes of them."""
        from fmeta import core

        self.check()
        if not self.inner_clip >= 0:
            raise OptionError("inner_clip", self.inner_clip, "expected a norm, or 0, which does not clip")
        optimizer = getattr(core, self.inner_optimizer)(self.inner_lr)
        if self.inner_clip:
            optimizer = core.chain(core.clip_by_global_norm(self.inner_clip), optimizer)
        return {"optimizer": optimizer, "steps": self.inner_steps}


@registered(LEARNERS, "maml")
@dataclass(frozen=True, kw_only=True)
class Maml(Descending):
    """All weights, by gradient steps."""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import maml

        return maml(offer.network(), offer.loss, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(Descending):
    """All weights, on minibatches."""

    gradient: ClassVar[str] = "difference"
    inner_batch: int = 0
    """examples of an inner step; 0 takes all"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import reptile

        batch = self.inner_batch or None
        return reptile(offer.network(), offer.loss, batch=batch, metrics=offer.metrics, **self.loop())

    def optimizer(self, rate: Any) -> Optimizer:
        from fmeta.core import sgd

        return sgd(rate)


@registered(LEARNERS, "meta_sgd")
@dataclass(frozen=True, kw_only=True)
class MetaSgd(Stepping):
    """All weights, with a learned rate each."""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import meta_sgd

        self.check()
        return meta_sgd(offer.network(), offer.loss, lr=self.inner_lr, steps=self.inner_steps, metrics=offer.metrics)


@registered(LEARNERS, "anil")
@dataclass(frozen=True, kw_only=True)
class Anil(Descending):
    """The weights that match a pattern."""

    adapt: str = "head.*"
    """parameters that adapt, as patterns separated by commas"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import anil

        return anil(offer.network(), offer.loss, adapt=self.adapt, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "boil")
@dataclass(frozen=True, kw_only=True)
class Boil(Descending):
    """All weights but the head's."""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import boil

        return boil(offer.network(), offer.loss, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "cavia")
@dataclass(frozen=True, kw_only=True)
class Cavia(Descending):
    """A context vector beside the input."""

    needs: ClassVar[frozenset[str]] = frozenset({"head", "context"})
    context: int = 5
    """context parameters"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import cavia

        kind: dict[str, Any] = {"context": self.context, **self.loop()}
        if offer.condition is not None:
            kind["condition"] = offer.condition
        return cavia(offer.network(context=self.context), offer.loss, metrics=offer.metrics, **kind)


@registered(LEARNERS, "imaml")
@dataclass(frozen=True, kw_only=True)
class Imaml(Descending):
    """All weights, to the optimum of a proximal problem."""

    gradient: ClassVar[str] = "implicit"
    damping: float = 2.0
    """pull of the inner problem towards meta"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import imaml

        return imaml(offer.network(), offer.loss, damping=self.damping, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "protomaml")
@dataclass(frozen=True, kw_only=True)
class Protomaml(Descending):
    """All weights, and a head that starts from the support's prototypes."""

    needs: ClassVar[frozenset[str]] = _CLASSES

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import protomaml

        net = offer.network("features")
        return protomaml(net, offer.loss, ways=offer.ways, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "maml_plus_plus")
@dataclass(frozen=True, kw_only=True)
class MamlPlusPlus(Stepping):
    """All but the norms, with learned rates and norms for each step."""

    defaults: ClassVar[dict[str, Any]] = {"multi_step": True}

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import maml_plus_plus

        self.check()
        kind: dict[str, Any] = {"lr": self.inner_lr, "steps": self.inner_steps, "each_step": offer.norms}
        return maml_plus_plus(offer.network(), offer.loss, metrics=offer.metrics, **kind)


@registered(LEARNERS, "meta_curvature")
@dataclass(frozen=True, kw_only=True)
class MetaCurvature(Descending):
    """All weights, by gradients times learned matrices."""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import meta_curvature

        return meta_curvature(offer.network(), offer.loss, metrics=offer.metrics, **self.loop())


@registered(LEARNERS, "protonet")
@dataclass(frozen=True, kw_only=True)
class Protonet(LearnerRow):
    """Class means of the features."""

    needs: ClassVar[frozenset[str]] = _CLASSES
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """what it compares by"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import protonet

        net = offer.network("features")
        return protonet(net, offer.loss, ways=offer.ways, distance=self.distance, metrics=offer.metrics)


@registered(LEARNERS, "matching")
@dataclass(frozen=True, kw_only=True)
class Matching(LearnerRow):
    """The support set votes by cosine."""

    needs: ClassVar[frozenset[str]] = _CLASSES
    full_context: bool = False
    """full context embeddings"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import matching

        context = offer.features if self.full_context else None
        return matching(offer.network("features"), ways=offer.ways, full_context=context, metrics=offer.metrics)


@registered(LEARNERS, "relation")
@dataclass(frozen=True, kw_only=True)
class Relation(LearnerRow):
    """Class sums of the features; a learned comparison."""

    needs: ClassVar[frozenset[str]] = _CLASSES

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import relation
        from fmeta.models import mlp

        comparison = mlp([2 * offer.features, 64, 1])
        return relation(offer.network("features"), comparison, ways=offer.ways, metrics=offer.metrics)


@registered(LEARNERS, "ridge")
@dataclass(frozen=True, kw_only=True)
class Ridge(LearnerRow):
    """A ridge regression on the features, in closed form (R2-D2)."""

    needs: ClassVar[frozenset[str]] = _CLASSES

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import ridge

        return ridge(offer.network("features"), offer.loss, ways=offer.ways, metrics=offer.metrics)


@registered(LEARNERS, "task_encoder")
@dataclass(frozen=True, kw_only=True)
class TaskEncoder(LearnerRow):
    """An embedding of the support set that modulates the network (FiLM)."""

    needs: ClassVar[frozenset[str]] = _CLASSES | {"film"}

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import task_encoder

        modulated = offer.network("features", film=offer.features)
        encoder = offer.network("features")
        return task_encoder(encoder, modulated, offer.loss, ways=offer.ways, metrics=offer.metrics)


@registered(LEARNERS, "mann")
@dataclass(frozen=True, kw_only=True)
class Mann(LearnerRow):
    """An external memory, along a stream of labelled examples."""

    needs: ClassVar[frozenset[str]] = _CLASSES
    tests_on: ClassVar[str] = "streams"

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import mann

        # statistics of a batch would look ahead in the stream
        net = offer.network("features", beside="nothing")
        return mann(net, ways=offer.ways, features=offer.features, instances=offer.examples)

    def sampler(self, recipe: Recipe, split: Split, device: torch.device) -> Sampler:
        from fmeta.tasks import stream

        return stream(recipe.sampler(split, device), ways=recipe.offer().ways)


@registered(LEARNERS, "transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Descending):
    """A new head on an encoder that was pretrained on all training classes."""

    needs: ClassVar[frozenset[str]] = _CLASSES | {"batches"}
    head: Literal["linear", "cosine"] = "linear"
    """the classifier, in pretraining and on new classes"""

    def build(self, offer: Offer) -> Learner:
        from fmeta.learners import fine_tune, transfer
        from fmeta.models import with_head

        encoder = offer.network("features", beside="batch")
        classes = offer.training_classes() if offer.training_classes is not None else 0
        classifier = with_head(encoder, classes, features=offer.features, head=self.head)
        own = fine_tune(encoder, ways=offer.ways, metrics=offer.metrics, head=self.head, **self.loop())
        return transfer(classifier, own)

    def sampler(self, recipe: Recipe, split: Split, device: torch.device) -> Sampler:
        return recipe.batches(device) if split == "train" else recipe.sampler(split, device)
