"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fmeta.core import InputError, Model, Tree, fold
from fmeta.models._layers import Params, init_film, init_layer, linear, modulate, with_linear_head
from fmeta.models._norms import told_apart


def mlp(
    sizes: Sequence[int],
    activation: Callable[[Tensor], Tensor] = torch.relu,
    dtype: torch.dtype = torch.float32,
    film: int | None = None,
) -> Model:
    """A perceptron with layers of the given sizes, input and output included: `[example, sizes[0]]` ->
    `[example, sizes[-1]]`. Parameters `hidden1.weight`, `hidden1.bias`, …, `head.weight`, `head.bias`.

    With `film` the input is `(x, embedding [film])`: every hidden layer, before its activation, is scaled and shifted
    by what is linear in the embedding (Perez et al. 2018, https://arxiv.org/abs/1709.07871).

    Raises InputError for fewer than two sizes, and for inputs of another width.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"mlp(sizes={list(sizes)}): expected at least an input and an output size, all >= 1")
    names = [f"hidden{i + 1}" for i in range(len(sizes) - 2)] + ["head"]

    def init(key: Tensor) -> Params:
        params: Params = {}
        for i, name in enumerate(names):
            params |= init_layer(fold(key, i), name, (sizes[i + 1], sizes[i]), dtype)
            if film is not None and name != "head":
                params |= init_film(fold(key, 1000 + i), f"{name}.film", sizes[i + 1], film, dtype)
        return params

    def trunk(params: Params, x: Tree) -> Tensor:
        x, told = (x, None) if film is None else told_apart("mlp", x, film)
        if x.ndim != 2 or x.shape[1] != sizes[0]:
            raise InputError(f"mlp({list(sizes)}): x has shape {list(x.shape)}; expected [example, {sizes[0]}]")
        for name in names[:-1]:
            x = linear(params, name, x)
            x = activation(x if told is None else modulate(params, f"{name}.film", x, told))
        return x

    return with_linear_head(init, trunk)
