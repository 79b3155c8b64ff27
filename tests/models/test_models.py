"""The networks of the literature, against the same networks written with torch.nn."""

import pytest
import torch
from helpers import F64
from torch import nn
from torch.nn import functional as F

import fmeta
from fmeta.models import avg_pool2x2, conv2, conv4, max_pool2x2, mlp

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
