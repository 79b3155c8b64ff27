"""Convolutions with a weight for every task, in every lowering, against torch's own under a plain loop."""

import json

import pytest
import torch
from helpers import F64, distance
from torch.func import grad, vmap
from torch.nn import functional as F

import fmeta
from fmeta.core import InputError
from fmeta.operators import _choices, _lowerings, convolution
from fmeta.operators._convolution import conv

KEY = 0
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# axes, stride, padding, dilation, groups
GEOMETRIES = [
    (2, 1, 1, 1, 1),
    (2, 2, 1, 1, 1),
    (2, 2, 2, 1, 1),
    (2, 1, 0, 2, 1),
    (2, (1, 2), (0, 1), 1, 1),
    (2, 1, "same", 1, 1),
    (2, 1, "valid", (1, 2), 1),
    (2, 1, 1, 1, 2),
    (1, 2, 1, 1, 1),
    (3, 1, 1, 1, 1),
]


def problem(axes, groups):
    generator = torch.Generator().manual_seed(KEY)
    draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)  # noqa: E731
    size = (7, 6, 5)[:axes]
    x, shared = draw(3, 2, 4, *size), draw(2, 4, *size)
    return draw(6, 4 // groups, *(3,) * axes) * 0.3, draw(6), x, shared


def task_loss(op, options):
    def inner(w, b, x):
        return (torch.tanh(op(x, w, b, *options)) ** 2).mean()

    def loss(w, b, x, shared):
        for _ in range(2):
            dw, db = grad(inner, argnums=(0, 1))(w, b, x)
            w, b = w - dw, b - db
        return inner(w, b, x * 2) + inner(w, b, shared)

    return loss


def meta_gradient(op, options, w, b, x, shared):
    def mean(w, b, x, shared):
        return vmap(task_loss(op, options), in_dims=(None, None, 0, None))(w, b, x, shared).mean()

    return grad(mean, argnums=(0, 1, 2, 3))(w, b, x, shared)


@pytest.mark.parametrize("lowering", ["loop", "grouped", "unfold"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_lowering_has_the_second_derivative_of_a_loop_over_tasks(geometry, lowering):
    axes, *options = geometry
    w, b, x, shared = problem(axes, options[-1])

    def one_by_one(w, b, x, shared):
        loss = task_loss(TORCH[axes], options)
        return sum(loss(w, b, each, shared) for each in x) / len(x)

    expected = grad(one_by_one, argnums=(0, 1, 2, 3))(w, b, x, shared)

    def ours(w, b, x, shared):
        return meta_gradient(conv, options, w, b, x, shared)

    with convolution(lowering):
        found = fmeta.compile(ours, backend="aot_eager")(w, b, x, shared)
    assert distance(found, expected) < 1e-14
    assert distance(meta_gradient(conv, options, w, b, x, shared), expected) < 1e-14  # eager: torch's own


def test_a_second_vmap_is_one_more_axis():
    w, _, x, _ = problem(2, 1)

    def twice(w, x):
        one = lambda w, x: vmap(lambda x: conv(x, w, None, 1, 1))(x).sum((1, 2, 3, 4))  # noqa: E731
        return vmap(one)(w, x)

    weights, inputs = torch.stack([w, 2 * w]), torch.stack([x, x + 1])
    found = fmeta.compile(twice, backend="aot_eager")(weights, inputs)
    expected = torch.stack(
        [torch.stack([F.conv2d(each, v, padding=1).sum() for each in y]) for v, y in zip(weights, inputs, strict=True)]
    )
    torch.testing.assert_close(found, expected)


def test_the_operator_keeps_its_promises_to_the_compiler():
    w, _, x, _ = problem(2, 1)
    geometry = ([1, 1], [1, 1], [1, 1], [1], [7, 6], [3, 3])
    cases = [(0, x, w[None]), (1, torch.randn(3, 2, 6, 7, 6, dtype=F64), w[None].expand(3, -1, -1, -1, -1).clone())]
    cases.append((2, x, torch.randn(3, 2, 6, 7, 6, dtype=F64)))
    for kind, a, b in cases:
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.fmeta.convolve, (kind, a, b, *geometry), test_utils=tests)


def test_each_shape_is_measured_once_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path))
    monkeypatch.setattr(_lowerings, "_SMALL", 0)
    _choices._answers.cache_clear()
    _lowerings._known.clear()
    w, _, x, _ = problem(2, 1)
    arguments = (0, x, w.expand(3, *w.shape).contiguous(), [1, 1], [1, 1], [1, 1], [1], [7, 6], [3, 3])
    torch.ops.fmeta.convolve(*arguments)
    ((question, answer),) = json.loads((tmp_path / "choices.json").read_text()).items()
    assert "convolve 0 (3, 2, 4, 7, 6)" in question
    assert answer["choice"] == min(answer["milliseconds"], key=answer["milliseconds"].get)
    assert answer["milliseconds"].keys() == {"loop", "grouped", "unfold"}
    _choices.prefer({question: {"choice": "unfold"}})
    monkeypatch.setattr(
        _lowerings, "LOWERINGS", {**dict.fromkeys(("loop", "grouped"), max), "unfold": _lowerings._unfold}
    )
    torch.ops.fmeta.convolve(*arguments)  # nothing else is tried any more
    _choices._answers.cache_clear()


def test_an_unknown_lowering_is_refused():
    with (
        pytest.raises(InputError, match=r"convolution\('unfolded'\): unknown lowering; did you mean 'unfold'"),
        convolution("unfolded"),
    ):
        pass
    with pytest.raises(KeyError), convolution("loop"):
        raise KeyError
    assert _lowerings._switch == ["auto"]


def test_forward_mode_is_the_same_derivative():
    w, _, x, _ = problem(2, 1)

    def slope(op):
        return lambda w, x: torch.func.jvp(lambda w, x: (op(x, w, None, 1, 1) ** 2).sum(), (w, x), (2 * w, x - 1))[1]

    # not aot_eager, which in torch 2.14 cannot take a graph with forward derivatives, of torch's own conv2d either
    found = fmeta.compile(slope(conv), backend="eager")(w, x[0])
    torch.testing.assert_close(found, slope(F.conv2d)(w, x[0]))


def test_one_example_without_an_axis_for_it():
    w, b, x, _ = problem(2, 1)
    found = fmeta.compile(lambda x: conv(x, w, b, 1, 1), backend="aot_eager")(x[0, 0])
    torch.testing.assert_close(found, F.conv2d(x[0, 0], w, b, padding=1))
