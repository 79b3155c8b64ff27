"""`Recipe`: what a domain brings to the runs. Importing it needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from fmeta._errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fmeta.core import Examples, Learner, Model, Optimizer, Task, Tree
    from fmeta.runs._shown import Chart, Episode
    from fmeta.tasks import Sampler, Split

OnError = Literal["raise", "skip"]


class Metric(NamedTuple):
    """The headline figure of a recipe: its name among what the learner reports, and how people read it."""

    name: str
    better: Literal["higher", "lower"]
    percent: bool = False
    label: str = ""  # what it is called; the name where empty

    def text(self, value: float) -> str:
        """A value with the digits it is shown with, in percent where it is a share."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.4f}"


ERROR = Metric("loss", "lower", label="query error")
ACCURACY = Metric("accuracy", "higher", percent=True, label="query accuracy")


class Network(Protocol):
    """Makes the network that a learner asks for."""

    def __call__(
        self,
        outputs: Literal["head", "features"] = "head",
        *,
        context: int = 0,  # inputs more, which cavia adapts
        film: int = 0,  # length of an embedding that modulates it
        beside: Literal["support", "batch", "nothing"] = "support",  # what an example may be seen beside
    ) -> Model: ...


class Offer(NamedTuple):
    """What a recipe offers to a learner, made for the options at hand."""

    network: Network
    loss: Callable[[Any, Any], Tensor]
    metrics: Mapping[str, Callable[[Any, Any], Tensor]] = {}
    ways: int = 0  # classes of a task; 0 where there are none
    features: int = 0  # of the network without its head
    examples: int = 0  # of a class in a task, support and query together
    condition: Callable[[Any, Tensor], Any] | None = None  # (x, context) -> the network's input; None appends
    norms: str = ""  # patterns of the norms' parameters, which maml_plus_plus learns for each step
    training_classes: Callable[[], int] | None = None  # how many a classifier of all of them has
    finish: Callable[[Learner], Learner] | None = None  # what the learner needs around it, such as `in_context`


class Support(NamedTuple):
    """A user's own support set."""

    examples: Examples
    names: tuple[str, ...] = ()  # [class]; () where there are none


class Queries(NamedTuple):
    """A user's own query inputs."""

    x: Tree  # leaves [query, ...]
    names: tuple[str, ...]  # [query] what a person calls each, such as its file


class Answered(NamedTuple):
    """A test task with what the learner said: what `Recipe.show` draws."""

    task: Task  # one, without a task axis
    predictions: Mapping[int, Tree]  # adaptation steps -> the query's prediction
    probabilities: Tensor | None  # [query, class] after the last of the steps; None for values
    names: Sequence[str]  # [class]; () where the prediction has none


class Recipe(ABC):
    """A domain, as a frozen dataclass whose fields are the options of its tasks and networks.

    `sampler` and `offer` must be there; without `read_support`, `read_queries` or `show` the commands that need them
    say so. Found by its name through the entry points of the group `fmeta.recipes`:

        [project.entry-points."fmeta.recipes"]
        tokens = "my_package:Tokens"

    A recipe may bring a learner of its own instead of an offer: `own_learner`.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric] = ERROR
    gives: ClassVar[frozenset[str]] = frozenset({"head"})
    """what `offer` has: head, context, classes, features, film, batches. A learner is offered if it needs no more."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """of the options of runs and learners where they are other than the rows'; `maml.inner_lr` is maml's alone"""
    movable: ClassVar[tuple[str, ...]] = ()
    """options that say where data is, which a run may change and stay itself"""
    own_facts: ClassVar[frozenset[str]] = frozenset()
    """`facts` in which two runs may differ and still be compared on the same tasks"""

    @abstractmethod
    def sampler(self, split: Split, device: torch.device) -> Sampler:
        """Draws tasks of one split, on the device."""

    def offer(self) -> Offer:
        """What a learner is built of."""
        raise InputError(f"recipe {self.name}: it has no offer(); expected that, or a learner from own_learner()")

    def own_learner(self) -> Learner | None:
        """The one learner of this recipe; None where the learners' rows apply."""
        return None

    def own_optimizer(self) -> Optimizer | None:
        """What trains `own_learner`; None is Adam by the run's options."""
        return None

    def batches(self, device: torch.device) -> Sampler:
        """Plain batches of all training classes, for a recipe that gives them."""
        raise InputError(f"recipe {self.name}: it gives no batches; expected another learner")

    def facts(self) -> dict[str, Any]:
        """The protocol, to stand beside every figure."""
        return {}

    def read_support(self, path: str | Path, on_error: OnError) -> Support:
        """A user's own support set, from what is at the path."""
        raise InputError(f"recipe {self.name}: it reads no support set of one's own; expected read_support(path)")

    def read_queries(self, path: str | Path, on_error: OnError) -> Queries:
        """A user's own query inputs, from what is at the path."""
        raise InputError(f"recipe {self.name}: it reads no queries of one's own; expected read_queries(path)")

    def show(self, answered: Answered) -> Episode | Chart | None:
        """What the report draws of a task; None draws nothing."""
        return None
