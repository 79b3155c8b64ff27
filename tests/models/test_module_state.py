"""State outside the parameters: tables that are filled once are kept right, whatever moves is refused by its name."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import F64
from torch import nn
from torch.func import grad

import fmeta

KEY = fmeta.key(0)


def net_of(forward, **state):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3, dtype=F64)
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    self.register_buffer(name, value.clone())
                else:
                    setattr(self, name, value)

        def forward(self, x):
            return forward(self, x)

    return Net()


def over_tasks(model, x):
    return fmeta.over_tasks(model.apply)(model.init(KEY), x)


def inputs(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def with_table(net, x):
    if net.table is None or len(net.table) != len(x):
        net.table = torch.arange(len(x), dtype=x.dtype)[:, None].sin()
    return net.layer(x) + net.table


def test_a_table_that_depends_on_the_length_is_right_for_lengths_in_turn():
    model = fmeta.from_module(net_of(with_table, table=None))
    for length in (3, 3, 5, 3, 5, 5):
        x = inputs(2, length, 4)
        expected = torch.stack([net_of(with_table, table=None)(each) for each in x])
        torch.testing.assert_close(over_tasks(model, x), expected.detach())


def test_so_is_its_meta_gradient_and_its_compiled_one():
    learner = fmeta.maml(
        fmeta.from_module(net_of(with_table, table=None)), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1
    )
    plain = net_of(lambda net, x: net.layer(x) + torch.arange(len(x), dtype=x.dtype)[:, None].sin())
    reference = fmeta.maml(fmeta.from_module(plain), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    examples = fmeta.Examples(inputs(2, 4, 4), inputs(2, 4, 3, seed=1))
    tasks = fmeta.Task(examples, examples, fmeta.split(KEY, 2))
    meta = learner.init(KEY)
    expected, _ = fmeta.meta_grad(reference)(meta, tasks)
    step = fmeta.meta_grad(learner)
    for found in (fmeta.compile(step, backend="aot_eager")(meta, tasks)[0], *(step(meta, tasks)[0] for _ in range(2))):
        torch.testing.assert_close(found, expected)


def test_a_table_filled_while_tracing_leaves_nothing_behind():
    model = fmeta.from_module(net_of(with_table, table=None))
    x, params = inputs(3, 4), model.init(KEY)
    compiled = fmeta.compile(model.apply, backend="aot_eager")(params, x)
    torch.testing.assert_close(compiled, model.apply(params, x))


def in_place(net, x):
    return net.layer(x) / net.seen.add_(1)


def assigned(net, x):
    net.seen = net.seen + 1
    return net.layer(x) / net.seen


@pytest.mark.parametrize("forward", [in_place, assigned])
def test_a_buffer_that_moves_is_refused_by_name(forward):
    net = net_of(forward, seen=torch.zeros((), dtype=F64))
    with pytest.raises(fmeta.InputError, match=r"buffer 'seen' of the module \(Net\) changes with every call"):
        over_tasks(fmeta.from_module(net), inputs(2, 5, 4))
    assert net.seen == 0


def test_a_number_that_moves_is_refused_where_it_tells():
    def told(net, x):
        net.calls += 1
        return net.layer(x) / net.calls

    def counted(net, x):
        net.calls += 1
        return net.layer(x)

    with pytest.raises(fmeta.InputError, match="attribute 'calls'"):
        over_tasks(fmeta.from_module(net_of(told, calls=0)), inputs(2, 5, 4))
    net = net_of(counted, calls=0)
    torch.testing.assert_close(over_tasks(fmeta.from_module(net), inputs(2, 5, 4)), net.layer(inputs(2, 5, 4)).detach())


def test_statistics_of_the_first_batch_are_refused():
    def act_norm(net, x):
        if not net.ready:
            net.mean.copy_(x.mean(0))
            net.ready.fill_(True)
        return net.layer(x - net.mean)

    state = {"mean": torch.zeros(4, dtype=F64), "ready": torch.tensor(False)}
    net = net_of(act_norm, **state)
    with pytest.raises(fmeta.InputError, match=r"buffer 'mean'.*first call.*run the module"):
        over_tasks(fmeta.from_module(net), inputs(2, 5, 4))
    net(inputs(50, 4))  # the cure
    expected = net.layer(inputs(2, 5, 4) - net.mean).detach()
    torch.testing.assert_close(over_tasks(fmeta.from_module(net), inputs(2, 5, 4)), expected)


def test_kept_activations_do_no_harm():
    def keeps(net, x):
        net.seen = net.layer(x)
        return net.seen.tanh()

    net = net_of(keeps, seen=None)
    net(inputs(2, 4))  # the caller tried the network: what is kept has a history
    model = fmeta.from_module(net)
    for _ in range(2):
        torch.testing.assert_close(over_tasks(model, inputs(2, 5, 4)), net(inputs(2, 5, 4)).detach())


def test_an_input_changed_in_place_stays_as_it_was():
    net = net_of(lambda net, x: net.layer(x.mul_(2)))
    model, x = fmeta.from_module(net), inputs(2, 5, 4)
    for _ in range(2):
        torch.testing.assert_close(over_tasks(model, x), net.layer(2 * inputs(2, 5, 4)).detach())
    assert torch.equal(x, inputs(2, 5, 4))


def test_the_module_itself_keeps_nothing():
    net = net_of(with_table, table=None)
    over_tasks(fmeta.from_module(net), inputs(2, 5, 4))
    assert net.table is None


def test_one_look_for_each_kind_of_input():
    calls = []

    def counted(net, x):
        calls.append(len(x))
        return net.layer(x)

    model = fmeta.from_module(net_of(counted))
    for length in (3, 3, 5, 5, 3):
        over_tasks(model, inputs(2, length, 4))
    assert len(calls) == 5 + 2 * 2


def normed(net, x):
    if net.table is None:
        net.table = net.layer.weight / net.layer.weight.norm()
    return x @ net.table.mT


def by_device(net, x):
    """As LeViT keeps its attention biases in evaluation mode."""
    if x.device not in net.table:
        net.table[x.device] = net.layer.weight / net.layer.weight.norm()
    return x @ net.table[x.device].mT


@pytest.mark.parametrize(("forward", "empty"), [(normed, None), (by_device, {})])
def test_a_table_of_the_parameters_is_made_anew_in_every_call(forward, empty):
    model = fmeta.from_module(net_of(forward, table=empty))
    plain = fmeta.from_module(net_of(lambda net, x: x @ (net.layer.weight / net.layer.weight.norm()).mT))
    x, params = inputs(5, 4), model.init(KEY)
    for scale in (1.0, -2.0):
        moved = {n: scale * p + 0.1 for n, p in params.items()}
        torch.testing.assert_close(model.apply(moved, x), plain.apply(moved, x))
        slopes = [grad(lambda p, m=m: m.apply(p, x).sin().sum())(moved) for m in (model, plain)]
        torch.testing.assert_close(*slopes)
        assert slopes[0]["layer.weight"].any()


def in_place_once(net, x):
    if not net.ready:
        net.table.copy_(torch.arange(3, dtype=F64) * (net.layer.weight.sum() if net.of_weights else 1.0))
        net.ready.fill_(True)
    return net.layer(x) + net.table


@pytest.mark.parametrize("of_weights", [False, True])
def test_a_buffer_written_once_in_place_is_kept_unless_it_depends_on_the_parameters(of_weights):
    state = {"table": torch.zeros(3, dtype=F64), "ready": torch.tensor(False), "of_weights": of_weights}
    model = fmeta.from_module(net_of(in_place_once, **state))
    if of_weights:
        with pytest.raises(fmeta.InputError, match="buffer 'table'"):
            over_tasks(model, inputs(2, 5, 4))
        return
    x = inputs(2, 5, 4)
    expected = torch.stack([net_of(in_place_once, **state)(each) for each in x]).detach()
    torch.testing.assert_close(over_tasks(model, x), expected)


def test_a_scale_of_the_first_input_is_refused_even_where_zeros_are_no_input():
    def scaled(net, x):
        if not x.any():
            raise ValueError("zeros")
        if net.scale is None:
            net.scale = x.abs().max()
        return net.layer(x) / net.scale

    with pytest.raises(fmeta.InputError, match="attribute 'scale'"):
        over_tasks(fmeta.from_module(net_of(scaled, scale=None)), inputs(2, 5, 4))


class Counter:
    def __init__(self):
        self.calls = 0


def by_an_object(net, x):
    net.counter.calls += 1
    return net.layer(x) * net.counter.calls


def by_numpy(net, x):
    return net.layer(x) * np.random.rand()


def by_python(net, x):
    return net.layer(x) + random.random()


@pytest.mark.parametrize("forward", [by_an_object, by_numpy, by_python])
def test_what_gives_two_predictions_is_refused(forward):
    net = net_of(forward, counter=Counter())
    with pytest.raises(fmeta.InputError, match="two predictions for the same parameters, input and key"):
        over_tasks(fmeta.from_module(net), inputs(2, 5, 4))


def clamps(net, x):
    with torch.no_grad():
        net.layer.weight.clamp_(-0.1, 0.1)
    return net.layer(x)


def renorms(net, x):
    net.layer.weight.data = torch.renorm(net.layer.weight.data, 2, 0, 0.1)
    return net.layer(x)


@pytest.mark.parametrize("forward", [clamps, renorms])
def test_parameters_changed_in_place_are_refused_and_stay(forward):
    model = fmeta.from_module(net_of(forward))
    params = model.init(KEY)
    before = params["layer.weight"].clone()
    with pytest.raises(fmeta.InputError, match=r"changes the parameter 'layer\.weight' in place"):
        model.apply(params, inputs(5, 4))
    assert torch.equal(params["layer.weight"], before)


def test_state_that_is_written_anew_to_the_same_value_does_no_harm():
    def tidy(net, x):
        net.kept.clear()
        net.kept.append(net.layer(x))
        net.zero = torch.zeros(3, dtype=F64)
        return net.kept[0] + net.zero

    net = net_of(tidy, kept=[], zero=torch.zeros(3, dtype=F64))
    torch.testing.assert_close(over_tasks(fmeta.from_module(net), inputs(2, 5, 4)), net.layer(inputs(2, 5, 4)).detach())


class TestCompiledBeforeAnyCall:
    def test_the_callers_input_stays(self):
        model = fmeta.from_module(net_of(lambda net, x: net.layer(x.mul_(2))))
        x = inputs(5, 4)
        fmeta.compile(lambda params, x: model.apply(params, x), backend="aot_eager")(model.init(KEY), x)
        assert torch.equal(x, inputs(5, 4))

    def test_a_buffer_that_is_set_anew_is_refused(self):
        model = fmeta.from_module(net_of(assigned, seen=torch.zeros((), dtype=F64)))
        with pytest.raises(fmeta.InputError, match=r"seen|once before it is compiled"):
            fmeta.compile(lambda params, x: model.apply(params, x), backend="aot_eager")(model.init(KEY), inputs(5, 4))

    def test_a_dict_of_tables_is_as_it_was(self):
        def looked_up(net, x):
            if len(x) not in net.tables:
                net.tables[len(x)] = torch.arange(len(x), dtype=x.dtype)[:, None].sin()
            return net.layer(x) + net.tables[len(x)]

        model = fmeta.from_module(net_of(looked_up, tables={}))
        params, x = model.init(KEY), inputs(5, 4)
        compiled = fmeta.compile(lambda params, x: model.apply(params, x), backend="aot_eager")(params, x)
        torch.testing.assert_close(compiled, model.apply(params, x))


def test_threads_do_not_meet_in_one_model():
    """One waits in the middle of its forward pass until the other has begun, or has been kept waiting."""
    begun = [threading.Event(), threading.Event()]

    def meeting(net, x):
        here = int(x[0, 0] > 0)
        begun[here].set()
        begun[1 - here].wait(3.0)
        return net.layer(x).tanh()

    net = net_of(meeting)
    model = fmeta.from_module(net)
    params = model.init(KEY)
    each = [
        ({n: p * scale for n, p in params.items()}, torch.full((5, 4), sign, dtype=F64))
        for scale, sign in ((1.0, -1.0), (3.0, 1.0))
    ]
    model.apply(*each[0])  # looked at
    right = [(x @ p["layer.weight"].mT + p["layer.bias"]).tanh() for p, x in each]
    for event in begun:
        event.clear()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda given: model.apply(*given), each))
    torch.testing.assert_close(found, right)


def test_a_table_of_complex_numbers_that_is_filled_once():
    def turned(net, x):
        if net.turns is None:
            net.turns = torch.polar(torch.ones(2, dtype=F64), torch.arange(2, dtype=F64))
        return torch.view_as_real(torch.view_as_complex(net.layer(x)[:, :2].contiguous()[:, None]) * net.turns).sum(
            (1, 2)
        )

    net = net_of(turned, turns=None)
    expected = torch.stack([net(x) for x in inputs(2, 5, 4)]).detach()
    for _ in range(2):
        torch.testing.assert_close(over_tasks(fmeta.from_module(net_of(turned, turns=None)), inputs(2, 5, 4)), expected)


def test_a_list_that_grows_is_refused_by_name():
    def grows(net, x):
        net.seen.append(net.layer(x))
        return net.seen[0]

    with pytest.raises(fmeta.InputError, match="attribute 'seen'"):
        over_tasks(fmeta.from_module(net_of(grows, seen=[torch.ones(1)])), inputs(2, 5, 4))
