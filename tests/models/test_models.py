"""The networks of the literature, against the same networks written with torch.nn."""

import pytest
import torch
from helpers import F64
from torch import nn
from torch.nn import functional as F

import fmeta
from fmeta.core import InContext, InputError
from fmeta.models import avg_pool2x2, conv2, conv4, max_pool2x2, mlp, resnet12

KEY = fmeta.key(6)
X = torch.randn(5, 1, 28, 28, dtype=F64, generator=torch.Generator().manual_seed(0))


def load(net, params, names):
    """The parameters of ours in a module of torch's."""
    state = {
        f"{theirs}.{kind}": params[f"{ours}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")
    }
    net.load_state_dict(state, strict=False)
    return net.double().train()


def blocks(width, stride, pool, norm):
    layers, channels = [], 1
    for _ in range(4):
        layers += [nn.Conv2d(channels, width, 3, stride, 1)]
        layers += {"batch": [nn.BatchNorm2d(width)], "group": [nn.GroupNorm(max(1, width // 8), width)], "none": []}[
            norm
        ]
        layers += [nn.ReLU(), *([pool(2)] if pool else [])]
        channels = width
    return layers


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("form", ["stride", "pool"])
def test_conv4_is_the_network_of_the_papers(form, norm):
    model = conv4(5, form=form, width=16, norm=norm, dtype=F64)
    params = model.init(KEY)
    for n in params:
        params[n] = params[n] + 0.1  # biases and scales that show
    size = 1 if norm == "none" else 2
    layers = blocks(16, 2 if form == "stride" else 1, None if form == "stride" else nn.MaxPool2d, norm)
    tail = [nn.AdaptiveAvgPool2d(1)] if form == "stride" else []
    net = nn.Sequential(*layers, *tail, nn.Flatten(), nn.Linear(16, 5))
    step = size + 1 + (form == "pool")
    names = {str(len(net) - 1): "head"}
    for i in range(4):
        names[str(i * step)] = f"conv{i + 1}"
        if norm != "none":
            names[str(i * step + 1)] = f"norm{i + 1}"
    torch.testing.assert_close(model.apply(params, X), load(net, params, names)(X))


def test_conv4_has_the_known_number_of_parameters():
    """113,088 in MAML's and ProtoNet's 64-channel net below the head (with norm), published as 0.11 M."""
    params = conv4(5, form="pool").init(KEY)
    below = sum(p.numel() for n, p in params.items() if not n.startswith("head"))
    assert below == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 2 * 64
    assert params["head.weight"].shape == (5, 64)
    assert conv4(5, form="pool", width=32, channels=3, size=84).init(KEY)["head.weight"].shape == (5, 800)


def test_conv2_is_the_textbook_net():
    model = conv2(5, dtype=F64)
    params = model.init(KEY)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 5)),
    )
    names = {"0": "conv1", "3": "conv2", "7": "hidden", "9": "head"}
    torch.testing.assert_close(model.apply(params, X), load(net, params, names)(X))


def test_mlp_is_a_perceptron():
    model = mlp([3, 7, 5, 2], torch.tanh, F64)
    params = model.init(KEY)
    net = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))
    names = {"0": "hidden1", "2": "hidden2", "4": "head"}
    x = X[:, 0, 0, :3]
    torch.testing.assert_close(model.apply(params, x), load(net, params, names)(x))


def test_initialisation_is_torchs():
    """Uniform in ±1/√fan_in for weights and biases, as nn.Linear and nn.Conv2d draw them."""
    params = conv4(5, form="pool").init(KEY)
    weight, bound = params["conv2.weight"], (9 * 64) ** -0.5
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(weight.mean().item()) < 4 * weight.std().item() / weight.numel() ** 0.5
    assert not torch.equal(params["conv2.weight"], params["conv3.weight"])
    other = conv4(5, form="pool").init(fmeta.key(7))
    assert not torch.equal(params["head.weight"], other["head.weight"])


@pytest.mark.parametrize("size", [8, 7])
def test_pooling_equals_torchs(size):
    x = X[:, :, :size, :size]
    torch.testing.assert_close(max_pool2x2(x), F.max_pool2d(x, 2))
    torch.testing.assert_close(avg_pool2x2(x), F.avg_pool2d(x, 2))


def test_dtype_and_device_follow_the_arguments():
    assert all(p.dtype == F64 for p in conv2(5, dtype=F64).init(KEY).values())
    assert all(p.dtype == torch.float32 and p.device == KEY.device for p in mlp([2, 1]).init(KEY).values())


# ---- whose statistics ----------------------------------------------------------------------------


def moved(params):
    """Scales and shifts that show."""
    return {n: p + 0.1 * torch.arange(p.numel(), dtype=F64).sin().view(p.shape) for n, p in params.items()}


def by_hand(params, x, statistics):
    """The strided conv4 below its head, with `statistics(name, x) -> mean, variance` of every norm."""
    for i in range(1, 5):
        x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=2, padding=1)
        mean, variance = statistics(f"norm{i}", x)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = (x * params[f"norm{i}.weight"][:, None, None] + params[f"norm{i}.bias"][:, None, None]).relu()
    return x.mean((-2, -1))


def test_support_statistics_normalise_every_query_alike():
    model = conv4(None, width=6, norm="support", dtype=F64)
    params = moved(model.init(KEY))

    def of_support(name, x):
        return x[:3].mean((0, 2, 3), keepdim=True), x[:3].var((0, 2, 3), unbiased=False, keepdim=True)

    expected = by_hand(params, X, of_support)
    found = model.apply(params, InContext(X[3:], X[:3]))
    torch.testing.assert_close(found, expected[3:])
    torch.testing.assert_close(model.apply(params, InContext(X[4:], X[:3])), expected[4:])
    weighted = InContext(X[3:], torch.cat([X[:3], 7 * X[3:]]), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=F64))
    torch.testing.assert_close(model.apply(params, weighted), expected[3:])


def test_task_norm_mixes_the_supports_statistics_with_the_examples_own():
    """Bronskill et al. 2020, equations 4 to 6 with instance statistics, example by example."""
    model = conv4(None, width=6, norm="task", dtype=F64)
    params = moved(model.init(KEY))

    def mixed(name, x):
        share = torch.sigmoid(params[f"{name}.slope"] * 3 + params[f"{name}.offset"])
        mean = x[:3].mean((0, 2, 3))
        variance = x[:3].var((0, 2, 3), unbiased=False)
        rows = []
        for example in x:
            own, spread = example.mean((1, 2)), example.var((1, 2), unbiased=False)
            both = share * mean + (1 - share) * own
            rows.append(
                (
                    both,
                    share * (variance + (mean - both) ** 2) + (1 - share) * (spread + (own - both) ** 2),
                )
            )
        return tuple(torch.stack(t)[:, :, None, None] for t in zip(*rows, strict=True))

    torch.testing.assert_close(model.apply(params, InContext(X[3:], X[:3])), by_hand(params, X, mixed)[3:])


@pytest.mark.parametrize("form", ["stride", "pool"])
def test_frozen_statistics_are_those_of_the_calibration_images(form):
    frozen, batch = (conv4(5, form=form, width=6, norm=n, dtype=F64) for n in ("frozen", "batch"))
    params = frozen.calibrate(moved(frozen.init(KEY)), X)
    torch.testing.assert_close(frozen.apply(params, X), batch.apply(params, X))
    torch.testing.assert_close(frozen.apply(params, X[:1]), batch.apply(params, X)[:1])
    grads = torch.func.grad(lambda p: frozen.apply(p, X).square().sum())(params)
    assert all(float(g.abs().max()) == 0 for n, g in grads.items() if n.endswith(("mean", "variance")))
    assert batch.calibrate is None


def test_film_scales_and_shifts_what_the_norm_gives():
    model, plain = (conv4(None, width=6, film=f, dtype=F64) for f in (4, None))
    params = moved(model.init(KEY))
    embedding = torch.tensor([0.3, -1.0, 0.2, 0.5], dtype=F64)
    changed = dict(params)
    for i in range(1, 5):
        film = params[f"norm{i}.film.weight"] @ embedding + params[f"norm{i}.film.bias"]
        gamma, beta = film[:6], film[6:]
        changed[f"norm{i}.weight"] = params[f"norm{i}.weight"] * (1 + gamma)
        changed[f"norm{i}.bias"] = params[f"norm{i}.bias"] * (1 + gamma) + beta
    torch.testing.assert_close(model.apply(params, (X, embedding)), plain.apply(changed, X))
    net = mlp([3, 7, 2], torch.tanh, F64, film=4)
    params, x = moved(net.init(KEY)), X[:, 0, 0, :3]
    gamma, beta = (params["hidden1.film.weight"] @ embedding + params["hidden1.film.bias"]).chunk(2)
    hidden = x @ params["hidden1.weight"].T + params["hidden1.bias"]
    expected = (hidden * (1 + gamma) + beta).tanh() @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net.apply(params, (x, embedding)), expected)


class Block(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        sizes = {"conv0": (inputs, 1), "conv1": (inputs, 3), "conv2": (width, 3), "conv3": (width, 3)}
        for i, (name, (channels, kernel)) in enumerate(sizes.items()):
            setattr(self, name, nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False))
            setattr(self, f"norm{i}", nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        y = F.leaky_relu(self.norm2(self.conv2(y)), 0.1)
        y = self.norm3(self.conv3(y)) + self.norm0(self.conv0(x))
        return F.max_pool2d(F.leaky_relu(y, 0.1), 2)


def test_resnet12_is_the_network_of_the_papers():
    model = resnet12(5, widths=(4, 6, 8), channels=1, size=28, dtype=F64)
    params = moved(model.init(KEY))
    net = nn.Sequential(Block(1, 4), Block(4, 6), Block(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    state = {n.replace("block1", "0").replace("block2", "1").replace("block3", "2"): p for n, p in params.items()}
    state = {n.replace("head", "5"): p for n, p in state.items()}
    net.load_state_dict(state, strict=False)
    torch.testing.assert_close(model.apply(params, X), net.double().train()(X))
    whole = resnet12(None).init(KEY)
    assert sum(p.numel() for p in whole.values()) == 12_424_320


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv4(5, norm="instance"), r"conv4\(norm='instance'\): unknown policy; .*known: batch, frozen"),
        (lambda: conv4(5, norm="task").apply(conv4(5, norm="task").init(KEY), X), r"wrap the learner in fmeta.in_con"),
        (lambda: conv4(5, film=3).apply(conv4(5, film=3).init(KEY), X), r"expected \(x, embedding \[3\]\)"),
        (lambda: resnet12(5, size=12), r"resnet12\(widths=\[64, 160, 320, 640\], size=12\): .* size >= 16"),
        (lambda: resnet12(5).apply(resnet12(5, widths=(2,)).init(KEY), X), r"expected \[example, 3, 84, 84\]"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
