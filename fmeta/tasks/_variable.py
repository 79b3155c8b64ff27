"""Episodes with as many ways and shots as chance has it, as Meta-Dataset draws them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, PartialSampler, Task, choice, fold, randint, uniform
from fmeta.core._checks import check_counts
from fmeta.core._random import choice_within
from fmeta.tasks._class_data import ClassData, check_turns, look_up
from fmeta.tasks._sampler import TaskSampler


def variable_episodes(
    data: ClassData,
    *,
    max_ways: int = 50,
    min_ways: int = 5,
    query: int = 10,
    max_support: int = 500,
    max_support_per_class: int = 100,
) -> PartialSampler:
    """Tasks of variable way and shot, drawn as in Meta-Dataset (Triantafillou et al. 2020, section 3.2,
    https://arxiv.org/abs/1903.03096). With C the classes of a task and |n| the examples that class n has:

        |C|    uniform in min_ways .. max_ways
        q      = min(query, min over C of ⌊|n|/2⌋)                          query examples of each class
        |S|    = min(max_support, Σ over C of ⌈β·min(max_support_per_class, |n| − q)⌉),    β uniform in (0, 1]
        shotsₙ = min(⌊Rₙ·(|S| − |C|)⌋ + 1, |n| − q),    Rₙ ∝ |n|·exp(αₙ),    αₙ uniform in [log ½, log 2)

    The shapes depend on the arguments alone: support `[task, max_support, ...]`, query `[task, max_ways·query, ...]`.
    The examples come first, in random order; then copies of them, with weight 0. Labels are `0 .. |C|-1`. To
    `protonet`, `matching`, `relation`, `ridge` and `protomaml` with `ways=max_ways` it is exactly the task of |C| ways;
    a head with `max_ways` outputs (`maml` …) keeps the other ways in its softmax.

        >>> import fmeta, torch
        >>> data = fmeta.tasks.class_data({f"word {i}": torch.randn(5 + i, 16) for i in range(30)})
        >>> sample = fmeta.tasks.variable_episodes(data, max_ways=10, query=5, max_support=60)
        >>> tasks = sample(fmeta.key(0), 4)
        >>> tasks.support.x.shape, tasks.query.x.shape
        (torch.Size([4, 60, 16]), torch.Size([4, 50, 16]))

    Args:
        data: the classes to draw from, each with at least two examples.
        max_ways: most classes of a task; where there are fewer, as many as there are.
        min_ways: least classes of a task, at least 2.
        query: most query examples of each class.
        max_support: most support examples of a task.
        max_support_per_class: what one class adds at most to the size of the support set; its shots may be more.

    Raises:
        InputError: fewer classes than min_ways; a class of one example, by name; numbers that do not go together.
    """
    check_counts("variable_episodes", least=2, max_ways=max_ways, min_ways=min_ways)
    check_counts("variable_episodes", query=query, max_support=max_support, max_support_per_class=max_support_per_class)
    classes, least = len(data.names), int(data.size.argmin())
    if not min_ways <= max_ways <= max_support:
        raise InputError(
            f"variable_episodes(min_ways={min_ways}, max_ways={max_ways}, max_support={max_support}): expected "
            "min_ways <= max_ways <= max_support, one support example for each class or more"
        )
    if min_ways > classes:
        raise InputError(
            f"variable_episodes(min_ways={min_ways}): the data has {classes} classes; expected min_ways <= {classes}"
        )
    if data.size[least] < 2:
        raise InputError(
            f"variable_episodes: class {data.names[least]!r} has one example; expected two or more, for support and "
            "query; drop the class"
        )
    turning = check_turns("variable_episodes", data)
    slots, most = min(max_ways, classes), int(data.size.max())

    def one(key: Tensor) -> Task:
        drawn = choice(fold(key, 0), classes, slots)
        ways = min_ways + randint(fold(key, 1), slots - min_ways + 1)
        here = torch.arange(slots, device=key.device) < ways
        size = data.size[drawn]
        queries = (torch.where(here, size, most).amin() // 2).clamp(max=query)
        shots = _shots(fold(key, 2), size, size - queries, here, max_support, max_support_per_class)
        # each class lays its examples out in random order: queries first, then what may be support
        order = choice_within(fold(key, 3), most, most, valid=size)

        def take(number: int, counts: Tensor, offset: Tensor | int, length: int) -> Examples:
            ends = counts.cumsum(0)
            # the first ends[-1] places are the examples shuffled, and the rest go round again
            place = choice_within(fold(key, number), length, length, valid=ends[-1]) % ends[-1]
            label = (place[:, None] >= ends).sum(-1)
            row = data.start[drawn][label] + order[label, offset + place - (ends - counts)[label]]
            weight = (torch.arange(length, device=key.device) < ends[-1]).to(torch.float32)
            return Examples(look_up(data, row, data.turns[drawn][label] if turning else None), label, weight)

        support = take(4, shots, queries, max_support)
        return Task(support, take(5, queries * here, 0, max_ways * query), fold(key, 6))

    return TaskSampler(one)


def _shots(key: Tensor, size: Tensor, left: Tensor, here: Tensor, most: int, most_per_class: int) -> Tensor:
    """Support examples of each class, `[class]`, 0 where the class is not `here`; `left` are those to choose from."""
    beta = 1.0 - uniform(fold(key, 0), dtype=torch.float64)
    added = (beta * left.clamp(max=most_per_class)).ceil().to(torch.int64) * here
    alpha = uniform(fold(key, 1), size.shape, -math.log(2.0), math.log(2.0), dtype=torch.float64)
    share = size * alpha.exp() * here
    further = added.sum().clamp(max=most) - here.sum()
    return torch.minimum((share / share.sum() * further).to(torch.int64) + 1, left) * here
