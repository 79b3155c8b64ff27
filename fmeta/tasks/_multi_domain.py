"""Tasks from several sources, for training across domains and testing on one that was left out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fmeta.core import InputError, PartialSampler, Task, fold, uniform
from fmeta.core._checks import nearest
from fmeta.core.tree import named_leaves, tree_map, tree_structure
from fmeta.tasks._sampler import Sampler, draw_part


def multi_domain(
    sources: Mapping[str, Sampler], *, leave_out: str | None = None, weights: Mapping[str, float] | None = None
) -> PartialSampler:
    """Each task from one of the sources, drawn at random. To test on every domain in turn:

        for name in sources:
            train, test = multi_domain(sources, leave_out=name), sources[name]

    Sources are samplers of any kind:

        >>> import fmeta
        >>> sources = {"waves": fmeta.tasks.sinusoid(), "lines": fmeta.tasks.linear(features=1)}
        >>> sample = fmeta.tasks.multi_domain(sources, weights={"waves": 3, "lines": 1})
        >>> sample(fmeta.key(0), 16).support.x.shape
        torch.Size([16, 10, 1])

    Every source draws the whole batch, and of each task the one from its source stays: all shapes are fixed, so that
    it compiles.

    Args:
        sources: samplers by name, whose tasks have the same shapes.
        leave_out: a source that gives no tasks.
        weights: how often each source is drawn, in proportion, positive; None draws all equally often.

    Raises:
        InputError: unknown names, no source, a weight that is missing or not positive; when drawing, sources whose
            tasks differ in shape or dtype.
    """
    if leave_out is not None and leave_out not in sources:
        raise InputError(f"multi_domain(leave_out={leave_out!r}): no such source; {nearest(leave_out, sources)}")
    kept = {name: source for name, source in sources.items() if name != leave_out}
    if not kept:
        raise InputError("multi_domain: no sources are left; expected at least one")
    shares = _shares(sources, list(kept), weights)
    edges = list(itertools.accumulate(share / sum(shares) for share in shares))[:-1]

    return MultiDomain(kept, tuple(edges))


@dataclass(frozen=True)
class MultiDomain:
    """What `multi_domain` gives: a `Sampler` that draws parts of a batch alone where its sources do."""

    sources: Mapping[str, Sampler]
    edges: tuple[float, ...]  # [source - 1] where in 0..1 the next source begins

    def __call__(self, key: Tensor, count: int) -> Task:
        return self.part(key, count, range(count))

    def part(self, key: Tensor, count: int, numbers: range) -> Task:
        """The tasks with these consecutive numbers of the batch of `count`."""
        drawn = {
            name: draw_part(source, fold(key, i), count, numbers)
            for i, (name, source) in enumerate(self.sources.items(), 1)
        }
        _check_alike(drawn)
        place = uniform(fold(key, 0), (count,), dtype=torch.float64)[numbers.start : numbers.stop]

        def pick(first: Tensor, *others: Tensor) -> Tensor:
            for edge, other in zip(self.edges, others, strict=True):
                first = torch.where((place >= edge).view(-1, *[1] * (other.ndim - 1)), other, first)
            return first

        return tree_map(pick, *drawn.values())


def _shares(sources: Mapping[str, Sampler], kept: list[str], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(kept)
    for name in weights:
        if name not in sources:
            raise InputError(f"multi_domain(weights=…): no source {name!r}; {nearest(name, sources)}")
    for name in kept:
        if not 0.0 < weights.get(name, 0.0) < float("inf"):
            raise InputError(
                f"multi_domain(weights=…): {name!r} has {weights.get(name, 'none')}; expected a positive number; to do "
                "without a source leave it out"
            )
    return [float(weights[name]) for name in kept]


def _check_alike(drawn: Mapping[str, Task]) -> None:
    """The same leaves of the same shapes in all tasks."""
    leaves = {
        name: {path: (list(leaf.shape[1:]), leaf.dtype) for path, leaf in named_leaves(tasks).items()}
        for name, tasks in drawn.items()
    }
    first, *others = leaves
    for other in others:
        for place in {**leaves[first], **leaves[other]}:
            pair = [leaves[name].get(place) for name in (first, other)]
            if pair[0] != pair[1]:
                mine, theirs = ("nothing" if p is None else f"{p[1]} {p[0]}" for p in pair)
                raise InputError(
                    f"multi_domain: in a task of {first!r} {place} is {mine}, of {other!r} {theirs}; expected the same "
                    "shapes; give the sources the same ways, shots, query, image size and channels"
                )
        if tree_structure(drawn[first]) != tree_structure(drawn[other]):
            raise InputError(
                f"multi_domain: the tasks of {first!r} and {other!r} hold the same leaves in other containers or in "
                "another order; expected trees of one structure; make the tuples, lists and dicts of the sources alike"
            )
