"""What a caller's own code gives is looked at once, eagerly, and named where it does not fit."""

import warnings

import pytest
import torch
from helpers import F64, LEARNERS
from torch import nn

import fmeta
from fmeta import Examples, Task

KEY = fmeta.key(0)


def tasks_of(count=3, dtype=torch.float32, **changes):
    draw = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(count, 6, 4, generator=draw, dtype=F64).to(dtype),
        (torch.arange(6) % 3).expand(count, -1).contiguous(),
    )
    task = Task(Examples(x, y), Examples(x + 1 if dtype.is_floating_point else x, y), fmeta.split(KEY, count))
    parts = {p: getattr(task, p)._replace(**fields) for p, fields in changes.items()}
    return task._replace(**parts)


def maml(model=None, loss=fmeta.cross_entropy, **options):
    model = model or fmeta.models.mlp([4, 8, 3], torch.tanh)
    return fmeta.maml(model, loss, optimizer=fmeta.sgd(0.1), steps=1, **options)


def by_meta_grad(learner, tasks):
    fmeta.meta_grad(learner)(learner.init(KEY), tasks)


def by_fit(learner, tasks):
    fmeta.fit(learner, fmeta.adam(1e-3), lambda key, n: tasks, key=KEY, iterations=1, meta_batch=len(tasks.query.y))


def by_evaluate(learner, tasks):
    fmeta.evaluate(learner, learner.init(KEY), tasks)


def by_compiled(learner, tasks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fmeta.compile(fmeta.meta_grad(learner), backend="aot_eager")(learner.init(KEY), tasks)


CALLS = {"meta_grad": by_meta_grad, "fit": by_fit, "evaluate": by_evaluate, "compiled": by_compiled}
everywhere = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Doubles(nn.Module):
    def forward(self, x):
        return x.mul_(2.0)


def own_model(function):
    """A Model of a function, without from_module's own care."""
    plain = fmeta.models.mlp([4, 8, 3], torch.tanh)
    return fmeta.Model(plain.init, lambda params, x: function(plain.apply, params, x))


@everywhere
@pytest.mark.parametrize("dtype", [F64, torch.int64, torch.uint8, torch.bfloat16])
def test_inputs_in_another_dtype_are_named_with_the_cure(call, dtype):
    with pytest.raises(
        fmeta.InputError, match=r"tasks\.support\.x is .* and the parameters are float32; expected x\.to"
    ):
        call(maml(), tasks_of(dtype=dtype))


@everywhere
def test_inputs_changed_in_place_are_named_and_stay(call):
    def doubles(apply, params, x):
        return apply(params, x.mul_(2.0))

    tasks = tasks_of()
    before = tasks.support.x.clone()
    with pytest.raises(fmeta.InputError, match=r"in place \(tasks\.(support|query)\.x\)"):
        call(maml(own_model(doubles)), tasks)
    assert torch.equal(tasks.support.x, before)


@everywhere
def test_a_tuple_for_a_prediction_is_named(call):
    def both(apply, params, x):
        return apply(params, x), x

    learner = maml(own_model(both))
    with pytest.raises(fmeta.InputError, match=r"a tuple.*picked at the end of forward"):
        call(learner, tasks_of())


def bad(part, field, value, at=(1, 2)):
    leaf = getattr(getattr(tasks_of(), part), field).clone()
    leaf[at] = value
    return tasks_of(**{part: {field: leaf}})


@pytest.mark.parametrize("call", [by_fit, by_evaluate])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(call, value):
    with pytest.raises(fmeta.InputError, match=r"tasks\.query\.x holds 4 numbers that are not, the first in task 1"):
        call(maml(), bad("query", "x", value))


def test_with_skipping_a_task_that_is_not_finite_is_left_out():
    tasks = bad("support", "x", float("nan"))
    learner = maml()
    state = fmeta.fit(
        learner, fmeta.adam(1e-3), lambda key, n: tasks, key=KEY, iterations=2, meta_batch=3,
        gradient=fmeta.skipping(fmeta.unrolled()),
    )  # fmt: skip
    assert state.step == 2


@pytest.mark.parametrize("call", [by_fit, by_evaluate, by_meta_grad])
def test_weights_below_zero_or_all_zero_are_named(call):
    weight = torch.ones(3, 6)
    with pytest.raises(fmeta.InputError, match=r"tasks\.support\.weight holds -1"):
        call(maml(), tasks_of(support={"weight": weight - 2.0 * torch.eye(3, 6)}))
    with pytest.raises(fmeta.InputError, match=r"tasks\.query\.weight holds 0 alone"):
        call(maml(), tasks_of(query={"weight": weight * 0}))


@everywhere
def test_labels_out_of_range_are_named(call):
    tasks = tasks_of()
    with pytest.raises(fmeta.InputError, match="labels run from 0 to 4"):
        call(maml(), tasks._replace(support=tasks.support._replace(y=tasks.support.y * 2)))


@everywhere
def test_a_loss_of_ones_own_must_be_a_real_number(call):
    learner = maml()
    odd = learner._replace(loss=lambda fast, meta, query: (learner.loss(fast, meta, query)[0].long(), {}))
    with pytest.raises(fmeta.InputError, match=r"loss is torch\.int64 \[\]"):
        call(odd, tasks_of())
    odd = learner._replace(loss=lambda fast, meta, query: (learner.predict(fast, meta, query.x).sum(-1), {}))
    with pytest.raises(fmeta.InputError, match=r"loss is torch\.float32 \[6\]"):
        call(odd, tasks_of())


@pytest.mark.parametrize("cut", [lambda y: y.detach(), lambda y: torch.zeros_like(y) + y.round().detach()])
def test_a_gradient_of_zero_everywhere_is_refused_by_fit(cut):
    learner = maml(own_model(lambda apply, params, x: cut(apply(params, x))))
    with pytest.raises(fmeta.InputError, match=r"exactly zero in every parameter.*detach"):
        by_fit(learner, tasks_of())


def test_no_grad_in_forward_is_refused_by_fit():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                return self.layer(x)

    with pytest.raises(fmeta.InputError, match=r"exactly zero.*torch\.no_grad"):
        by_fit(maml(fmeta.from_module(Cut())), tasks_of())


def test_a_network_that_is_frozen_as_a_whole_is_refused_by_fit_and_measured_by_evaluate():
    frozen = fmeta.from_module(nn.Linear(4, 5).requires_grad_(False))
    learner = fmeta.protonet(frozen, ways=3)
    with pytest.raises(fmeta.InputError, match=r"requires_grad=False on the whole network, which fmeta\.evaluate"):
        by_fit(learner, tasks_of())
    by_evaluate(learner, tasks_of())


def test_a_loss_of_zero_may_have_no_gradient():
    x = torch.zeros(3, 6, 4)
    tasks = Task(Examples(x, torch.zeros(3, 6, 3)), Examples(x, torch.zeros(3, 6, 3)), fmeta.split(KEY, 3))
    zero = fmeta.Model(lambda key: {"w": torch.zeros(4, 3)}, lambda params, x: x @ params["w"])
    by_fit(maml(zero, fmeta.mse), tasks)


@pytest.mark.parametrize("name", ["maml-dropout", "anil-dropout"])
def test_dropout_is_drawn_where_tasks_have_no_keys(name):
    learner, sample, _ = LEARNERS[name]

    def keyless(key, count):
        return sample(key, count)._replace(key=())

    def trained(key):
        return fmeta.fit(learner, fmeta.sgd(0.1), keyless, key=key, iterations=1, meta_batch=2).meta

    given, again = (fmeta.evaluate(learner, trained(KEY), keyless(KEY, 3)).mean("loss") for _ in range(2))
    assert given == again
    other = sample(KEY, 3)._replace(key=fmeta.split(fmeta.key(9), 3))
    assert given != fmeta.evaluate(learner, trained(KEY), other).mean("loss")
    with pytest.raises(fmeta.InputError, match=r"no key|key is tuple"):
        by_meta_grad(learner, keyless(KEY, 3))


def test_a_gradient_given_by_name_is_told_what_it_is():
    with pytest.raises(fmeta.InputError, match=r"gradient='adjont'.*fmeta\.adjoint\(\).*did you mean 'adjoint'"):
        fmeta.meta_grad(maml(), "adjont")
    with pytest.raises(fmeta.InputError, match="gradient='unrolled'"):
        fmeta.trainer(maml(), fmeta.adam(1e-3), "unrolled")


@pytest.mark.parametrize("loss", [8, "mse", nn.CrossEntropyLoss])
def test_a_loss_that_is_no_function_is_named(loss):
    with pytest.raises(fmeta.InputError, match=r"maml\(loss=.*expected a function"):
        maml(loss=loss)


def test_metrics_may_be_bare_functions():
    def top_two(logits, y):
        return (logits.topk(2).indices == y[:, None]).any(-1).float()

    for metrics in (top_two, [top_two], {"top_two": top_two}):
        learner = maml(metrics=metrics)
        assert 0 <= fmeta.evaluate(learner, learner.init(KEY), tasks_of()).mean("top_two")[0] <= 1
    with pytest.raises(fmeta.InputError, match="'top_two' is 3"):
        maml(metrics={"top_two": 3})


def test_the_look_is_once():
    calls = []

    def counted(apply, params, x):
        calls.append(len(x))
        return apply(params, x)

    learner = maml(own_model(counted))
    step, meta = fmeta.meta_grad(learner, fmeta.unrolled()), learner.init(KEY)
    step(meta, tasks_of())
    first = len(calls)
    step(meta, tasks_of())
    assert len(calls) - first < first


def test_a_mask_of_minus_infinity_and_missing_targets_are_the_losses_to_judge():
    model = own_model(lambda apply, params, x: apply(params, x["x"]) + 0 * x["mask"].softmax(-1).sum())
    mask = torch.nn.Transformer.generate_square_subsequent_mask(4).expand(3, 6, 4, 4)
    tasks = tasks_of()
    masked = tasks._replace(**{
        part: e._replace(x={"x": e.x, "mask": mask}) for part, e in (("support", tasks.support), ("query", tasks.query))
    })  # fmt: skip
    for call in (by_fit, by_evaluate):
        call(maml(model), masked)

    def of_those_that_are_known(prediction, y):
        return torch.where(y.isnan(), 0.0, (prediction[:, 0] - y.nan_to_num()) ** 2)

    y = torch.where(torch.arange(6) < 2, torch.nan, 1.0).expand(3, 6)
    missing = tasks._replace(support=tasks.support._replace(y=y), query=tasks.query._replace(y=y))
    for call in (by_fit, by_evaluate):
        call(maml(loss=of_those_that_are_known), missing)


def test_an_input_may_be_called_weight():
    model = own_model(lambda apply, params, x: apply(params, x["weight"]))
    tasks = tasks_of()
    named = tasks._replace(
        support=tasks.support._replace(x={"weight": tasks.support.x}),
        query=tasks.query._replace(x={"weight": tasks.query.x}),
    )
    by_evaluate(maml(model), named)


def test_evolution_may_see_nothing_at_first():
    def steps(prediction, y):
        return (prediction.argmax(-1) != y).float()

    with pytest.warns(UserWarning, match="exactly zero.*more pairs"):
        fmeta.fit(
            maml(loss=steps), fmeta.adam(1e-3), lambda key, n: tasks_of(), key=KEY, iterations=1, meta_batch=3,
            gradient=fmeta.evolution(sigma=1e-9, pairs=1),
        )  # fmt: skip


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(fmeta.InputError, match="two are called alike"):
        maml(metrics=[lambda p, y: p[:, 0], lambda p, y: p[:, 1]])


def test_parameters_changed_in_place_are_named_and_stay():
    def halves(apply, params, x):
        params["head.weight"].mul_(0.5)
        return apply(params, x)

    learner = fmeta.protonet(own_model(halves), ways=3)
    meta = learner.init(KEY)
    before = meta["head.weight"].clone()
    with pytest.raises(fmeta.InputError, match=r"in place"):
        fmeta.evaluate(learner, meta, tasks_of())
    assert torch.equal(meta["head.weight"], before)
