"""Learners that compare with the support set, against their papers' formulas written as loops."""

import math

import pytest
import torch
from helpers import F64, drawn
from torch.nn import functional as F

import fmeta
from fmeta.core import InputError, fold, normal
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(31)
ENCODER = fmeta.models.mlp([4, 8, 5], torch.tanh, F64)
WAYS = 3
META = ENCODER.init(KEY)
SUPPORT, QUERY = drawn(fold(KEY, 1), [4, 1, 2]), drawn(fold(KEY, 2), [3, 3, 3])
Z, ZQ = ENCODER.apply(META, SUPPORT.x), ENCODER.apply(META, QUERY.x)
WEIGHTED = SUPPORT._replace(weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 1.5, 0.2], dtype=F64))


def predicted(learner, meta, support=SUPPORT, x=QUERY.x):
    return learner.predict(learner.adapt(meta, support, ()), meta, x)


def rows_of(n, support=SUPPORT):
    return [i for i, y in enumerate(support.y.tolist()) if y == n]


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("support", [SUPPORT, WEIGHTED])
def test_protonet_is_the_similarity_to_the_class_means(kind, support):
    weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones(len(Z), dtype=F64)
    expected = torch.empty(len(ZQ), WAYS, dtype=F64)
    for n in range(WAYS):
        rows = rows_of(n)
        mean = sum(weight[i] * Z[i] for i in rows) / sum(weight[i] for i in rows)
        for j, z in enumerate(ZQ):
            cosine = 3.0 * F.cosine_similarity(z, mean, dim=0)
            expected[j, n] = cosine if kind == "cosine" else -3.0 * ((z - mean) ** 2).sum()
    learner = fmeta.protonet(ENCODER, ways=WAYS, distance=kind, scale=3.0)
    assert distance(predicted(learner, META, support), expected) < 1e-10


@pytest.mark.parametrize("features", [5, 40])
def test_ridge_solves_the_normal_equations_in_either_form(features):
    encoder = fmeta.models.mlp([4, features], torch.tanh, F64)
    learner = fmeta.ridge(encoder, ways=WAYS, damping=0.7)
    meta = learner.init(KEY)._replace(scale=torch.tensor(2.0, dtype=F64), bias=torch.tensor(0.3, dtype=F64))
    for support in (SUPPORT, WEIGHTED):
        weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones(len(Z), dtype=F64)
        x, xq = (F.pad(encoder.apply(meta.encoder, e.x), (0, 1), value=1.0) for e in (support, QUERY))
        gram = sum(w * torch.outer(row, row) for w, row in zip(weight, x, strict=True))
        target = sum(
            w * torch.outer(row, F.one_hot(y, WAYS).to(F64)) for w, row, y in zip(weight, x, support.y, strict=True)
        )
        solution = torch.linalg.solve(gram + 0.7 * torch.eye(len(gram), dtype=F64), target)
        assert distance(predicted(learner, meta, support), 2.0 * xq @ solution + 0.3) < 1e-10


def test_relation_scores_every_pair_of_summed_class_and_example():
    comparison = fmeta.models.mlp([10, 6, 1], torch.tanh, F64)
    learner = fmeta.relation(ENCODER, comparison, ways=WAYS)
    meta = learner.init(KEY)
    z, zq = (ENCODER.apply(meta.encoder, e.x) for e in (SUPPORT, QUERY))
    expected = torch.empty(len(zq), WAYS, dtype=F64)
    for n in range(WAYS):
        total = sum(z[i] for i in rows_of(n))
        for j in range(len(zq)):
            expected[j, n] = comparison.apply(meta.comparison, torch.cat([total, zq[j]])[None]).sigmoid().item()
    assert distance(predicted(learner, meta), expected) < 1e-12
    loss, _ = learner.loss(learner.adapt(meta, SUPPORT, ()), meta, QUERY)
    assert abs(loss - ((expected - F.one_hot(QUERY.y, WAYS)) ** 2).sum(-1).mean()) < 1e-12


def test_relation_compares_feature_maps_too():
    encoder = fmeta.from_module(torch.nn.Conv2d(1, 2, 3, padding=1).double())
    comparison = fmeta.from_module(
        torch.nn.Sequential(torch.nn.Conv2d(4, 1, 3), torch.nn.Flatten(), torch.nn.Linear(4, 1)).double()
    )
    learner = fmeta.relation(encoder, comparison, ways=WAYS)
    support, query = drawn(KEY, [1, 1, 1], (1, 4, 4)), drawn(fold(KEY, 1), [2, 1, 1], (1, 4, 4))
    assert predicted(learner, learner.init(KEY), support, query.x).shape == (4, WAYS)
    two = fmeta.relation(ENCODER, fmeta.models.mlp([10, 2], torch.tanh, F64), ways=WAYS)
    meta = two.init(KEY)
    with pytest.raises(InputError, match=r"relation: comparison gave \[12, 2\] for 12 pairs; expected one score"):
        predicted(two, meta, SUPPORT, QUERY.x[:4])


def votes(z, zq, weight, scale=1.0):
    expected = torch.zeros(len(zq), WAYS, dtype=F64)
    for j, q in enumerate(zq):
        shares = [w * math.exp(scale * F.cosine_similarity(q, s, dim=0)) for w, s in zip(weight, z, strict=True)]
        for share, y in zip(shares, SUPPORT.y, strict=True):
            expected[j, y] += share / sum(shares)
    return expected.log()


@pytest.mark.parametrize("support", [SUPPORT, WEIGHTED])
def test_matching_is_a_vote_weighted_by_the_cosine(support):
    learner = fmeta.matching(ENCODER, ways=WAYS, scale=2.0)
    meta = learner.init(KEY)
    z, zq = (ENCODER.apply(meta.encoder, e.x) for e in (SUPPORT, QUERY))
    weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones(len(z), dtype=F64)
    assert distance(predicted(learner, meta, support), votes(z, zq, weight, 2.0)) < 1e-9


def test_matching_with_full_context_reads_the_support_as_torchs_lstm_does():
    """g against nn.LSTM, f against the formulas of the appendix."""
    learner = fmeta.matching(ENCODER, ways=WAYS, full_context=5, reads=3)
    meta = learner.init(KEY)
    context = meta.context
    z, zq = (ENCODER.apply(meta.encoder, e.x) for e in (SUPPORT, QUERY))
    lstm = torch.nn.LSTM(5, 5, bidirectional=True).double()
    for suffix, cell in (("", context.forward), ("_reverse", context.backward)):
        for name, value in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias_ih", "bias")):
            getattr(lstm, f"{name}_l0{suffix}").data = cell[value]
        getattr(lstm, f"bias_hh_l0{suffix}").data.zero_()
    with torch.no_grad():
        both = lstm(z)[0]
    g = z + both[:, :5] + both[:, 5:]
    assert distance(learner.adapt(meta, SUPPORT, ()).support, g) < 1e-12
    found = []
    for q in zq:
        h = c = torch.zeros(5, dtype=F64)
        for _ in range(3):
            r = (g @ h).softmax(0) @ g
            gates = context.attention["weight_ih"] @ q + context.attention["weight_hh"] @ torch.cat([h, r])
            i, f, o_in, o = (gates + context.attention["bias"]).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * o_in.tanh()
            h = o.sigmoid() * c.tanh() + q
        found.append(h)
    assert distance(predicted(learner, meta), votes(g, torch.stack(found), torch.ones(len(g), dtype=F64))) < 1e-9


BUILD = {
    "protonet": lambda encoder=ENCODER, **more: fmeta.protonet(encoder, **{"ways": WAYS, **more}),
    "ridge": lambda encoder=ENCODER, **more: fmeta.ridge(encoder, **{"ways": WAYS, **more}),
    "matching": lambda encoder=ENCODER, **more: fmeta.matching(encoder, **{"ways": WAYS, **more}),
    "relation": lambda encoder=ENCODER, **more: fmeta.relation(
        encoder, fmeta.models.mlp([10, 1], torch.tanh, F64), **{"ways": WAYS, **more}
    ),
}


@pytest.mark.parametrize("name", BUILD)
def test_what_does_not_fit_is_named(name):
    learner = BUILD[name]()
    meta = learner.init(KEY)
    with pytest.raises(InputError, match=rf"{name}: a query example is of class 2, which has no support example"):
        learner.loss(learner.adapt(meta, drawn(KEY, [2, 2, 0]), ()), meta, QUERY)
    with pytest.raises(InputError, match=rf"{name}: labels run from 0 to 3"):
        learner.adapt(meta, drawn(KEY, [1, 1, 1, 1]), ())
    with pytest.raises(InputError, match=rf"{name}\(ways=1\): expected at least 2"):
        BUILD[name](ways=1)
    with pytest.raises(InputError, match=r"evaluate\(steps=\[1\]\): .* takes no inner steps"):
        fmeta.evaluate(learner, meta, tree_map(lambda t: t[None], fmeta.Task(SUPPORT, QUERY)), steps=[1])
    if name != "relation":
        flat = BUILD[name](fmeta.Model(ENCODER.init, lambda p, x: ENCODER.apply(p, x)[:, None]))
        with pytest.raises(
            InputError, match=rf"{name}: the encoder gave shape \[7, 1, 5\]; expected \[example, feature\]"
        ):
            flat.adapt(meta, SUPPORT, ())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fmeta.protonet(ENCODER, ways=3, distance="euclid"), "unknown distance; did you mean 'euclidean'"),
        (lambda: fmeta.protonet(ENCODER, ways=3, scale=0.0), r"protonet\(scale=0.0\): expected a positive number"),
        (lambda: fmeta.ridge(ENCODER, ways=3, damping=-1.0), r"ridge\(damping=-1.0\): expected a positive number"),
        (lambda: fmeta.matching(ENCODER, ways=3, reads=0), r"matching\(reads=0\): expected a whole number"),
        (lambda: fmeta.matching(ENCODER, ways=3, scale=-2.0), r"matching\(scale=-2.0\): expected a positive number"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_full_context_of_another_size_than_the_features_is_refused():
    learner = fmeta.matching(ENCODER, ways=WAYS, full_context=6)
    with pytest.raises(InputError, match=r"matching\(full_context=6\): the encoder gave 5 features"):
        learner.adapt(learner.init(KEY), SUPPORT, ())


def test_each_learns_a_task_family_that_chance_does_not_solve():
    """Classes are directions in a plane of a ten-dimensional space; the encoder must find the plane."""
    plane = normal(fold(KEY, 9), (2, 10), torch.float32)

    def sample(key, count):
        def draw(k, shots):
            angle = fmeta.core.uniform(fold(key, 1), (count, WAYS, 1), 0.0, 2 * math.pi)
            centre = torch.cat([angle.cos(), angle.sin()], -1) @ plane
            noise = normal(fold(key, k), (count, WAYS * shots, 10), torch.float32)
            x = centre.repeat_interleave(shots, 1) + noise
            return fmeta.Examples(x, torch.arange(WAYS).repeat_interleave(shots).expand(count, -1).clone())

        return fmeta.Task(draw(2, 2), draw(3, 4))

    encoder = fmeta.models.mlp([10, 32, 8])
    ways = {
        "protonet": fmeta.protonet(encoder, ways=WAYS, metrics={"accuracy": fmeta.accuracy}),
        "ridge": fmeta.ridge(encoder, ways=WAYS, damping=1.0, metrics={"accuracy": fmeta.accuracy}),
        "matching": fmeta.matching(encoder, ways=WAYS, scale=5.0, metrics={"accuracy": fmeta.accuracy}),
        "relation": fmeta.relation(
            encoder, fmeta.models.mlp([16, 32, 1]), ways=WAYS, metrics={"accuracy": fmeta.accuracy}
        ),
    }
    for name, learner in ways.items():
        trainer = fmeta.trainer(learner, fmeta.adam(3e-3))
        state, held_out = trainer.init(KEY), sample(fold(KEY, 77), 200)
        before = fmeta.evaluate(learner, state.meta, held_out).mean("accuracy")[0]
        for k in range(150):
            state, _ = trainer.step(state, sample(fold(KEY, 1000 + k), 16))
        after = fmeta.evaluate(learner, state.meta, held_out).mean("accuracy")[0]
        assert after > before + 0.05, f"{name}: {before:.3f} before, {after:.3f} after training"
