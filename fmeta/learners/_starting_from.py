"""Meta-training that begins at given weights."""

from __future__ import annotations

from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError
from fmeta.core._types import Learner, Tree


def starting_from(learner: Learner, params: Tree) -> Learner:
    """`learner` whose `init` takes the leaves of `params` for those of the same names, and draws the others.

    So a net is pretrained, then meta-trained: `starting_from(maml(with_head(encoder, 5, …), …), {"encoder":
    pretrained.meta["encoder"]})` keeps the encoder and draws a new head.

    Raises:
        InputError: (when it first runs) a leaf of `params` that the learner's meta does not have, or in another shape.
    """

    def init(key: Tensor) -> Tree:
        drawn = learner.init(key)
        known, given = tree.named_leaves(drawn), tree.named_leaves(params)
        strange = [n for n, leaf in given.items() if n not in known or leaf.shape != known[n].shape]
        if strange or not given:
            what = f"{strange[0]!r} {list(given[strange[0]].shape)}" if strange else "nothing"
            raise InputError(
                f"starting_from({learner.name}): params hold {what}, which its meta does not; expected leaves of "
                + ", ".join(f"{n} {list(leaf.shape)}" for n, leaf in known.items())
            )
        return tree.replace_leaves(drawn, {n: given[n].detach().clone().to(known[n]) for n in given})

    return learner._replace(init=init)
