"""What the learners that compare with the support set share: who belongs to which class, and with what weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core._checks import InputError, check_counts, check_labels, hidden
from fmeta.core._types import Examples


def check_ways(call: str, ways: int) -> None:
    if isinstance(ways, int) and ways < 2:
        raise InputError(f"{call}(ways={ways}): expected at least 2 classes")
    check_counts(call, ways=ways)


def one_hot(call: str, y: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """`[example, way]`: 1 in the column of each label, 0 elsewhere.

    A label out of range is an error in eager mode; in a compiled function, which cannot raise one, its row is NaN, at
    which `fit` stops.
    """
    check_labels(call, y, ways)
    found = (y[:, None] == torch.arange(ways, device=y.device)).to(dtype)
    return torch.where(((y >= 0) & (y < ways))[:, None], found, torch.nan)


def membership(call: str, support: Examples, ways: int, dtype: torch.dtype) -> Tensor:
    """`[example, way]`: the weight of an example in the column of its class, 0 elsewhere."""
    member = one_hot(call, support.y, ways, dtype)
    return member * support.weight[:, None].to(dtype) if isinstance(support.weight, Tensor) else member


def absence(member: Tensor) -> Tensor:
    """`[way]`, to be added to logits: 0 for a class with support examples, the end of the scale for one without.

    That takes the class out of the softmax and of its gradients, so a task with fewer classes than `ways` is itself.
    It is finite, because padding of that class has weight 0 and 0·∞ is NaN.
    """
    held = member.sum(0)
    return torch.zeros_like(held).masked_fill(held == 0, torch.finfo(held.dtype).min / 2)


def check_query(call: str, query: Examples, held: Tensor) -> Tensor:
    """A query example of a class that the support does not hold, bool `[way]`, is an error in eager mode.

    Returns a factor for the loss, `[]`: 1, or NaN (which stops `fit`) where a compiled function meets one.
    """
    stray = ~held[query.y.to(torch.int64).clamp(0, len(held) - 1)]
    if isinstance(query.weight, Tensor):
        stray = stray & (query.weight != 0)
    if not hidden(stray):
        label = int(torch.func.debug_unwrap(torch.where(stray, query.y, -1)).max())
        if label >= 0:
            raise InputError(
                f"{call}: a query example is of class {label}, which has no support example; expected the classes of "
                "the support set; draw support and query from the same classes"
            )
    return torch.where(stray.any(), torch.nan, 1.0)


def check_features(call: str, features: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or features.ndim != 2:
        came = f"shape {list(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise InputError(f"{call}: the encoder gave {came}; expected [example, feature]; flatten or pool it")
    return features


def prototypes(call: str, features: Tensor, support: Examples, ways: int) -> tuple[Tensor, Tensor]:
    """The mean features of each class by the examples' weights, `[example, feature]` -> `[way, feature]`, 0 where it
    has no examples; and `absence`.
    """
    member = membership(call, support, ways, check_features(call, features).dtype)
    held = member.sum(0)
    return (member.mT @ features) / (held + (held == 0))[:, None], absence(member)
