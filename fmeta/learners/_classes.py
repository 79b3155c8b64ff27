"""What the learners that compare with the support set share: who belongs to which class, and with what weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import InputError, check_counts, check_labels, hidden
from fmeta.core._types import Examples


def check_ways(call: str, ways: int) -> None:
    if isinstance(ways, int) and ways < 2:
        raise InputError(f"{call}(ways={ways}): expected at least 2 classes")
    check_counts(call, ways=ways)


def membership(call: str, support: Examples, ways: int, dtype: torch.dtype) -> Tensor:
    """`[example, way]`: the weight of an example in the column of its class, 0 elsewhere.

    A class without support examples is an error in eager mode, and stays a column of zeros inside a compiled function.
    """
    check_labels(call, support.y, ways)
    member = F.one_hot(support.y.to(torch.int64), ways).to(dtype)
    if isinstance(support.weight, Tensor):
        member = member * support.weight[:, None].to(dtype)
    if not hidden(member):
        held = torch.func.debug_unwrap(member.sum(0))
        if bool((held == 0).any()):
            raise InputError(
                f"{call}: a class of 0 .. {ways - 1} has no support example; expected every class in every support "
                "set; set ways to the classes of a task"
            )
    return member


def check_features(call: str, features: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or features.ndim != 2:
        came = f"shape {list(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise InputError(f"{call}: the encoder gave {came}; expected [example, feature]; flatten or pool it")
    return features


def prototypes(call: str, features: Tensor, support: Examples, ways: int) -> Tensor:
    """The mean features of each class, `[example, feature]` -> `[way, feature]`, by the examples' weights.

    A class without support examples is an error in eager mode, and NaN (which stops `fit`) inside a compiled function.
    """
    member = membership(call, support, ways, check_features(call, features).dtype)
    return (member.mT @ features) / member.sum(0)[:, None]
