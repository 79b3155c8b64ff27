"""The vocabulary. Everything else in fmeta is a function between these values.

A *tree* is any nest of tuples, lists, dicts and named tuples with tensors for leaves. Shapes are written in brackets:
`[example, ...]` has an example axis first. A learner's functions see ONE task; `over_tasks` adds the task axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

Tree = Any


class Examples(NamedTuple):
    """Inputs and targets of one task. The leaves of `x` and `y` are `[example, ...]`."""

    x: Tree
    y: Tree
    # [example]; () counts every example once; 0 marks padding, which is finite, has labels in range, and is seen by
    # batch norm alone
    weight: Tree = ()


class Task(NamedTuple):
    """What a learner adapts to (`support`), what it is judged on (`query`), and its randomness as data.

    A batch of tasks is a `Task` whose leaves all have a leading `[task]` axis.
    """

    support: Examples
    query: Examples
    key: Tree = ()  # int64 []


class InContext(NamedTuple):
    """An input with the support set beside it, for networks that look at both."""

    x: Tree  # leaves [example, ...]
    support: Tree  # the support set's inputs
    weight: Tree = ()  # and their weights


class At(NamedTuple):
    """Where the inner loop stands: the step's index and its randomness."""

    index: Tensor  # type: ignore[assignment]  # int64 []; hides tuple.index
    key: Tree  # this step's own randomness; () where the task has no key
    task_key: Tree  # what all steps of this adaptation share


class Parts(NamedTuple):
    """Where a network's trunk ends and its head begins: `head(params, trunk(params, x))` is `apply(params, x)`.

    Both take all the parameters; the trunk uses none of the head's. The head draws no noise.
    """

    trunk: Callable[[Tree, Tree], Tree]  # params, x -> features, leaves [example, ...]
    head: Callable[[Tree, Tree], Tree]  # params, features -> prediction
    pattern: str  # the names of the head's parameters: whole ones, or what they begin with and a star (`head.*`)
    noisy: Callable[[Tree, Tree, Tensor], Tree] | None = None  # params, x, key -> features; as `Model.noisy`


class Pictures(NamedTuple):
    """What a pretrained network was trained on: `(pictures - mean)/std`, of pictures in 0 .. 1."""

    mean: tuple[float, ...]  # one for each channel
    std: tuple[float, ...]
    size: tuple[int, int]  # height, width


class Model(NamedTuple):
    """A network as pure functions over its parameters."""

    init: Callable[[Tensor], Tree]  # key -> params
    apply: Callable[[Tree, Tree], Tree]  # params, x [example, ...] -> prediction [example, ...]
    noisy: Callable[[Tree, Tree, Tensor], Tree] | None = None  # params, x, key -> prediction; what dropout trains with
    calibrate: Callable[[Tree, Tree], Tree] | None = None  # params, x -> params with x's statistics for frozen norms
    parts: Parts | None = None  # None: one piece
    expects: Pictures | None = None  # what its weights were trained on; None: nobody knows


class Optimizer(NamedTuple):
    """Turns gradients into updates, in the inner and the outer loop alike. Counts in its state are float tensors."""

    init: Callable[[Tree], Tree]  # params -> state
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]  # grads, state, params -> updates to add, state
    descends: bool = True  # False for a link of `chain` that only transforms the gradient, such as clipping


# what a meta-gradient claims: the gradient of the query loss; that with inner gradients as constants; neither, such as
# a direction, an estimate, or what is exact under conditions
Order = Literal["exact", "first order", "neither"]

Loss = Callable[[Tree, Tree], Tensor]  # prediction, y -> [example], or a mean []

# what predictions mean: scores of classes before a softmax (log-probabilities among them), scores of classes in 0 .. 1,
# or anything else
Output = Literal["logits", "probabilities", "values"]


def everything(support: Examples, at: At) -> Examples:
    """The default `Inner.batch`: every inner step sees the whole support set."""
    return support


def as_it_is(meta: Tree, support: Examples, key: Tree) -> Examples:
    """The default `Inner.prepare`: the support set itself."""
    return support


class Inner(NamedTuple):
    """The problem ONE task solves by gradient descent. Meta-parameters may enter anywhere.

    `prepare` is what a task computes once and every step uses, such as the features of a trunk that does not adapt.
    Every meta-gradient computes and differentiates it once for each task; `start` and `batch` see what it gives, which
    has another `x` and the support set's own y, weight and example axis. Left alone it costs nothing.
    """

    start: Callable[[Tree, Examples, Tree], Tree]  # meta, support, the task's key or () -> fast
    loss: Callable[[Tree, Tree, Examples, At], Tensor]  # fast, meta, batch, at -> []
    optimizer: Callable[[Tree], Optimizer]  # meta -> optimizer
    steps: int
    batch: Callable[[Examples, At], Examples] = everything  # support, at -> the examples of this step
    strongly_convex: bool = False  # in fast, near where descent ends: what `implicit` needs, and cannot see for itself
    prepare: Callable[[Tree, Examples, Tree], Examples] = as_it_is  # meta, support, the task's key or () -> support


class MetaGradient(Protocol):
    """How to differentiate through adaptation: a value with its own name, never a flag. A plain function is one."""

    def __call__(self, learner: "Learner", stage: "Stage") -> "GradFn": ...


class Learner(NamedTuple):
    """A meta-learning algorithm, for one task: `meta` is learned across tasks, `fast` is what one task makes of it.

    Where there is an `inner`, `adapt` must run it (`gradient_based` and `with_inner` see to that).
    """

    init: Callable[[Tensor], Tree]  # key -> meta
    adapt: Callable[[Tree, Examples, Tree], Tree]  # meta, support, key -> fast
    predict: Callable[[Tree, Tree, Tree], Tree]  # fast, meta, x -> prediction
    loss: Callable[[Tree, Tree, Examples], tuple[Tensor, dict[str, Tensor]]]  # fast, meta, query -> loss [], metrics
    inner: Inner | None  # None: closed form or encoder
    gradient: MetaGradient  # the paper's own; any other that fits may take its place
    name: str = "learner"
    output: Output = "values"  # what `predict` gives


class Info(NamedTuple):
    """What a meta-gradient saw on its way."""

    loss: Tensor  # [] mean query loss after adaptation
    losses: Tensor  # [task]
    metrics: dict[str, Tensor]  # name -> [task]
    skipped: Tree = ()  # bool [task], where `skipping` left tasks out
    gradient_norm: Tree = ()  # [] Euclidean, of the whole meta-gradient, which `trainer` adds


GradFn = Callable[[Tree, Task], tuple[Tree, Info]]  # meta, a batch of tasks -> meta-gradient, info
Stage = Callable[[Callable[..., Any]], Callable[..., Any]]  # wraps a piece of work: `eager`, or `fmeta.compile`


@dataclass(frozen=True)
class Staged:
    """A function whose input can be checked before it is traced, and which can be built anew in compiled pieces.

    What `meta_grad` returns, and the `step` of a `Trainer`: `fmeta.compile` asks it for both.
    """

    run: Callable[..., Any]
    check: Callable[..., None]  # takes the same arguments; raises InputError for those that do not fit
    build: Callable[[Stage], Callable[..., Any]]  # the same function, with a stage around each piece of its work

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.run(*args, **keywords)

    @property
    def __name__(self) -> str:
        return self.run.__name__


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """The stage that does nothing."""
    return function


@runtime_checkable
class PartialSampler(Protocol):
    """A source of tasks that can draw some tasks of a batch alone: those of one process among several."""

    def __call__(self, key: Tensor, count: int) -> Task: ...

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        """The tasks with these numbers of the batch that `self(key, count)` is."""
        ...


class PythonSource:
    """What a source of tasks derives from whose tasks come from Python, such as a DataLoader, not from the key.

    It is called at every step, and a run that is resumed goes on with new draws.
    """


class WeighingSteps:
    """What a meta-gradient derives from to say which query losses it minimises, and how; all of fmeta's own do.

    One that does not, such as a plain function, claims the exact gradient of the loss after the last inner step.
    """

    # one weight for the query loss after each inner step; None counts the last step's alone
    loss_weights: tuple[float, ...] | None = None
    order: Order = "exact"  # what it claims to compute, which checks hold it to


def loss_weights_of(gradient: MetaGradient) -> tuple[float, ...] | None:
    """The weights of the query losses after each inner step that a meta-gradient minimises the sum of, or None."""
    return gradient.loss_weights if isinstance(gradient, WeighingSteps) else None


def order_of(gradient: MetaGradient) -> Order:
    """What a meta-gradient claims to compute."""
    return gradient.order if isinstance(gradient, WeighingSteps) else "exact"


def keeps(claim: Order, found: str) -> bool:
    """Whether what was found, as `GradientReport.order` says it, is what was claimed or more."""
    return claim == "neither" or found.startswith("exact") or claim == found
