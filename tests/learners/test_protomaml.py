"""Proto-MAML starts as a prototypical network (Triantafillou et al. 2020)."""

import pytest
import torch
from helpers import F64, drawn, labelled
from torch.nn import functional as F

import fmeta
from fmeta import Examples, Task
from fmeta.core import fold
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(23)
ENCODER = fmeta.models.mlp([4, 8, 5], torch.tanh, F64)
WAYS = 3


def protomaml(encoder=ENCODER, steps=2, **more):
    return fmeta.protomaml(encoder, ways=WAYS, optimizer=fmeta.sgd(0.1), steps=steps, **more)


META = ENCODER.init(KEY)
SUPPORT, QUERY = drawn(fold(KEY, 1), [4, 1, 2]), drawn(fold(KEY, 2), [3, 3, 3])


def first_logits(learner, meta, support, x):
    fast = fmeta.trajectory(learner.inner, 0)(meta, support)[0]
    return learner.predict(fast, meta, x)


def distances(support, x, encoder=ENCODER, meta=META):
    """‖encoder(x) − prototype‖², the prototype of a class being the mean over its examples of weight above zero."""
    features, z = encoder.apply(meta, support.x), encoder.apply(meta, x)
    weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones(len(features), dtype=F64)
    means = []
    for c in range(WAYS):
        rows = [i for i in range(len(features)) if support.y[i] == c]
        means.append(sum(weight[i] * features[i] for i in rows) / sum(weight[i] for i in rows))
    return ((z[:, None] - torch.stack(means)) ** 2).sum(-1)


def up_to_a_constant(logits):
    return logits - logits.mean(-1, keepdim=True)


def padded(support):
    """Garbage of weight 0 between the examples, under every label."""
    count = len(support.y)
    x = torch.stack([support.x, torch.full_like(support.x, 7.0)], 1).flatten(0, 1)
    y = torch.stack([support.y, torch.arange(count) % WAYS], 1).flatten()
    return Examples(x, y, torch.tensor([1.0, 0.0], dtype=F64).repeat(count))


SUPPORTS = {
    "plain": SUPPORT,
    "one shot": drawn(fold(KEY, 3), [1, 1, 1]),
    "padded": padded(SUPPORT),
    "weighted": SUPPORT._replace(weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 1.5, 0.2], dtype=F64)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_before_the_first_step_the_logits_are_minus_the_squared_distances(name):
    logits = first_logits(protomaml(), META, SUPPORTS[name], QUERY.x)
    expected = -distances(SUPPORTS[name], QUERY.x)
    assert distance(up_to_a_constant(logits), up_to_a_constant(expected)) < 1e-12


def test_the_head_starts_from_twice_the_prototypes():
    fast = fmeta.trajectory(protomaml().inner, 0)(META, SUPPORT)[0]
    means = torch.stack([ENCODER.apply(META, SUPPORT.x)[c == SUPPORT.y].mean(0) for c in range(WAYS)])
    torch.testing.assert_close(fast.weight, 2 * means)
    torch.testing.assert_close(fast.bias, -(means**2).sum(-1))
    assert fast.encoder is META


@pytest.mark.parametrize("steps", [0, 2])
def test_other_names_for_the_classes_permute_the_logits(steps):
    learner, names = protomaml(), torch.tensor([2, 0, 1])

    def logits(support):
        fast = fmeta.trajectory(learner.inner, steps)(META, support)[-1]
        return learner.predict(fast, META, QUERY.x)

    renamed = logits(SUPPORT._replace(y=names[SUPPORT.y]))
    assert distance(renamed[:, names], logits(SUPPORT)) < 1e-12
    assert distance(renamed, logits(SUPPORT)) > 1e-2


def test_encoder_and_head_adapt_together():
    """Plain gradient descent of the cross entropy of F.linear(encoder(x), weight, bias) in all of them."""
    fast = {n: p.clone() for n, p in META.items()}
    means = torch.stack([ENCODER.apply(META, SUPPORT.x)[c == SUPPORT.y].mean(0) for c in range(WAYS)])
    fast |= {"w": 2 * means, "b": -(means**2).sum(-1)}
    for _ in range(2):
        fast = {n: p.detach().requires_grad_() for n, p in fast.items()}
        loss = F.cross_entropy(F.linear(ENCODER.apply(fast, SUPPORT.x), fast["w"], fast["b"]), SUPPORT.y)
        grads = torch.autograd.grad(loss, list(fast.values()))
        fast = {n: p - 0.1 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
    found = protomaml().adapt(META, SUPPORT, ())
    expected = [*(fast[n].detach() for n in META), fast["w"].detach(), fast["b"].detach()]
    assert distance([*found.encoder.values(), found.weight, found.bias], expected) < 1e-12


def batch_of(*supports):
    """Tasks from supports of one length."""
    support = tree_map(lambda *ts: torch.stack(ts), *supports)
    query = tree_map(lambda t: torch.stack([t] * len(supports)), QUERY)
    return Task(support, query)


def test_the_meta_gradient_passes_through_the_prototypes():
    """One step, by plain autograd; with the prototypes held constant it is another gradient."""

    def slope(constant):
        meta = {n: p.clone().requires_grad_() for n, p in META.items()}
        means = torch.stack([ENCODER.apply(meta, SUPPORT.x)[c == SUPPORT.y].mean(0) for c in range(WAYS)])
        means = means.detach().requires_grad_() if constant else means
        weight, bias = 2 * means, -(means**2).sum(-1)
        encoder = {n: p.clone() for n, p in meta.items()}  # apart from the prototypes
        loss = F.cross_entropy(F.linear(ENCODER.apply(encoder, SUPPORT.x), weight, bias), SUPPORT.y)
        fast = [*encoder.values(), weight, bias]
        grads = torch.autograd.grad(loss, fast, create_graph=True)
        *moved, weight, bias = (p - 0.1 * g for p, g in zip(fast, grads, strict=True))
        features = ENCODER.apply(dict(zip(meta, moved, strict=True)), QUERY.x)
        return torch.autograd.grad(F.cross_entropy(F.linear(features, weight, bias), QUERY.y), list(meta.values()))

    learner = protomaml(steps=1)
    for gradient in (fmeta.unrolled(), fmeta.adjoint()):
        found, _ = fmeta.meta_grad(learner, gradient)(META, batch_of(SUPPORT))
        assert distance(list(found.values()), list(slope(constant=False))) < 1e-10
        assert distance(list(found.values()), list(slope(constant=True))) > 1e-2


def test_it_works_on_a_convolutional_encoder():
    encoder = fmeta.models.conv4(None, width=4, size=16, activation=torch.tanh, dtype=F64)
    learner, support = protomaml(encoder), drawn(fold(KEY, 5), [2, 2, 2], (1, 16, 16))
    meta = learner.init(KEY)
    x = drawn(fold(KEY, 6), [1, 1, 1], (1, 16, 16)).x
    assert not any(name.startswith("head") for name in meta)
    expected = -distances(support, x, encoder, meta)
    assert distance(up_to_a_constant(first_logits(learner, meta, support, x)), up_to_a_constant(expected)) < 1e-10
    tasks = labelled(fold(KEY, 7), tasks=2, ways=WAYS, shape=(1, 16, 16))
    tasks = tasks._replace(support=tasks.support._replace(y=torch.arange(6).expand(2, 6) % WAYS))
    assert fmeta.check_meta_grad(learner, meta, tasks, directions=1).order == "exact"


# ---- what it refuses ---------------------------------------------------------------------------

MISSING = SUPPORT._replace(y=SUPPORT.y.clamp(max=1))
EMPTY = SUPPORT._replace(weight=(SUPPORT.y != 1).to(F64))


@pytest.mark.parametrize("support", [MISSING, EMPTY], ids=["no example", "weight 0"])
def test_a_query_of_a_class_without_support_raises(support):
    learner = protomaml()
    with pytest.raises(fmeta.InputError, match=r"protomaml: a query example is of class \d, which has no support"):
        learner.loss(learner.adapt(META, support, ()), META, QUERY)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_any_integer_type_give_the_same_start(dtype):
    inner = protomaml().inner
    found = inner.start(META, SUPPORT._replace(y=SUPPORT.y.to(dtype)), ())
    assert distance(found, inner.start(META, SUPPORT, ())) == 0


@pytest.mark.parametrize("gradient", [fmeta.unrolled, fmeta.adjoint])
def test_a_class_that_one_task_of_a_batch_lacks_raises(gradient):
    with pytest.raises(fmeta.InputError, match=r"protomaml: a query example is of class 2, which has no support"):
        fmeta.meta_grad(protomaml(), gradient())(META, batch_of(SUPPORT, MISSING))


def test_compiled_a_query_of_a_missing_class_is_not_a_number():
    """A graph cannot raise; NaN is what stops `fit`."""
    learner = protomaml()

    def loss(support, query):
        return learner.loss(learner.adapt(META, support, ()), META, query)[0]

    run = fmeta.compile(loss, backend="aot_eager")
    assert run(MISSING, QUERY).isnan()
    assert run(SUPPORT, QUERY).isfinite()
    assert run(MISSING, QUERY._replace(y=QUERY.y.clamp(max=1))).isfinite()


def test_labels_out_of_range_are_named():
    with pytest.raises(fmeta.InputError, match="labels run from 0 to 3; expected 0 to 2"):
        protomaml().adapt(META, SUPPORT._replace(y=SUPPORT.y.clone().index_fill_(0, torch.tensor([0]), 3)), ())


def test_an_encoder_that_gives_no_vectors_is_named():
    image = fmeta.Model(ENCODER.init, lambda params, x: ENCODER.apply(params, x)[:, :, None])
    with pytest.raises(fmeta.InputError, match=r"protomaml: the encoder gave shape \[7, 5, 1\]"):
        protomaml(image).adapt(META, SUPPORT, ())


@pytest.mark.parametrize("ways", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(ways):
    with pytest.raises(fmeta.InputError, match=rf"protomaml\(ways={ways}\): expected at least 2"):
        fmeta.protomaml(ENCODER, ways=ways, optimizer=fmeta.sgd(0.1), steps=1)


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(steps):
    with pytest.raises(fmeta.InputError, match=rf"protomaml\(steps={steps}\): expected a whole number, at least 1"):
        protomaml(steps=steps)
