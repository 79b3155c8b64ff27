"""What the learners share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts, check_model, check_optimizer, check_pattern, check_support
from fmeta.core._inner import descend
from fmeta.core._losses import cross_entropy, weighted_mean
from fmeta.core._random import fold
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Output, Tree, as_it_is
from fmeta.gradients import unrolled
from fmeta.learners._classes import check_query

Metrics = Mapping[str, Loss] | Loss | Sequence[Loss]  # by name, or functions that are reported under their own
Held = Callable[[Tree], Tensor]  # fast -> bool [way], the classes with support examples


def forward(model: Model, params: Tree, x: Tree, key: Tree) -> Tree:
    """The model in the inner loop: with its noise where it has some, which is drawn from the task's key."""
    return model.apply(params, x) if model.noisy is None else model.noisy(params, x, key)


def gradient_based(
    name: str,
    init: Callable[[Tensor], Tree],
    inner: Inner,
    predict: Callable[[Tree, Tree, Tree], Tree],
    loss: Loss,
    metrics: Metrics | None,
    gradient: MetaGradient,
    held: Held | None = None,
    output: Output | None = None,
) -> Learner:
    """A learner that adapts by `inner` and is judged by `loss` and `metrics` on the query set.

    With `held`, query examples of a class without support examples are refused. `output` says what `predict` gives;
    None takes it from the loss: "logits" for `cross_entropy`, "values" for any other.
    """
    check_counts(name, steps=inner.steps)
    judge, gives = _judged(name, predict, loss, metrics, held), output or meaning(loss)
    return Learner(init, descend(inner), predict, judge, inner, gradient, name, gives)


def encoder_based(
    name: str,
    init: Callable[[Tensor], Tree],
    adapt: Callable[[Tree, Examples, Tree], Tree],
    predict: Callable[[Tree, Tree, Tree], Tree],
    loss: Loss,
    metrics: Metrics | None,
    held: Held | None = None,
    output: Output | None = None,
) -> Learner:
    """A learner that adapts in one pass over the support set, without an inner loop; judged as `gradient_based`."""

    def adapt_to(meta: Tree, support: Examples, key: Tree) -> Tree:
        check_support(name, support)
        return adapt(meta, support, key)

    judge, gives = _judged(name, predict, loss, metrics, held), output or meaning(loss)
    return Learner(init, adapt_to, predict, judge, None, unrolled(), name, gives)


def meaning(loss: Loss) -> Output:
    """What predictions mean to a loss."""
    return "logits" if loss is cross_entropy else "values"


def _judged(
    name: str,
    predict: Callable[[Tree, Tree, Tree], Tree],
    loss: Loss,
    metrics: Metrics | None,
    held: Held | None,
) -> Callable[[Tree, Tree, Examples], tuple[Tensor, dict[str, Tensor]]]:
    check_loss(name, loss)
    reports = named_metrics(name, metrics)

    def query_loss(fast: Tree, meta: Tree, query: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = predict(fast, meta, query.x)
        value = weighted_mean(loss(prediction, query.y), query.weight, name)
        reported = {n: weighted_mean(m(prediction, query.y), query.weight, n) for n, m in reports.items()}
        if held is not None:
            value = value * check_query(name, query, held(fast)).to(value.dtype)
        return value, reported

    return query_loss


def check_loss(name: str, loss: object) -> None:
    """A function, and not the class of one."""
    if isinstance(loss, type) or not callable(loss):
        came = f"the class {loss.__name__}" if isinstance(loss, type) else repr(loss)
        raise InputError(
            f"{name}(loss={came}): expected a function (prediction, y) -> [example], such as fmeta.cross_entropy or "
            "nn.CrossEntropyLoss(); the width of an encoder's features, frozen or not, is found without being told"
        )


def named_metrics(name: str, metrics: Metrics | None) -> Mapping[str, Loss]:
    """The metrics by their names; a function stands under its own."""
    if metrics is None or isinstance(metrics, Mapping):
        found = dict(metrics or {})
    else:
        each = [metrics] if callable(metrics) else list(metrics)
        names = [getattr(m, "__name__", type(m).__name__) for m in each]
        found = dict(zip(names, each, strict=True))
        if len(found) < len(each):
            raise InputError(
                f"{name}(metrics=…): two are called alike, of {names}; expected a dict, with a name for each"
            )
    for given, metric in found.items():
        if given in ("loss", "residual", "inner_gradient"):
            raise InputError(f"{name}(metrics=…): a metric is called {given!r}, which fmeta reports itself; rename it")
        if isinstance(metric, type) or not callable(metric):
            raise InputError(f"{name}(metrics=…): {given!r} is {metric!r}; expected a function (prediction, y)")
    return found


def adapt_part(
    name: str,
    model: Model,
    loss: Loss,
    pattern: str,
    optimizer: Optimizer,
    steps: int,
    gradient: MetaGradient,
    metrics: Metrics | None,
) -> Learner:
    """A learner whose meta is all the model's parameters, of which those that match adapt: `fast`, a dict by name.

    Where these are the head's, the inner steps run on the trunk's features, computed once.
    """
    check_model(name, model)
    check_optimizer(name, optimizer)
    parts = model.parts if only_the_head(model, pattern) else None

    def start(meta: Tree, support: Examples, key: Tree) -> Tree:
        check_pattern(name, meta, pattern)
        return tree.select_leaves(meta, pattern)

    def inner_loss(fast: Tree, meta: Tree, batch: Examples, at: At) -> Tensor:
        params = tree.replace_leaves(meta, fast)
        prediction = forward(model, params, batch.x, at.key) if parts is None else parts.head(params, batch.x)
        return weighted_mean(loss(prediction, batch.y), batch.weight, name)

    def features(meta: Tree, support: Examples, key: Tree) -> Examples:
        assert parts is not None
        if parts.noisy is not None:
            return support._replace(
                x=parts.noisy(meta, support.x, fold(key, "features") if tree.tree_leaves(key) else key)
            )
        return support._replace(x=parts.trunk(meta, support.x))

    def predict(fast: Tree, meta: Tree, x: Tree) -> Tree:
        return model.apply(tree.replace_leaves(meta, fast), x)

    prepare = as_it_is if parts is None else features
    inner = Inner(start, inner_loss, lambda meta: optimizer, steps, prepare=prepare)
    return gradient_based(name, model.init, inner, predict, loss, metrics, gradient)


def only_the_head(model: Model, pattern: str) -> bool:
    """Whether only parameters of the head match, which a pattern tells when it matches the head's as a name would.

    And whether its trunk alone stands for what dropout does to the whole network.
    """
    parts = model.parts
    if parts is None or pattern.startswith("!") or (model.noisy is not None and parts.noisy is None):
        return False
    return all(tree.matching((each.strip(),), parts.pattern) for each in pattern.split(","))


def with_inner(learner: Learner, inner: Inner) -> Learner:
    """The learner with another inner problem, which its `adapt` then runs."""
    return learner._replace(inner=inner, adapt=descend(inner))
