"""Bad input gets an error that names the call, what came, what was expected, and the cure."""

import math

import numpy as np
import pytest
import torch
from helpers import F64, labelled, regressor, vectors

import fmeta
from fmeta import Examples, InputError, Task
from fmeta.core.tree import tree_leaves
from fmeta.execution._compile import plan

KEY = fmeta.key(0)
LEARNER = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
META = LEARNER.init(KEY)
CLASSES = fmeta.maml(fmeta.models.mlp([4, 3], dtype=F64), fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)
GRADS = fmeta.meta_grad(LEARNER)


def with_labels(change):
    tasks = labelled(KEY)
    return tasks._replace(support=tasks.support._replace(y=change(tasks.support.y)))


@pytest.mark.parametrize("gradient", [fmeta.unrolled(), fmeta.adjoint()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1, r"cross_entropy: labels run from \d to 3; expected 0 to 2, because the predictions have 3"),
        (lambda y: y - 1, r"cross_entropy: labels run from -1 to 1; expected 0 to 2"),
        (lambda y: y.double(), r"cross_entropy: labels are torch.float64; expected an integer tensor.*long"),
        (lambda y: y[..., None], r"cross_entropy: labels of shape \[6, 1\] for 6 predictions; expected one integer"),
    ],
)
def test_labels(change, message, gradient):
    with pytest.raises(InputError, match=message):
        fmeta.meta_grad(CLASSES, gradient)(CLASSES.init(KEY), with_labels(change))


def test_labels_out_of_range_are_nan_where_they_cannot_be_read():
    """A compiled graph cannot raise: the loss becomes NaN, which the trainer withholds and reports."""
    step = fmeta.compile(fmeta.trainer(CLASSES, fmeta.sgd(0.1)).step, backend="aot_eager")
    state = fmeta.trainer(CLASSES, fmeta.sgd(0.0)).init(KEY)
    with pytest.raises(InputError, match="labels run from 1 to 3"):  # the first batch is looked at before
        step(state, with_labels(lambda y: y + 1))
    state, _ = step(state, with_labels(lambda y: y))
    after, info = step(state, with_labels(lambda y: y + 1))
    assert info.loss.isnan()
    assert after.bad == 1
    assert all(torch.equal(after.meta[n], state.meta[n]) for n in state.meta)


def tasks_with(**parts):
    return vectors(KEY)._replace(**parts)


GOOD = vectors(KEY)
BAD_TASKS = {
    "length": (
        tasks_with(support=Examples(GOOD.support.x, GOOD.support.y[:, :-1])),
        r"meta_grad: tasks.support has support.x: 6, support.y: 5 examples; expected x, y and weight of one length",
    ),
    "weight": (
        tasks_with(query=GOOD.query._replace(weight=torch.ones(4, 3))),
        r"query.weight: 3 examples",
    ),
    "no task axis": (
        Task(Examples(torch.randn(6, 2), torch.zeros(6)), GOOD.query),
        r"tasks.support.y is \[6\]; expected a tensor \[task, example, ...\] with a leading task axis",
    ),
    "one task with its key": (
        Task(*(Examples(e.x[0], e.y[0]) for e in GOOD[:2]), GOOD.key[0]),
        r"tasks.key is torch.int64 \[\]; expected int64 \[task\]",
    ),
    "another number of tasks": (
        tasks_with(query=Examples(GOOD.query.x[:2], GOOD.query.y[:2])),
        r"query.x: 2.*expected the same leading task axis",
    ),
    "no tasks": (
        Task(*(Examples(e.x[:0], e.y[:0]) for e in GOOD[:2])),
        r"expected the same leading task axis, at least 1",
    ),
    "a list": (tasks_with(support=Examples([[1.0]], [[1.0]])), r"expected a tensor"),
    "a tuple": ((GOOD.support, GOOD.query), r"tasks is a tuple; expected fmeta.Task"),
    "pairs": (Task((GOOD.support.x, GOOD.support.y), GOOD.query), r"tasks.support is a tuple; expected fmeta.Examples"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_tasks(name):
    tasks, message = BAD_TASKS[name]
    with pytest.raises(InputError, match=message):
        GRADS(META, tasks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clone().requires_grad_(), r"meta_grad: meta.head.bias requires grad; .*detach"),
        (lambda t: t.long(), r"meta.head.bias is torch.int64; expected a floating-point tensor"),
        (lambda t: 3.0, r"meta.head.bias is float; expected a floating-point tensor"),
    ],
)
def test_meta(change, message):
    with pytest.raises(InputError, match=message):
        GRADS(META | {"head.bias": change(META["head.bias"])}, GOOD)


@pytest.mark.parametrize(
    "optimizer", [fmeta.sgd(0.1), fmeta.adam(0.1), fmeta.chain(fmeta.clip_by_global_norm(1.0), fmeta.momentum(0.1))]
)
def test_empty_meta(optimizer):
    """Nothing is learned and nothing adapts; what is measured is right."""
    module = torch.nn.Linear(2, 1).double().requires_grad_(False)
    model = fmeta.from_module(torch.nn.Sequential(module))
    learner = fmeta.maml(model, fmeta.mse, optimizer=optimizer, steps=2)
    meta, expected = learner.init(KEY), ((module(GOOD.query.x) - GOOD.query.y) ** 2).mean((1, 2))
    assert meta == {}
    ways = [
        fmeta.unrolled(),
        fmeta.adjoint(),
        fmeta.first_order(),
        fmeta.truncated(1),
        fmeta.difference(),
        fmeta.evolution(0.1, 2),
    ]
    for way in [*ways, fmeta.chunked(fmeta.adjoint(), 2), fmeta.skipping(fmeta.adjoint())]:
        grads, info = fmeta.meta_grad(learner, way)({}, GOOD)
        assert grads == {}
        torch.testing.assert_close(info.losses, expected)
    assert fmeta.check_meta_grad(learner, {}, GOOD).exact
    assert fmeta.adapt_tasks(learner, {}, GOOD) == {}
    torch.testing.assert_close(fmeta.evaluate(learner, {}, GOOD, steps=(0, 2)).values["loss"][:, 1], expected)
    trainer = fmeta.trainer(learner, optimizer)
    state, info = trainer.step(trainer.init(KEY), GOOD)
    assert (state.meta, int(state.step), float(info.gradient_norm)) == ({}, 1, 0.0)


def test_a_frozen_encoder_is_a_learner():
    encoder = fmeta.from_module(torch.nn.Sequential(torch.nn.Linear(4, 3)).double().requires_grad_(False))
    tasks = fmeta.testing.random_classification(KEY)
    for learner in (
        fmeta.protonet(encoder, ways=3),
        fmeta.fine_tune(encoder, ways=3, optimizer=fmeta.sgd(0.1), steps=2),
    ):
        meta = learner.init(KEY)
        assert meta == {}
        assert tree_leaves(fmeta.adapt_tasks(learner, meta, tasks))[0].shape[0] == len(tasks.key)
        assert fmeta.evaluate(learner, meta, tasks, ways=3).values["loss"].isfinite().all()
    with pytest.raises(InputError, match="requires_grad=False on the whole network"):  # there is nothing to train
        fmeta.fit(
            fmeta.protonet(encoder, ways=3),
            fmeta.adam(0.1),
            lambda key, count: fmeta.testing.random_classification(key, count),
            key=KEY,
            iterations=2,
            meta_batch=3,
        )


def test_compile_checks_its_first_call():
    step = fmeta.compile(GRADS, backend="aot_eager")
    with pytest.raises(InputError, match="expected a floating-point tensor"):
        step(META | {"head.bias": META["head.bias"].long()}, GOOD)


class TestModels:
    def test_a_module_is_not_a_model(self):
        with pytest.raises(InputError, match=r"maml: model is the module Linear; expected fmeta.from_module"):
            fmeta.maml(torch.nn.Linear(2, 1), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)

    def test_a_function_is_not_a_model(self):
        with pytest.raises(InputError, match=r"anil: model is a function; expected fmeta.Model"):
            fmeta.anil(lambda x: x, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)

    def test_a_compiled_apply_is_refused(self):
        net = regressor()
        compiled = net._replace(apply=torch.compile(net.apply))
        for make in (fmeta.maml, fmeta.anil, fmeta.reptile):
            with pytest.raises(InputError, match=r"torch.compile.*fmeta.compile\(trainer.step\)"):
                make(compiled, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)

    def test_a_compiled_apply_deep_in_a_users_learner_is_found(self):
        net = regressor()
        hidden = torch.compile(net.apply)
        outer = LEARNER._replace(predict=lambda fast, meta, x: hidden(fast, x))
        with pytest.raises(InputError, match=r"check_meta_grad: the model is wrapped by torch.compile"):
            fmeta.check_meta_grad(outer, META, GOOD)


class TestLosses:
    def test_mse_refuses_to_broadcast(self):
        with pytest.raises(InputError, match=r"mse\(prediction \[4, 1\], y \[4\]\): shapes differ"):
            fmeta.mse(torch.zeros(4, 1), torch.zeros(4))

    def test_weights_need_a_loss_per_example(self):
        mean = fmeta.maml(regressor(), torch.nn.functional.mse_loss, optimizer=fmeta.sgd(0.1), steps=1)
        weighted = tasks_with(query=GOOD.query._replace(weight=torch.ones(4, 5, dtype=F64)))
        fmeta.meta_grad(mean)(META, GOOD)
        with pytest.raises(InputError, match="scalar together with example weights"):
            fmeta.meta_grad(mean)(META, weighted)

    def test_a_loss_of_another_shape(self):
        odd = fmeta.maml(regressor(), lambda p, y: (p - y) ** 2, optimizer=fmeta.sgd(0.1), steps=1)
        with pytest.raises(InputError, match=r"got shape \[6, 1\]; expected \[example\] or a scalar"):
            fmeta.meta_grad(odd)(META, GOOD)


class TestLearners:
    @pytest.mark.parametrize("make", [fmeta.maml, fmeta.anil, fmeta.reptile])
    @pytest.mark.parametrize("steps", [0, -1, 2.5, None, True])
    def test_steps(self, make, steps):
        with pytest.raises(InputError, match=rf"{make.__name__}\(steps={steps}\): expected a whole number, at least 1"):
            make(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=steps)

    def test_steps_of_another_integer_type(self):
        learner = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=np.int64(2))
        assert torch.isfinite(fmeta.meta_grad(learner, fmeta.adjoint())(META, GOOD)[1].loss)

    def test_a_pattern_that_matches_nothing_lists_near_names(self):
        learner = fmeta.anil(regressor(), fmeta.mse, adapt="head.wieght", optimizer=fmeta.sgd(0.1), steps=1)
        with pytest.raises(
            InputError, match=r"wieght' matches no parameter; did you mean 'head.weight'\? known: hidden1"
        ):
            fmeta.meta_grad(learner)(META, GOOD)

    def test_minibatches_need_a_key_and_enough_examples(self):
        def grads(batch, tasks):
            learner = fmeta.reptile(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1, batch=batch)
            return fmeta.meta_grad(learner)(META, tasks)

        with pytest.raises(InputError, match=r"the task has none; .*fmeta.split"):
            grads(2, GOOD._replace(key=()))
        with pytest.raises(InputError, match=r"the support set has 6 examples; expected at most 6"):
            grads(7, GOOD)
        with pytest.raises(InputError, match=r"reptile\(batch=0\): expected a whole number, at least 1"):
            grads(0, GOOD)


class TestGradientsThatDoNotFit:
    encoder = LEARNER._replace(inner=None, name="encoder")

    @pytest.mark.parametrize("gradient", [fmeta.adjoint(), fmeta.first_order(), fmeta.truncated(1), fmeta.difference()])
    def test_no_inner_loop(self, gradient):
        with pytest.raises(InputError, match=r"encoder has none; .*these do: unrolled\(\)"):
            fmeta.meta_grad(self.encoder, gradient)

    @pytest.mark.parametrize("last", [-1, 2, 0.5])
    def test_truncated_beyond_the_steps(self, last):
        with pytest.raises(
            InputError, match=rf"truncated\(last={last}\): maml takes 1 inner steps; expected a whole number, 0 to 1"
        ):
            fmeta.meta_grad(LEARNER, fmeta.truncated(last))

    @pytest.mark.parametrize("make", ["meta_sgd", "anil"])
    def test_difference_of_unlike_trees(self, make):
        extra = {"lr": 0.1} if make == "meta_sgd" else {"optimizer": fmeta.sgd(0.1)}
        learner = getattr(fmeta, make)(regressor(), fmeta.mse, steps=1, **extra)
        with pytest.raises(InputError, match=rf"those of {make} are not; .*unrolled\(\), adjoint\(\), truncated"):
            fmeta.meta_grad(learner, fmeta.difference())(learner.init(KEY), GOOD)


def test_unknown_scope():
    with pytest.raises(InputError, match="did you mean 'whole'"):
        plan("wole")


@pytest.mark.parametrize(
    "call",
    [
        lambda: fmeta.models.mlp([3]),
        lambda: fmeta.models.conv4(5, form="stride2"),
        lambda: fmeta.models.conv4(5, form="pool", size=8),
        lambda: fmeta.models.conv2(5, pool="median"),
        lambda: fmeta.models.mlp([2, 1]).apply(fmeta.models.mlp([2, 1]).init(KEY), torch.ones(3)),
        lambda: fmeta.models.conv4(5).apply(fmeta.models.conv4(5).init(KEY), torch.ones(2, 28, 28)),
    ],
)
def test_models(call):
    with pytest.raises(InputError, match="expected"):
        call()


class TestSlips:
    """What people type by mistake."""

    def test_a_factory_that_was_not_called(self):
        for factory in (fmeta.first_order, fmeta.truncated):
            with pytest.raises(InputError, match=rf"got the factory; .*call it: {factory.__name__}"):
                fmeta.meta_grad(LEARNER, factory)

    @pytest.mark.parametrize("optimizer", [0.01, torch.optim.Adam])
    def test_no_optimizer(self, optimizer):
        with pytest.raises(InputError, match=r"maml: optimizer is .*expected fmeta.sgd"):
            fmeta.maml(regressor(), fmeta.mse, optimizer=optimizer, steps=1)
        with pytest.raises(InputError, match="trainer: optimizer is"):
            fmeta.trainer(LEARNER, optimizer)

    def test_no_key(self):
        with pytest.raises(InputError, match=r"the key is int; expected an int64 tensor; use fmeta.key"):
            fmeta.trainer(LEARNER, fmeta.sgd(0.1)).init(0)
        with pytest.raises(InputError, match=r"tasks.key is int; expected int64"):
            GRADS(META, GOOD._replace(key=0))

    def test_empty_examples(self):
        empty = Examples(GOOD.support.x[:, :0], GOOD.support.y[:, :0])
        with pytest.raises(InputError, match=r"tasks.support has no examples"):
            GRADS(META, GOOD._replace(support=empty))
        with pytest.raises(InputError, match=r"tasks.support lacks x or y"):
            GRADS(META, GOOD._replace(support=Examples((), GOOD.support.y)))

    def test_weights_of_another_shape(self):
        column = GOOD.query._replace(weight=torch.ones(4, 5, 1, dtype=F64))
        with pytest.raises(InputError, match=r"weights of shape \[5, 1\] for 5 examples; expected \[5\]"):
            GRADS(META, GOOD._replace(query=column))

    def test_rates(self):
        for rate in (None, "fast"):
            with pytest.raises(InputError, match="expected a number, a tensor, a tree of tensors, or a schedule"):
                fmeta.sgd(rate)
        learner = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(torch.ones(3)), steps=1)
        with pytest.raises(InputError, match="expected one for each parameter"):
            fmeta.meta_grad(learner)(META, GOOD)
        with pytest.raises(InputError, match="expected a finite weight_decay >= 0"):
            fmeta.adamw(0.1, weight_decay=math.nan)

    def test_a_metric_called_loss(self):
        with pytest.raises(InputError, match="rename it"):
            fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1, metrics={"loss": fmeta.mse})

    def test_every_pattern_must_match(self):
        learner = fmeta.anil(regressor(), fmeta.mse, adapt="head.*, hiden1.*", optimizer=fmeta.sgd(0.1), steps=1)
        with pytest.raises(InputError, match=r"'hiden1.\*' matches no parameter; did you mean 'hidden1"):
            fmeta.meta_grad(learner)(META, GOOD)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, y: p.argmax(-1) != 0, r"maml: got torch.bool; expected a floating-point tensor"),
        (lambda p, y: (p > 0).sum(), r"maml: got torch.int64; expected a floating-point tensor"),
        (lambda p, y: float(p.shape[0]), r"maml: got a float; expected a floating-point tensor"),
        (lambda p, y: (p, y), r"maml: got a tuple; expected a floating-point tensor"),
        (lambda p, y: p - y, r"maml: got shape \[\d, 1\]; expected \[example\] or a scalar"),
    ],
)
def test_a_loss_is_a_floating_point_number_for_each_example(loss, message):
    learner = fmeta.maml(regressor(), loss, optimizer=fmeta.sgd(0.1), steps=1)
    with pytest.raises(InputError, match=message):
        fmeta.meta_grad(learner)(META, GOOD)


def test_a_metric_is_named_too():
    right = {"right": lambda p, y: p[:, 0] > y[:, 0]}
    learner = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1, metrics=right)
    with pytest.raises(InputError, match=r"right: got torch\.bool; expected a floating-point tensor"):
        fmeta.meta_grad(learner)(META, GOOD)


@pytest.mark.parametrize("value", [-1.0, math.nan])
@pytest.mark.parametrize("part", ["support", "query"])
def test_example_weights_below_0_are_refused(part, value):
    """They would make the loss fall where it should rise."""
    examples = getattr(GOOD, part)
    weight = torch.ones(examples.y.shape[:2], dtype=F64)
    weight[1, 2] = value
    tasks = tasks_with(**{part: examples._replace(weight=weight)})
    with pytest.raises(InputError, match="maml: example weights below 0 or NaN; expected weights >= 0"):
        GRADS(META, tasks)
    weight[1, 2] = 0.0
    assert GRADS(META, tasks)[1].loss.isfinite()
