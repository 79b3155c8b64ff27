"""The memory-augmented network, against its equations written as a loop over examples, heads and slots."""

import math

import pytest
import torch
from helpers import F64, labelled

import fmeta
from fmeta.core import InputError, fold
from fmeta.core.tree import tree_map

KEY = fmeta.key(61)
WAYS, HIDDEN, SLOTS, CELL, HEADS = 3, 6, 5, 4, 2
ENCODER = fmeta.models.mlp([4, 5], torch.tanh, F64)
SIZES = {"ways": WAYS, "features": 5, "hidden": HIDDEN, "slots": SLOTS, "cell": CELL, "heads": HEADS, "instances": 4}
LEARNER = fmeta.mann(ENCODER, **SIZES, decay=0.9)
META = LEARNER.init(KEY)
META = META._replace(gate=torch.tensor([0.4, -0.7], dtype=F64))
STREAMS = fmeta.tasks.stream(lambda k, count: labelled(k, tasks=count, shots=2, query=2), ways=WAYS)(fold(KEY, 1), 4)
ONE = tree_map(lambda t: t[0], STREAMS.query)


def by_hand(meta, x, previous):
    features = ENCODER.apply(meta.encoder, x)
    memory, usage = [[0.0] * CELL for _ in range(SLOTS)], [0.0] * SLOTS
    read = [[0.0] * SLOTS for _ in range(HEADS)]
    found, h, c = torch.zeros(HEADS * CELL, dtype=F64), torch.zeros(HIDDEN, dtype=F64), torch.zeros(HIDDEN, dtype=F64)
    logits = []
    for t in range(len(x)):
        told = torch.zeros(WAYS, dtype=F64)
        if previous[t] < WAYS:
            told[previous[t]] = 1.0
        gates = meta.controller["weight_ih"] @ torch.cat([features[t], told]) + meta.controller["bias"]
        i, f, g, o = (gates + meta.controller["weight_hh"] @ torch.cat([h, found])).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        keys = (meta.key["weight"] @ h + meta.key["bias"]).tanh().view(HEADS, CELL).tolist()
        least = sorted(range(SLOTS), key=lambda s: usage[s])[:HEADS]
        write = []
        for r in range(HEADS):
            share = 1 / (1 + math.exp(-meta.gate[r]))
            write.append([share * read[r][s] + (1 - share) * (s == least[r]) for s in range(SLOTS)])
        for s in range(SLOTS):
            before = [0.0] * CELL if s in least else memory[s]
            memory[s] = [before[d] + sum(write[r][s] * keys[r][d] for r in range(HEADS)) for d in range(CELL)]
        for r in range(HEADS):
            norm = math.sqrt(sum(k * k for k in keys[r]) + 1e-4)
            similar = [
                sum(k * m for k, m in zip(keys[r], row, strict=True)) / norm / math.sqrt(sum(m * m for m in row) + 1e-4)
                for row in memory
            ]
            total = sum(math.exp(s) for s in similar)
            read[r] = [math.exp(s) / total for s in similar]
        usage = [0.9 * usage[s] + sum(read[r][s] + write[r][s] for r in range(HEADS)) for s in range(SLOTS)]
        found = torch.tensor(
            [sum(read[r][s] * memory[s][d] for s in range(SLOTS)) for r in range(HEADS) for d in range(CELL)], dtype=F64
        )
        logits.append(meta.output["weight"] @ torch.cat([h, found]) + meta.output["bias"])
    return torch.stack(logits)


def test_the_prediction_is_that_of_the_equations():
    expected = by_hand(META, ONE.x[0], ONE.x[1].tolist())
    torch.testing.assert_close(LEARNER.predict((), META, ONE.x), expected)


def test_no_prediction_looks_ahead_or_at_its_own_label():
    x, previous = ONE.x
    before = LEARNER.predict((), META, ONE.x)
    later = previous.clone()
    later[6:] = (later[6:] + 1) % WAYS
    after = LEARNER.predict((), META, (torch.cat([x[:6], x[6:] + 1]), later))
    torch.testing.assert_close(after[:6], before[:6])
    assert not torch.allclose(after[6:], before[6:])


def test_a_stream_tells_the_label_of_the_example_before():
    episodes = labelled(fold(KEY, 1), tasks=4, shots=2, query=2)
    assert STREAMS.support == fmeta.Examples((), ())
    for t in range(4):
        y, previous = STREAMS.query.y[t].tolist(), STREAMS.query.x[1][t].tolist()
        assert previous == [WAYS, *y[:-1]]
        rows = {tuple(row.tolist()): label for row, label in zip(STREAMS.query.x[0][t], y, strict=True)}
        drawn = [*zip(episodes.support.x[t], episodes.support.y[t], strict=True)]
        drawn += [*zip(episodes.query.x[t], episodes.query.y[t], strict=True)]
        assert rows == {tuple(x.tolist()): int(label) for x, label in drawn}
    assert len({tuple(row) for row in STREAMS.query.y.tolist()}) > 1


def test_accuracy_is_told_by_the_time_a_class_is_seen():
    _, reported = LEARNER.loss((), META, ONE)
    right = (LEARNER.predict((), META, ONE.x).argmax(-1) == ONE.y).double().tolist()
    seen, values = dict.fromkeys(range(WAYS), 0), {i: [] for i in range(1, 5)}
    for y, value in zip(ONE.y.tolist(), right, strict=True):
        seen[y] += 1
        values[seen[y]].append(value)
    for i, of_time in values.items():
        assert len(of_time) == WAYS
        assert reported[f"instance {i}"] == pytest.approx(sum(of_time) / WAYS)
    assert reported["accuracy"] == pytest.approx(sum(right) / len(right))


def test_it_learns_to_bind_labels_that_change_from_stream_to_stream():
    """Two classes with fixed inputs whose labels are drawn anew: only memory can know them."""
    points = torch.eye(2)

    def sample(key, count):
        def one(k):
            order = fmeta.core.permutation(fold(k, 0), 2)
            which = fmeta.core.randint(fold(k, 1), 2, (8,))
            return fmeta.Task(
                fmeta.Examples(points[which[:4]], order[which[:4]]),
                fmeta.Examples(points[which[4:]], order[which[4:]]),
                fold(k, 2),
            )

        return fmeta.tasks.sampler(one)(key, count)

    streams = fmeta.tasks.stream(sample, ways=2)
    learner = fmeta.mann(fmeta.models.mlp([2, 8]), ways=2, features=8, hidden=16, slots=8, cell=8, heads=1, instances=2)
    trainer = fmeta.trainer(learner, fmeta.adam(1e-2))
    state = trainer.init(KEY)
    for k in range(150):
        state, _ = trainer.step(state, streams(fold(KEY, 100 + k), 32))
    result = fmeta.evaluate(learner, state.meta, streams(fold(KEY, 5), 100))
    assert result.mean("instance 2")[0] > 0.85
    assert result.mean("instance 1")[0] < result.mean("instance 2")[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fmeta.mann(ENCODER, **{**SIZES, "heads": 9}), r"heads=9, slots=5.*expected heads <= slots"),
        (lambda: fmeta.mann(ENCODER, **SIZES, decay=1.5), r"decay=1.5"),
        (lambda: fmeta.mann(ENCODER, **{**SIZES, "hidden": 0}), r"mann\(hidden=0\): expected a whole number"),
        (lambda: LEARNER.predict((), META, ONE.x[0]), r"expected a stream; make it with fmeta.tasks.stream"),
        (lambda: LEARNER.predict((), META, (ONE.x[0], ONE.y + 2)), r"labels run from"),
        (lambda: fmeta.tasks.stream(lambda k, n: labelled(k, tasks=n)._replace(key=()), ways=3)(KEY, 2), "with a key"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_learner_that_needs_a_support_set_refuses_a_stream():
    net = fmeta.models.mlp([4, 3], torch.tanh, F64)
    tasks = STREAMS._replace(query=STREAMS.query._replace(x=STREAMS.query.x[0]))
    for learner, message in (
        (fmeta.maml(net, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1), "the task has no support set"),
        (fmeta.protonet(net, ways=3), "protonet: the task has no support set"),
    ):
        with pytest.raises(InputError, match=message):
            fmeta.meta_grad(learner)(learner.init(KEY), tasks)
