"""from_module: a pure function that computes what the module computes."""

import warnings

import pytest
import torch
from helpers import F64
from torch import nn
from torch.func import grad, vmap

import fmeta
from fmeta.core import fold


def conv_net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).double()


X = torch.randn(6, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
KEY = fmeta.key(0)


def trained(net, batches=3):
    net.train()
    for i in range(batches):
        net(torch.randn(5, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(i)))
    return net


def test_keeps_the_present_weights_and_leaves_the_module_alone():
    net = nn.Linear(3, 2)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    model = fmeta.from_module(net)
    params = model.init(KEY)
    assert all(torch.equal(params[n], before[n]) and not params[n].requires_grad for n in before)
    params["weight"].zero_()
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in net.named_parameters())


def test_batch_norm_without_a_policy_is_refused_by_name():
    net = nn.Module()
    net.stem = conv_net()
    with pytest.raises(fmeta.InputError, match=r"stem\.1 \(BatchNorm2d\).*norm='batch'.*norm='frozen'.*norm='group'"):
        fmeta.from_module(net)


def test_batch_policy_uses_batch_statistics():
    net = trained(conv_net())
    model = fmeta.from_module(net, norm="batch")
    running = net[1].running_mean.clone()
    expected = net.train()(X)  # training mode normalises by the batch
    torch.testing.assert_close(model.apply(model.init(KEY), X), expected)
    net[1].running_mean.copy_(running)


def test_frozen_policy_uses_running_statistics():
    net = trained(conv_net())
    model = fmeta.from_module(net, norm="frozen")
    torch.testing.assert_close(model.apply(model.init(KEY), X), net.eval()(X))


def test_frozen_policy_refuses_statistics_that_saw_no_data():
    with pytest.raises(fmeta.InputError, match=r"1 \(BatchNorm2d\).*calibrate"):
        fmeta.from_module(conv_net(), norm="frozen")


def test_calibration_takes_statistics_in_one_pass_and_leaves_the_module_alone():
    net = conv_net()
    model = fmeta.from_module(net, norm="frozen", calibrate=X)
    assert (net[1].running_mean == 0).all()
    twin = conv_net()
    twin[1].momentum = None
    twin.train()(X)
    torch.testing.assert_close(model.apply(model.init(KEY), X), twin.eval()(X))


def test_group_policy_replaces_the_norm_on_a_copy():
    net = trained(conv_net())
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2.0)
    model = fmeta.from_module(net, norm="group", groups=4)
    assert isinstance(net[1], nn.BatchNorm2d)
    twin = trained(conv_net())
    twin.load_state_dict(net.state_dict())
    group = nn.GroupNorm(4, 8).double()
    group.load_state_dict({"weight": net[1].weight, "bias": net[1].bias})
    twin[1] = group
    torch.testing.assert_close(model.apply(model.init(KEY), X), twin(X))
    alone = model.apply(model.init(KEY), X[:1])
    torch.testing.assert_close(model.apply(model.init(KEY), X)[:1], alone)  # examples do not see each other


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_every_policy_works_under_vmap_and_grad(norm):
    model = fmeta.from_module(trained(conv_net()), norm=norm)
    params = model.init(KEY)
    x = torch.stack([X, X.flip(0) * 2])

    def loss(p, x):
        return (model.apply(p, x) ** 2).mean()

    together = vmap(grad(loss), in_dims=(None, 0))(params, x)
    for i in range(2):
        for n, g in grad(loss)(params, x[i]).items():
            torch.testing.assert_close(together[n][i], g)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(4, 4), nn.Linear(4, 4)
        self.outside.weight = self.inside.weight
        self.norm = nn.LayerNorm(4)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x):
        return self.outside(torch.tanh(self.norm(self.inside(x + self.shift))))


def test_tied_weights_stay_tied():
    net = Tied().double()
    model = fmeta.from_module(net)
    params = model.init(KEY)
    assert [n for n in params if n.endswith("weight") and params[n].ndim == 2] == ["inside.weight"]
    x = X.reshape(6, -1)[:, :4]
    torch.testing.assert_close(model.apply(params, x), net(x))
    ours = grad(lambda p: model.apply(p, x).sum())(params)
    net(x).sum().backward()
    torch.testing.assert_close(ours["inside.weight"], net.inside.weight.grad)


def test_frozen_parameters_are_constants():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    model = fmeta.from_module(net)
    params = model.init(KEY)
    assert list(params) == ["1.weight", "1.bias"]
    x = torch.randn(4, 3)
    torch.testing.assert_close(model.apply(params, x), net(x))


def test_constants_follow_the_parameters_dtype():
    """check_meta_grad casts parameters to float64; float32 buffers must not break it."""
    model = fmeta.from_module(trained(conv_net()).float(), norm="frozen")
    params = {n: p.double() for n, p in model.init(KEY).items()}
    assert model.apply(params, X).dtype == F64


def test_tuples_are_arguments_and_dicts_are_keywords():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, a, b):
            return self.layer(a) - b

    net = Two()
    model = fmeta.from_module(net)
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    params = model.init(KEY)
    torch.testing.assert_close(model.apply(params, (a, b)), net(a, b))
    torch.testing.assert_close(model.apply(params, {"b": b, "a": a}), net(a, b))


class TestDropout:
    net = nn.Sequential(nn.Linear(4, 200), nn.Dropout(0.25), nn.ReLU(), nn.Dropout(0.25))
    x = torch.ones(3, 4)

    def test_is_off_in_apply_and_drawn_from_the_key_in_noisy(self):
        model = fmeta.from_module(self.net)
        params = model.init(KEY)
        torch.testing.assert_close(model.apply(params, self.x), self.net.eval()(self.x))
        once, twice = (model.noisy(params, self.x, KEY) for _ in range(2))
        assert torch.equal(once, twice)
        assert not torch.equal(once, model.noisy(params, self.x, fold(KEY, 1)))

    def test_keeps_the_expected_value_and_rate(self):
        model = fmeta.from_module(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.25)))
        params = {"0.weight": torch.ones(1, 1)}
        y = model.noisy(params, torch.ones(20_000, 1), KEY)
        assert abs((y == 0).float().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
        torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))

    def test_layers_draw_apart(self):
        model = fmeta.from_module(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.5), nn.Dropout(0.5)))
        y = model.noisy({"0.weight": torch.ones(1, 1)}, torch.ones(20_000, 1), KEY)
        assert abs((y != 0).float().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5

    def test_whole_channels_drop_together(self):
        model = fmeta.from_module(nn.Sequential(nn.Conv2d(1, 40, 1), nn.Dropout2d(0.5)))
        y = model.noisy(model.init(KEY), torch.ones(2, 1, 4, 4), KEY)
        dropped = (y == 0).flatten(2)
        assert (dropped.all(-1) == dropped.any(-1)).all()
        assert 0.2 < dropped.all(-1).float().mean() < 0.8

    def test_without_dropout_there_is_no_noisy(self):
        assert fmeta.from_module(nn.Linear(2, 2)).noisy is None

    def test_a_network_of_ones_own_may_draw_in_any_way(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 200)

            def forward(self, x):
                return nn.functional.dropout(self.layer(x), 0.25, self.training)

        model = fmeta.from_module(Net())
        params = model.init(KEY)
        one, two = model.noisy(params, self.x, KEY), model.noisy(params, self.x, fold(KEY, 1))
        assert (one == 0).any()
        assert not torch.equal(one, two)
        assert not (model.apply(params, self.x) == 0).any()

    def test_without_a_key_it_says_how_to_give_one(self):
        model = fmeta.from_module(self.net)
        with pytest.raises(fmeta.InputError, match=r"1 \(Dropout\).*no key.*fmeta\.split"):
            model.noisy(model.init(KEY), self.x, ())

    def test_one_layer_in_two_places_draws_twice(self):
        drop = nn.Dropout(0.5)
        model = fmeta.from_module(nn.Sequential(nn.Linear(1, 1, bias=False), drop, nn.Identity(), drop))
        y = model.noisy({"0.weight": torch.ones(1, 1)}, torch.ones(20_000, 1), KEY)
        assert abs((y != 0).float().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5


def test_a_layer_in_two_places_is_replaced_in_both():
    norm = nn.BatchNorm1d(4)
    model = fmeta.from_module(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm), norm="batch")
    y = model.apply(model.init(KEY), torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_later_changes_of_the_module_change_nothing():
    net = trained(conv_net())
    model = fmeta.from_module(net, norm="frozen")
    params = model.init(KEY)
    before = model.apply(params, X)
    trained(net)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(model.apply(params, X), before)
    assert torch.equal(model.init(KEY)["0.weight"], params["0.weight"])


def test_instance_norm_with_running_statistics_takes_the_batch_policy():
    net = conv_net(lambda width: nn.InstanceNorm2d(width, track_running_stats=True))
    model = fmeta.from_module(net, norm="batch")
    torch.testing.assert_close(model.apply(model.init(KEY), X), conv_net(nn.InstanceNorm2d)(X))


class TestRefusals:
    def test_a_forward_set_on_the_instance(self):
        """Its closure keeps the user's weights: every meta-gradient would be zero."""
        net = nn.Sequential(nn.Linear(2, 2))
        net[0].forward = torch.compile(net[0].forward)
        with pytest.raises(fmeta.InputError, match=r"0 \(Linear\) has a forward"):
            fmeta.from_module(net)

    def test_a_compiled_module(self):
        with pytest.raises(fmeta.InputError, match=r"torch\.compile.*plain one"):
            fmeta.from_module(torch.compile(nn.Linear(2, 2)))

    def test_a_compiled_part(self):
        with pytest.raises(fmeta.InputError, match=r"torch\.compile"):
            fmeta.from_module(nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2))))

    def test_no_module(self):
        with pytest.raises(fmeta.InputError, match=r"expected an nn.Module"):
            fmeta.from_module(lambda x: x)

    def test_lazy_parameters(self):
        with pytest.raises(fmeta.InputError, match="run the module once"):
            fmeta.from_module(nn.LazyLinear(3))

    def test_unknown_policy(self):
        with pytest.raises(fmeta.InputError, match=r"unknown policy.*did you mean 'batch'"):
            fmeta.from_module(conv_net(), norm="bach")

    def test_calibration_without_frozen(self):
        with pytest.raises(fmeta.InputError, match="only norm='frozen'"):
            fmeta.from_module(conv_net(), norm="batch", calibrate=X)


class NormAndActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation, and dropout, are inside the norm's own forward."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.0), nn.SiLU()

    def forward(self, x):
        moves = self.training or self.running_mean is None
        y = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, moves, 0.1, self.eps
        )
        return self.act(self.drop(y))


class ByHand(nn.BatchNorm2d):
    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) * self.weight[:, None, None]


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_a_norm_with_something_in_it_keeps_that_under_every_policy(norm):
    net = trained(conv_net(NormAndActivation))
    model = fmeta.from_module(net, norm=norm, groups=4)
    found = model.apply(model.init(KEY), X)
    apart = conv_net(lambda channels: nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU()))
    apart.load_state_dict(
        {n.replace("1.", "1.0.", 1) if n.startswith("1.") else n: t for n, t in net.state_dict().items()}
    )
    reference = fmeta.from_module(apart, norm=norm, groups=4)
    torch.testing.assert_close(found, reference.apply(reference.init(KEY), X))


def test_a_norm_written_by_hand_takes_no_group_policy():
    model = fmeta.from_module(conv_net(ByHand), norm="group")
    with pytest.raises(fmeta.InputError, match=r"1 \(ByHand\) normalises without F.batch_norm"):
        model.apply(model.init(KEY), X)


def test_statistics_of_one_example_are_refused():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model = fmeta.from_module(net, norm="batch")
    with pytest.raises(fmeta.InputError, match=r"1 \(BatchNorm1d\).*1 example.*frozen.*group"):
        model.apply(model.init(KEY), torch.randn(1, 4))


class TestConstants:
    def test_keep_the_dtype_they_came_with(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.frozen = nn.Linear(4, 8, dtype=torch.bfloat16).requires_grad_(False)
                self.head = nn.Linear(8, 3)
                self.register_buffer("start", torch.tensor(1.7e9, dtype=F64))

            def forward(self, x, time):
                since = (time - self.start).float()[:, None]
                return self.head(self.frozen(x.bfloat16()).float() + since)

        torch.manual_seed(0)
        net, x = Net(), torch.randn(5, 4)
        time = 1.7e9 + torch.arange(5, dtype=F64) / 8
        model = fmeta.from_module(net)
        found = model.apply(model.init(KEY), (x, time))
        assert torch.equal(found, net(x, time))
        assert torch.equal(fmeta.over_tasks(model.apply)(model.init(KEY), (x[None], time[None]))[0], net(x, time))

    def test_follow_the_parameters_into_another(self):
        net = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 3))
        model = fmeta.from_module(net)
        params = {n: p.double() for n, p in model.init(KEY).items()}
        assert model.apply(params, torch.randn(2, 4, dtype=F64)).dtype == F64

    def test_follow_the_input_where_all_are_frozen(self):
        model = fmeta.from_module(nn.Linear(4, 3).requires_grad_(False))
        assert model.apply({}, torch.randn(2, 4, dtype=F64)).dtype == F64


class TestRefused:
    """By the layer's name, with a cure that applies."""

    @pytest.mark.parametrize(
        ("net", "words"),
        [
            (
                lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))),
                r"0 \(Linear\).*parametrizations.weight_norm",
            ),
            (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))), r"0 \(.*parametrizations.spectral_norm"),
            (
                lambda: nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64)),
                r"0.weight is torch.complex64.*view_as_real",
            ),
        ],
    )
    def test_by_name(self, net, words):
        with warnings.catch_warnings(action="ignore"):  # deprecated by torch too
            module = net()
        with pytest.raises(fmeta.InputError, match=words):
            fmeta.from_module(module)


def test_spectral_norm_holds_the_norm_at_one_wherever_the_weights_go():
    torch.manual_seed(0)
    model = fmeta.from_module(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8, dtype=F64))))
    params = model.init(KEY)
    for scale in (0.1, 1.0, 10.0):
        moved = {n: p + scale * torch.randn_like(p) for n, p in params.items()}
        weight = model.apply(moved, torch.eye(4, dtype=F64)) - model.apply(moved, torch.zeros(1, 4, dtype=F64))
        assert abs(torch.linalg.matrix_norm(weight, 2).item() - 1) < 0.02


def test_gradient_checkpointing_is_switched_off_in_the_copy():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gradient_checkpointing = nn.Linear(4, 3, dtype=F64), True

        def forward(self, x):
            if self.gradient_checkpointing and self.training:
                return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)
            return self.layer(x)

    net = Net()
    model = fmeta.from_module(net)
    x = torch.randn(5, 4, dtype=F64)
    slopes = grad(lambda p: model.noisy(p, x, KEY).square().sum())(model.init(KEY))
    assert slopes["layer.weight"].any()
    assert net.gradient_checkpointing


class TestToModule:
    @pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
    def test_predicts_in_eval_what_the_model_does(self, norm):
        net = trained(conv_net())
        model = fmeta.from_module(net, norm=norm)
        params = {n: p + 0.1 for n, p in model.init(KEY).items()}
        back = fmeta.to_module(net, params, norm=norm)
        torch.testing.assert_close(back.eval()(X), model.apply(params, X))
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in back.parameters())
        assert not torch.equal(net[0].weight, back[0].weight)

    def test_statistics_can_be_taken_from_data(self):
        net = conv_net()
        back = fmeta.to_module(net, fmeta.from_module(net, norm="batch").init(KEY), norm="frozen", calibrate=X)
        torch.testing.assert_close(
            back.eval()(X),
            fmeta.from_module(net, norm="frozen", calibrate=X).apply(fmeta.from_module(net, norm="batch").init(KEY), X),
        )

    def test_tied_weights_stay_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
                self.last.weight = self.first.weight

            def forward(self, x):
                return self.last(self.first(x).tanh())

        net = Tied()
        params = {"first.weight": torch.randn(5, 4, dtype=F64)}
        back = fmeta.to_module(net, params)
        assert back.last.weight is back.first.weight
        x = torch.arange(5)
        torch.testing.assert_close(back(x), fmeta.from_module(net).apply(params, x))

    def test_parameters_of_another_module_are_refused(self):
        with pytest.raises(fmeta.InputError, match=r"odd has no place here, weight is missing, bias is missing"):
            fmeta.to_module(nn.Linear(2, 2), {"odd": torch.ones(2)})
