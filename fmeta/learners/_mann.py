"""Memory-augmented networks: an LSTM with an external memory learns from a stream of labelled examples."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fmeta.core._checks import InputError, check_counts, check_model
from fmeta.core._losses import accuracy, cross_entropy, weighted_mean
from fmeta.core._random import fold, uniform
from fmeta.core._similarity import cosines
from fmeta.core._types import Examples, Learner, Model, Tree
from fmeta.core.tree import scalar_like
from fmeta.gradients import unrolled
from fmeta.learners._classes import check_features, check_ways, one_hot
from fmeta.learners._lstm import LSTM, init_lstm, lstm_step


class MANNParams(NamedTuple):
    encoder: Tree
    controller: LSTM
    key: dict[str, Tensor]  # weight [head·cell, hidden], bias
    gate: Tensor  # [head], before the σ: write where was read (1) or where is least used (0)
    output: dict[str, Tensor]  # weight [way, hidden + head·cell], bias


class Memory(NamedTuple):
    """What passes from one example of the stream to the next."""

    cells: Tensor  # [slot, cell]
    usage: Tensor  # [slot]
    read: Tensor  # [head, slot] the last read weights
    found: Tensor  # [head·cell] what they read
    hidden: Tensor
    state: Tensor


def mann(
    encoder: Model,
    *,
    ways: int,
    features: int,
    hidden: int = 200,
    slots: int = 128,
    cell: int = 40,
    heads: int = 4,
    decay: float = 0.99,
    instances: int = 10,
) -> Learner:
    """Memory-augmented neural networks (Santoro et al. 2016, http://proceedings.mlr.press/v48/santoro16.html).

    A task is a stream: `query.x` is `(inputs, previous)`, where `previous` holds the label of the example before
    (`ways` at the first), and the support set is empty. `fmeta.tasks.stream` makes such tasks of episodes. For example
    t, with the input encoder(xₜ) beside the one-hot label before it, an LSTM gives hₜ, each head a key
    k = tanh(W hₜ + b), and

        least used:  the slots of smallest usage, one for each head, are cleared
        write:       wʷ = σ(g) wʳₜ₋₁ + (1 − σ(g)) wˡᵘₜ₋₁,    Mₜ(i) = Mₜ₋₁(i) + wʷ(i) k
        read:        wʳₜ = softmaxᵢ cos(k, Mₜ(i)),    rₜ = Σᵢ wʳₜ(i) Mₜ(i)
        usage:       wᵘₜ = γ wᵘₜ₋₁ + Σ wʳₜ + Σ wʷ
        prediction:  logits = V [hₜ, rₜ] + c

    The reads of the step before enter the LSTM too. The loss is the mean cross-entropy over the stream. Reported are
    `accuracy` and `instance 1`, `instance 2` …: the accuracy where a class is seen for the 1st, 2nd … time.

    Args:
        encoder: `x -> [example, feature]`. It sees the whole stream at once, so no batch statistics, which would look
            ahead: `conv4(None, norm="group")`.
        ways: N, classes of a stream.
        features: the encoder's.
        hidden: of the LSTM.
        slots: of the memory.
        cell: length of a slot.
        heads: that write and read.
        decay: γ, how slowly use is forgotten.
        instances: up to which time a class is seen the accuracy is reported; NaN where no class comes so often.
    """
    check_model("mann", encoder)
    check_ways("mann", ways)
    check_counts("mann", features=features, hidden=hidden, slots=slots, cell=cell, heads=heads, instances=instances)
    if heads > slots or not 0.0 <= decay <= 1.0:
        raise InputError(f"mann(heads={heads}, slots={slots}, decay={decay}): expected heads <= slots, decay in 0 .. 1")

    def init(key: Tensor) -> MANNParams:
        params = encoder.init(fold(key, 0))
        like = scalar_like(params, key)

        def dense(number: int, outputs: int, inputs: int) -> dict[str, Tensor]:
            bound = inputs**-0.5
            weight = uniform(fold(key, number), (outputs, inputs), -bound, bound, like.dtype)
            return {"weight": weight, "bias": like.new_zeros(outputs)}

        controller = init_lstm(fold(key, 1), features + ways, hidden, like.dtype, hidden + heads * cell)
        keys, output = dense(2, heads * cell, hidden), dense(3, ways, hidden + heads * cell)
        return MANNParams(params, controller, keys, like.new_zeros(heads), output)

    def begin(meta: MANNParams) -> Memory:
        def zeros(*shape: int) -> Tensor:
            return meta.gate.new_zeros(shape)

        return Memory(zeros(slots, cell), zeros(slots), zeros(heads, slots), zeros(heads * cell), *zeros(2, hidden))

    def step(meta: MANNParams, memory: Memory, x: Tensor) -> Memory:
        recurrent = torch.cat([memory.hidden, memory.found])
        h, state = lstm_step(meta.controller, x, recurrent, memory.state)
        keys = F.linear(h, **meta.key).tanh().view(heads, cell)
        place = torch.arange(slots, device=x.device)
        unused = (memory.usage.argsort(stable=True)[:heads, None] == place).to(x.dtype)
        gate = meta.gate.sigmoid()[:, None]
        write = gate * memory.read + (1.0 - gate) * unused
        cells = memory.cells * (1.0 - unused.sum(0))[:, None] + write.mT @ keys
        # a slot is empty at first, where the slope of a plain cosine has no bound
        read = cosines(keys, cells, 1e-4).softmax(-1)
        usage = decay * memory.usage + read.sum(0) + write.sum(0)
        return Memory(cells, usage, read, (read @ cells).flatten(), h, state)

    def predict(fast: Tree, meta: MANNParams, x: Tree) -> Tensor:
        if not (isinstance(x, tuple) and len(x) == 2):
            raise InputError(
                "mann: x is not (inputs, previous labels); expected a stream; make it with fmeta.tasks.stream(sampler)"
            )
        inputs, previous = x
        found = check_features("mann", encoder.apply(meta.encoder, inputs))
        told = one_hot("mann", previous, ways + 1, found.dtype)[:, :ways]
        seen, memory = [], begin(meta)
        for given in torch.cat([found, told], -1):
            memory = step(meta, memory, given)
            seen.append(torch.cat([memory.hidden, memory.found]))
        return F.linear(torch.stack(seen), **meta.output)

    def loss(fast: Tree, meta: MANNParams, query: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        logits = predict(fast, meta, query.x)
        right = accuracy(logits, query.y)
        counts = one_hot("mann", query.y, ways, right.dtype)
        weight = query.weight.to(right.dtype) if isinstance(query.weight, Tensor) else torch.ones_like(right)
        time = ((weight > 0)[:, None] * counts).cumsum(0).mul(counts).sum(-1)  # the how-manieth of its class
        reported = {"accuracy": weighted_mean(right, query.weight, "accuracy")}
        for i in range(1, instances + 1):
            here = weight * (time == i)
            reported[f"instance {i}"] = (here * right).sum() / here.sum()
        return weighted_mean(cross_entropy(logits, query.y), query.weight, "mann"), reported

    return Learner(init, lambda meta, support, key: (), predict, loss, None, unrolled(), "mann", "logits")
