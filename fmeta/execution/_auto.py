"""The scope "auto": the fastest way to run a step, measured on the caller's own shapes."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmeta.core._torch import DispatchMode, mark_compiled
from fmeta.core.tree import tree_leaves
from fmeta.execution._signature import signature
from fmeta.operators._choices import fastest

_log = logging.getLogger("fmeta")
_LONGEST_GRAPH = 4000  # operations of one eager call; beyond, one graph compiles for many minutes


def measured(function: Callable[..., Any], compile: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, from `meta_grad` or `trainer`, run in the fastest of its scopes from the first call on."""
    chosen: Callable[..., Any] | None = None

    @functools.wraps(function, updated=())
    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal chosen
        if chosen is None:
            chosen = _choose(function, compile, args, keywords)
        return chosen(*args, **keywords)

    mark_compiled(call, function)
    return call


def _choose(function: Any, compile: Callable[..., Any], args: Any, keywords: Any) -> Callable[..., Any]:
    with _Counter() as operations:
        function(*args, **keywords)
    stages = _stages(function)
    ways: dict[str, Callable[..., Any]] = {"none": function}
    if operations.count <= _LONGEST_GRAPH:
        ways["whole"] = compile(function)
    else:
        _log.info("%s: %d operations are too many for one graph", function.__name__, operations.count)
    if len(stages) > 2:  # else the one stage beside the outer update is the whole meta-gradient
        ways["step"] = compile(function, scope="step")
    facts = hashlib.sha256(repr((stages, signature(args, keywords))).encode()).hexdigest()[:12]
    question = f"scope of {function.__name__} ({operations.count} operations, inputs {facts})"
    device = next((leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), torch.device("cpu"))
    runs = {name: functools.partial(way, *args, **keywords) for name, way in ways.items()}
    return ways[fastest(question, runs, device, level=logging.INFO)]


def _stages(function: Any) -> list[str]:
    names = list[str]()

    def spy(stage: Callable[..., Any]) -> Callable[..., Any]:
        names.append(stage.__name__)
        return stage

    function.build(spy)
    return names


class _Counter(DispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
