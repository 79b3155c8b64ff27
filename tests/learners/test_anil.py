"""ANIL on features: computed once for each task, where the network says where its trunk ends."""

import pytest
import torch
from helpers import F64, LEARNERS, distance, encoded, labelled, regressor
from torch.utils.flop_counter import FlopCounterMode

import fmeta
from fmeta.core import fold
from fmeta.core._types import as_it_is

KEY = fmeta.key(2)
SGD = fmeta.sgd(0.1)
LEARNER, META, TASKS = LEARNERS["anil-encoder"].learner, LEARNERS["anil-encoder"].learner.init(KEY), labelled(KEY)


def operations(learner, gradient, meta, tasks):
    with FlopCounterMode(display=False) as counter:
        grads = fmeta.meta_grad(learner, gradient)(meta, tasks)[0]
    return counter.get_total_flops(), grads


@pytest.mark.parametrize("gradient", [fmeta.unrolled(), fmeta.adjoint()], ids=["unrolled", "adjoint"])
def test_features_halve_the_operations_of_second_order_anil(gradient):
    model = fmeta.models.conv4(5, width=32)
    tasks = fmeta.testing.random_classification(KEY, tasks=1, shots=5, query=5, ways=5, shape=(1, 28, 28))
    tasks = fmeta.core.tree.tree_map(lambda t: t.float() if t.is_floating_point() else t, tasks)
    once, every = (
        fmeta.anil(it, fmeta.cross_entropy, optimizer=SGD, steps=5) for it in (model, model._replace(parts=None))
    )
    meta = once.init(KEY)
    few, grads = operations(once, gradient, meta, tasks)
    many, expected = operations(every, gradient, meta, tasks)
    print(f"{many / 1e6:.1f} -> {few / 1e6:.1f} MFLOP, {many / few:.2f} times fewer")
    assert many > 2 * few
    assert distance(grads, expected) < 1e-4


@pytest.mark.parametrize(
    ("pattern", "once"),
    [
        ("head.*", True),
        ("head.weight", True),
        ("head.bias, head.weight", True),
        ("*", False),
        ("head*", False),
        ("*.bias", False),
        ("!hidden1.*", False),
        ("head.*, hidden2.bias", False),
    ],
)
def test_the_inner_steps_see_features_where_the_head_alone_adapts(pattern, once):
    net = regressor()
    learner = fmeta.anil(net, fmeta.mse, adapt=pattern, optimizer=SGD, steps=2)
    plain = fmeta.anil(net._replace(parts=None), fmeta.mse, adapt=pattern, optimizer=SGD, steps=2)
    assert (learner.inner.prepare is not as_it_is) is once
    assert plain.inner.prepare is as_it_is
    meta, tasks = learner.init(KEY), fmeta.testing.random_regression(KEY)
    for gradient in (fmeta.unrolled(), fmeta.adjoint(), fmeta.truncated(1)):
        found, expected = (fmeta.meta_grad(it, gradient)(meta, tasks)[0] for it in (learner, plain))
        assert distance(found, expected) < 1e-12


@pytest.mark.parametrize(
    "model",
    [
        fmeta.models.mlp([4, 6, 3], torch.tanh, F64),
        fmeta.models.mlp([4, 3], torch.tanh, F64),
        fmeta.models.with_head(fmeta.models.mlp([4, 5], dtype=F64), 3, features=5, head="cosine"),
        encoded(noisy=True),
        fmeta.models.conv4(3, width=4, size=16, norm="frozen", form="pool", dtype=F64),
        fmeta.models.conv4(3, width=4, size=16, norm="task", dtype=F64),
        fmeta.models.conv4(3, width=4, size=16, film=2, norm="group", dtype=F64),
        fmeta.models.conv2(3, size=16, dtype=F64),
        fmeta.models.resnet12(3, widths=(4, 4), size=16, channels=1, dtype=F64),
    ],
)
def test_head_after_trunk_is_the_network(model):
    params = model.init(KEY)
    x = labelled(KEY, shape=(1, 16, 16) if "conv1.weight" in params or "block1.conv1.weight" in params else (4,))
    x = x.support.x[0]
    if "norm1.offset" in params:
        x = fmeta.InContext(x, x + 0.1)
    if any(".film" in name for name in params):
        x = (x, torch.ones(2, dtype=F64))
    named = fmeta.core.tree.named_leaves(params)
    head = fmeta.core.tree.matching(tuple(named), model.parts.pattern)
    features = model.parts.trunk(params, x)
    assert torch.equal(model.parts.head(params, features), model.apply(params, x))
    moved = fmeta.core.tree.replace_leaves(params, {name: named[name] + 1 for name in head})
    assert head
    assert torch.equal(model.parts.trunk(moved, x), features)
    if model.noisy is not None:
        noisy = model.parts.head(params, model.parts.noisy(params, x, KEY))
        assert torch.equal(noisy, model.noisy(params, x, KEY))


def test_an_encoder_without_a_head_is_one_piece():
    assert fmeta.models.conv4(None).parts is None
    assert fmeta.models.resnet12(None).parts is None
    assert fmeta.models.conv2(None).parts is None


def test_dropout_is_drawn_once_for_each_adaptation():
    learner, sample, _ = LEARNERS["anil-dropout"]
    meta, tasks = learner.init(KEY), sample(KEY)
    task = fmeta.core.tree.tree_map(lambda t: t[0], tasks)
    first, again = (learner.inner.prepare(meta, task.support, task.key).x for _ in range(2))
    other = learner.inner.prepare(meta, task.support, fold(task.key, 1)).x
    assert torch.equal(first, again)
    assert distance(first, other) > 1e-3
    with pytest.raises(fmeta.InputError, match="no key"):
        learner.inner.prepare(meta, task.support, ())


def test_a_network_whose_noise_is_not_told_apart_is_one_piece():
    model = encoded(noisy=True)
    model = model._replace(parts=model.parts._replace(noisy=None))
    assert fmeta.anil(model, fmeta.cross_entropy, optimizer=SGD, steps=1).inner.prepare is as_it_is


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.x, r"Inner\.prepare: gave a Tensor; expected Examples"),
        (lambda s: s._replace(y=s.y + 0), r"gave another y; expected the support set's own"),
        (lambda s: s._replace(y=()), r"gave another y; expected the support set's own"),
        (lambda s: s._replace(weight=torch.ones(6)), r"gave another weight; expected the support set's own"),
        (lambda s: s._replace(x=s.x[1:]), r"gave x \[5, 4\] for 6 support examples; expected \[6, …\]"),
        (lambda s: s._replace(x={"a": s.x, "b": s.x.sum()}), r"gave x\.b \[\] for 6 support examples"),
    ],
)
def test_what_is_prepared_is_x_alone(change, expected):
    learner = fmeta.with_inner(LEARNER, LEARNER.inner._replace(prepare=lambda meta, support, key: change(support)))
    for gradient in (fmeta.unrolled(), fmeta.adjoint()):
        with pytest.raises(fmeta.InputError, match=expected):
            fmeta.meta_grad(learner, gradient)(META, TASKS)


def test_what_is_prepared_may_hold_integers_and_several_leaves():
    """Leaves without a derivative pass through the recursion."""
    own = LEARNER.inner

    def prepare(meta, support, key):
        found = own.prepare(meta, support, key).x
        return support._replace(x={"features": found, "row": torch.arange(len(found))})

    def loss(fast, meta, batch, at):
        return own.loss(fast, meta, batch._replace(x=batch.x["features"] * (1 + batch.x["row"][:, None])), at)

    learner = fmeta.with_inner(LEARNER, own._replace(prepare=prepare, loss=loss))
    fmeta.testing.check_learner(
        learner, TASKS, laws=["preparing equals computing every step", "equals plain autograd", "batch equals loop"]
    )


def test_a_lower_precision_takes_the_parts_along():
    model = fmeta.core._precision.in_dtype(fmeta.models.mlp([4, 6, 3]), torch.bfloat16)
    params, x = model.init(KEY), torch.randn(5, 4)
    assert torch.equal(model.parts.head(params, model.parts.trunk(params, x)), model.apply(params, x))
