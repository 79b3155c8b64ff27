"""How near features are to one another, `[example, feature]` and `[other, feature]` -> `[example, other]`."""

from __future__ import annotations

from torch import Tensor


def squared_distances(x: Tensor, others: Tensor) -> Tensor:
    """‖x − o‖²."""
    return (x * x).sum(-1, keepdim=True) - 2.0 * (x @ others.mT) + (others * others).sum(-1)


def cosines(x: Tensor, others: Tensor, eps: float = 1e-12) -> Tensor:
    """x·o/(‖x‖‖o‖), with eps added to the squared norms: its root is near where the slope stops growing."""
    return _unit(x, eps) @ _unit(others, eps).mT


def _unit(x: Tensor, eps: float) -> Tensor:
    return x * ((x * x).sum(-1, keepdim=True) + eps).rsqrt()
