"""Optimizers equal torch.optim, and can be differentiated through."""

import math

import pytest
import torch
from helpers import F64
from torch.func import grad

import fmeta
from fmeta.core._tree import add


def run(optimizer, params, grads):
    """Parameters after one update per gradient, with our optimizer."""
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = add(params, updates)
    return params


def run_torch(make, params, grads, schedule=None, clip=None):
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    optimizer = make(list(leaves.values()))
    scheduler = schedule(optimizer) if schedule else None
    for g in grads:
        for n, leaf in leaves.items():
            leaf.grad = g[n].clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {n: leaf.detach() for n, leaf in leaves.items()}


@pytest.fixture
def problem():
    torch.manual_seed(0)
    params = {"a": torch.randn(3, 2, dtype=F64), "b": torch.randn(4, dtype=F64)}
    grads = [{n: torch.randn_like(p) for n, p in params.items()} for _ in range(12)]
    return params, grads


T = torch.optim
PAIRS = {
    "sgd": (fmeta.sgd(0.1), lambda p: T.SGD(p, 0.1)),
    "momentum": (fmeta.momentum(0.1, 0.8), lambda p: T.SGD(p, 0.1, momentum=0.8)),
    "nesterov": (fmeta.momentum(0.1, 0.8, nesterov=True), lambda p: T.SGD(p, 0.1, momentum=0.8, nesterov=True)),
    "adam": (fmeta.adam(0.01, 0.8, 0.99, 1e-6), lambda p: T.Adam(p, 0.01, (0.8, 0.99), 1e-6)),
    "adam-b1-0": (fmeta.adam(0.01, b1=0.0), lambda p: T.Adam(p, 0.01, (0.0, 0.999))),
    "adamw": (fmeta.adamw(0.01, weight_decay=0.3), lambda p: T.AdamW(p, 0.01, weight_decay=0.3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_optim(name, problem):
    ours, theirs = PAIRS[name]
    expected = run_torch(theirs, *problem)
    for n, value in run(ours, *problem).items():
        torch.testing.assert_close(value, expected[n], rtol=1e-12, atol=1e-12)


S = T.lr_scheduler
SCHEDULES = {
    "cosine": (fmeta.cosine_decay(0.1, 10, floor=0.01), lambda o: S.CosineAnnealingLR(o, 10, eta_min=0.01)),
    "step": (fmeta.step_decay(0.1, 3, 0.5), lambda o: S.StepLR(o, 3, 0.5)),
    "linear": (fmeta.linear_decay(0.1, 10), lambda o: S.LinearLR(o, 1.0, 0.0, 10)),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_schedules_equal_torch(name, kind, problem):
    rate, scheduler = SCHEDULES[name]
    params, grads = problem
    grads = grads[:10]  # torch's cosine rises again after its period; ours stays at the floor
    make = {"sgd": T.SGD, "adam": T.Adam}[kind]
    expected = run_torch(lambda p: make(p, 0.1), params, grads, scheduler)
    for n, value in run(getattr(fmeta, kind)(rate), params, grads).items():
        torch.testing.assert_close(value, expected[n], rtol=1e-12, atol=1e-12)


def test_schedules_stay_at_their_floor():
    late = torch.tensor(50.0, dtype=F64)
    assert fmeta.cosine_decay(0.1, 10, 0.02)(late).item() == pytest.approx(0.02, abs=1e-15)
    assert fmeta.linear_decay(0.1, 10, 0.02)(late).item() == pytest.approx(0.02, abs=1e-15)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_equals_clip_grad_norm(max_norm, problem):
    ours = fmeta.chain(fmeta.clip_by_global_norm(max_norm), fmeta.sgd(0.1))
    expected = run_torch(lambda p: T.SGD(p, 0.1), *problem, clip=max_norm)
    for n, value in run(ours, *problem).items():
        torch.testing.assert_close(value, expected[n], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", ["tensor", "tree"])
def test_rates_may_be_tensors_and_trees_and_are_differentiable(rate, problem):
    params, grads = problem
    lr = torch.tensor(0.1, dtype=F64)

    def end(lr):
        optimizer = fmeta.sgd(lr if rate == "tensor" else {n: lr.expand_as(p) for n, p in params.items()})
        return sum(p.sum() for p in run(optimizer, params, grads).values())

    expected = run_torch(lambda p: T.SGD(p, 0.1), *problem)
    torch.testing.assert_close(end(lr), sum(p.sum() for p in expected.values()))
    slope = -sum(g[n].sum() for g in grads for n in params)  # the end is linear in the rate
    torch.testing.assert_close(grad(end)(lr), slope)


@pytest.mark.parametrize(
    "optimizer",
    [fmeta.adam(0.1), fmeta.adamw(0.1), fmeta.clip_by_global_norm(1.0), fmeta.chain(fmeta.clip_by_global_norm(1.0))],
)
def test_slope_at_zero_gradient_is_finite(optimizer):
    """Exact zeros, as ReLU gives them, meet square roots whose true slope is infinite."""
    params = {"a": torch.ones(3, dtype=F64)}

    def end(g):
        return run(optimizer, params, [{"a": g}, {"a": 2 * g}])["a"].sum()

    assert grad(end)(torch.zeros(3, dtype=F64)).isfinite().all()
    second = torch.func.hessian(end)(torch.zeros(3, dtype=F64))
    assert second.isfinite().all()


def test_bias_correction_is_accurate_in_float32():
    """1 − 0.999 in float32 is off by 1e-5, which the first Adam step would show."""
    g = {"a": torch.tensor([1e-3, 5.0])}
    moved = run(fmeta.adam(0.01), {"a": torch.zeros(2)}, [g])["a"]
    expected = run_torch(lambda p: T.Adam(p, 0.01), {"a": torch.zeros(2, dtype=F64)}, [{"a": g["a"].double()}])["a"]
    torch.testing.assert_close(moved.double(), expected, rtol=1e-6, atol=0)


def test_half_precision_parameters_count_in_float32():
    optimizer = fmeta.adam(0.01)
    state = optimizer.init({"a": torch.ones(2, dtype=torch.bfloat16)})
    assert state.step.dtype == torch.float32
    assert run(optimizer, {"a": torch.ones(2, dtype=torch.bfloat16)}, [{"a": torch.ones(2).bfloat16()}])["a"].dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: fmeta.sgd(-0.1),
        lambda: fmeta.adam(math.nan),
        lambda: fmeta.momentum(0.1, beta=1.0),
        lambda: fmeta.adam(0.1, b2=1.5),
        lambda: fmeta.clip_by_global_norm(0.0),
        lambda: fmeta.cosine_decay(0.1, 0),
        lambda: fmeta.step_decay(0.1, 0),
        lambda: fmeta.linear_decay(0.1, 0),
    ],
)
def test_bad_settings_are_refused(call):
    with pytest.raises(fmeta.InputError, match="expected"):
        call()
