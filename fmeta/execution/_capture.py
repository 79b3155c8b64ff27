"""`capture`: a whole training step as one CUDA graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmeta.core._torch import copy_all
from fmeta.core.tree import tree_flatten, tree_leaves, tree_unflatten
from fmeta.execution._compile import CompileWarning
from fmeta.execution._interrupt import interruptible
from fmeta.execution._signature import differences, signature


def capture(step: Callable[..., Any], *, warm_up: int = 3) -> Callable[..., Any]:
    """`step`, a pure function of tensors, recorded as one CUDA graph at its first call and replayed from then on.

    One launch then does what took thousands: sampling from the key, inner loops, meta-gradient and optimizer, provided
    all of it is inside and nothing in it waits for the device:

        step = fmeta.capture(lambda state: trainer.step(state, sample(fmeta.fold(key, state.step), 32)))

    Inputs are copied into the graph's own, results out of it, so the caller may keep them. Where the inputs are not on
    a CUDA device, their shapes change, or recording fails, `step` runs as it is, with one `CompileWarning`; its results
    are the same. It may be compiled already (`fmeta.compile`).

    Args:
        step: whatever it returns must be tensors (in any tree), and a function of its arguments alone.
        warm_up: calls before the recording, in which compiling and measuring happen.
    """
    graph: _Graph | None = None
    problem: str | None = None

    @functools.wraps(step, updated=())
    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal graph, problem
        if problem is not None:
            return step(*args, **keywords)
        seen = signature(args, keywords)
        if graph is None:
            problem = _obstacle(args, keywords)
            if problem is None:
                try:
                    with interruptible():
                        graph = _Graph(step, args, keywords, seen, warm_up)
                except RuntimeError as error:  # what CUDA refuses to record
                    problem = f"recording failed: {str(error).splitlines()[0][:200]}"
        elif seen != graph.seen:
            problem = f"its input changed: {differences(graph.seen, seen)}; expected the shapes of the first call"
        if graph is None or problem is not None:
            graph = None
            name = getattr(step, "__name__", "step")
            warnings.warn(f"capture({name}): {problem}; it runs as it is from now on", CompileWarning, stacklevel=2)
            return step(*args, **keywords)
        return graph(args, keywords)

    return call


def _obstacle(args: Any, keywords: Any) -> str | None:
    leaves = tree_leaves((args, keywords))
    elsewhere = {str(leaf.device) for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_cuda}
    if not leaves:
        return "it has no tensor among its arguments, so nothing could change from call to call"
    if elsewhere:
        return f"its arguments are on {', '.join(sorted(elsewhere))}; expected all on one CUDA device"
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return "an argument holds something other than tensors, which a graph would keep as it is now"
    return None


class _Graph:
    """The recording, with inputs and outputs of its own."""

    def __init__(self, step: Callable[..., Any], args: Any, keywords: Any, seen: dict[str, str], warm_up: int) -> None:
        leaves, structure = tree_flatten((args, keywords))
        self.seen, self.inputs = seen, [leaf.clone() for leaf in leaves]
        mine, named = tree_unflatten(self.inputs, structure)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                step(*mine, **named)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs, self.structure = tree_flatten(step(*mine, **named))

    def __call__(self, args: Any, keywords: Any) -> Any:
        copy_all(self.inputs, tree_flatten((args, keywords))[0])
        self.graph.replay()
        return tree_unflatten([leaf.clone() for leaf in self.outputs], self.structure)
