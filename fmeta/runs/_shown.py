"""What a report can draw of a task: examples with answers, or a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmeta.runs._recipe import Answered

_SUPPORT, _QUERY = 5, 20  # examples of a class, of an episode, at most

Item = Tensor | str  # a picture, uint8 [height, width] or [height, width, 3], or a text


class Answer(NamedTuple):
    """A query example, what it is, and what it was taken for."""

    item: Item
    truth: str
    predicted: str
    probability: float
    right: bool


class Episode(NamedTuple):
    """A task of classes."""

    support: dict[str, list[Item]]  # class -> examples
    answers: list[Answer]
    left_out: int  # query examples that are not shown


class Chart(NamedTuple):
    """A task as a figure."""

    figure: Figure
    note: str  # what there is to see, in words and numbers


def class_episode(answered: Answered, draw: Callable[[Any], Item]) -> Episode:
    """The `show` of a recipe of classes.

    Args:
        answered: the task, with probabilities.
        draw: one example's x -> what a person sees of it.
    """
    task, probabilities = answered.task, answered.probabilities
    assert probabilities is not None
    names = list(answered.names) or [f"class {way}" for way in range(probabilities.shape[-1])]
    share, label = probabilities.max(-1)
    label = torch.where(share.isnan(), -1, label)  # what is not a number is no answer
    said = [[*names, "nothing"][i] for i in label.tolist()]
    truth = task.query.y.tolist()
    asked = _each(task.query.x[0] if _is_stream(task.query.x, task) else task.query.x, _QUERY)
    answers = [
        Answer(draw(x), names[y], word, value, y == i)
        for x, y, word, value, i in zip(asked, truth, said, share.tolist(), label.tolist(), strict=False)
    ]
    return Episode(_support(task.support, names, draw), answers, max(0, len(truth) - _QUERY))


def _is_stream(x: Any, task: Any) -> bool:
    """A stream has its inputs beside the labels before them, and no support set."""
    return isinstance(x, tuple) and not tree.tree_leaves(task.support)


def _support(support: Any, names: Sequence[str], draw: Callable[[Any], Item]) -> dict[str, list[Item]]:
    if not isinstance(support.y, Tensor):
        return {}
    found = {}
    for way, name in enumerate(names):
        here = support.y == way
        found[name] = [draw(x) for x in _each(tree.tree_map(lambda t, here=here: t[here], support.x), _SUPPORT)]
    return found


def _each(x: Any, most: int) -> list[Any]:
    count = min(most, tree.tree_leaves(x)[0].shape[0])
    return [tree.tree_map(lambda t, i=i: t[i], x) for i in range(count)]
