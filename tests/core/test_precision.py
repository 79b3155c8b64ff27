"""A lower precision: how far from float32, what stays in float32, what the device lacks."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

import fmeta
from fmeta.core import InputError, fold, randint, uniform
from fmeta.core._precision import in_dtype
from fmeta.core.tree import tree_leaves, tree_map

KEY = fmeta.key(2)


def regression():
    tasks = fmeta.tasks.sinusoid(shots=10)(KEY, 6)
    model = fmeta.models.mlp([1, 32, 32, 1], torch.tanh)
    return lambda model=model: fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=3), model, tasks


def images():
    def examples(n, count):
        x = uniform(fold(KEY, n), (3, count, 1, 16, 16))
        return fmeta.Examples(x, randint(fold(KEY, n + 1), 3, (3, count)))

    model = fmeta.models.conv4(3, width=8, size=16, activation=torch.tanh)
    tasks = fmeta.Task(examples(0, 6), examples(2, 12))
    return lambda model=model: fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=2), model, tasks


@pytest.mark.parametrize("problem", [regression, images])
@pytest.mark.parametrize("gradient", [fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order()], ids=str)
def test_the_error_of_a_meta_gradient_is_within_the_precision(problem, gradient):
    """Law: |g₁₆ − g₃₂| ≤ C·2⁻⁸·|g₃₂| with C = 32, and so a cosine of at least 0.99."""
    learner, model, tasks = problem()
    full, lower = learner(), learner(in_dtype(model, torch.bfloat16))
    meta = full.init(KEY)
    expected, info = fmeta.meta_grad(full, gradient)(meta, tasks)
    found, lower_info = fmeta.meta_grad(lower, gradient)(meta, tasks)
    a, b = (torch.cat([leaf.flatten() for leaf in tree_leaves(g)]) for g in (found, expected))
    assert all(leaf.dtype == torch.float32 for leaf in tree_leaves((found, lower_info)))
    assert 0 < (a - b).norm() <= 32 * 2**-8 * b.norm()
    assert cosine_similarity(a, b, dim=0) > 0.99
    torch.testing.assert_close(lower_info.loss, info.loss, rtol=0.03, atol=0)


def test_fast_weights_and_updates_stay_in_float32():
    """A step far below bfloat16's resolution still moves the weights."""
    _, model, tasks = regression()
    lower = fmeta.maml(in_dtype(model, torch.bfloat16), fmeta.mse, optimizer=fmeta.sgd(1e-6), steps=1)
    meta, support = lower.init(KEY), fmeta.Examples(tasks.support.x[0], tasks.support.y[0])
    fast = lower.adapt(meta, support, ())
    assert all(
        f.dtype == torch.float32 and not torch.equal(f, m) for f, m in zip(fast.values(), meta.values(), strict=True)
    )


def test_float64_is_left_alone():
    """Checks cast to float64 to look at the mathematics, which the precision of a run does not change."""
    _, model, tasks = regression()
    lower = in_dtype(model, torch.bfloat16)
    double = tree_map(lambda t: t.double() if t.is_floating_point() else t, (model.init(KEY), tasks.support.x[0]))
    assert torch.equal(lower.apply(*double), model.apply(*double))
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    plain = fmeta.from_module(net)
    params = tree_map(torch.Tensor.double, plain.init(KEY))
    drawn = [noisy(params, double[1], KEY) for noisy in (in_dtype(plain, torch.bfloat16).noisy, plain.noisy)]
    assert torch.equal(*drawn)


def test_only_float32_is_lowered():
    """Time stamps in float64 beside a picture would lose their days."""
    seen = []

    def apply(params, x):
        seen.extend(leaf.dtype for leaf in (*params.values(), *x))
        return params["w"] * x[0]

    model = in_dtype(fmeta.Model(lambda key: {}, apply), torch.bfloat16)
    x = (torch.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64))
    assert model.apply({"w": torch.ones(2)}, x).dtype == torch.float32
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float64, torch.int64]


@pytest.mark.parametrize("gradient", [fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order()], ids=str)
def test_a_right_gradient_of_a_lower_precision_is_called_right(gradient):
    model = in_dtype(fmeta.models.mlp([1, 8, 1], torch.tanh), torch.bfloat16)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=2)
    report = fmeta.check_meta_grad(learner, learner.init(KEY), fmeta.tasks.sinusoid(shots=5)(KEY, 2), gradient)
    assert report.order == ("first order" if gradient == fmeta.first_order() else "exact")


def test_dropout_too():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    model = fmeta.from_module(net)
    lower, x = in_dtype(model, torch.bfloat16), torch.ones(4, 2)
    found = lower.noisy(lower.init(KEY), x, KEY)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.noisy(model.init(KEY), x, KEY), rtol=0.02, atol=0.02)


def test_what_the_device_lacks_is_left_at_float32_with_a_warning(monkeypatch):
    _, model, _ = regression()
    assert fmeta.with_precision(model, "float32") is model
    with pytest.warns(UserWarning, match="stays in float32: precision='tf32' needs the tensor cores of a CUDA device"):
        assert fmeta.with_precision(model, "tf32", "cpu") is model
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.warns(UserWarning, match="precision='bfloat16' needs a processor with AVX-512 or AMX"):
        assert fmeta.with_precision(model, "bfloat16") is model
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert fmeta.with_precision(model, "bfloat16") is not model
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="needs a CUDA device, and there is none"):
            fmeta.with_precision(model, "bfloat16", "cuda")


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"unknown precision; did you mean 'bfloat16'"):
        fmeta.with_precision(regression()[1], "bfloat")
