"""Optimizers equal torch.optim, and can be differentiated through."""

import itertools
import math
from functools import partial

import pytest
import torch
from helpers import F64
from torch.func import grad, jacrev

import fmeta
from fmeta.core.tree import add, tree_leaves
from fmeta.testing import distance


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


def torchs(make):
    """One that has torch's own numbers."""
    return make if make in (fmeta.sgd, fmeta.momentum) else partial(make, eps_root=0.0)


adam, adamw, rmsprop = map(torchs, (fmeta.adam, fmeta.adamw, fmeta.rmsprop))
T = torch.optim
PAIRS = {
    "sgd": (fmeta.sgd(0.1), lambda p: T.SGD(p, 0.1)),
    "momentum": (fmeta.momentum(0.1, 0.8), lambda p: T.SGD(p, 0.1, momentum=0.8)),
    "nesterov": (fmeta.momentum(0.1, 0.8, nesterov=True), lambda p: T.SGD(p, 0.1, momentum=0.8, nesterov=True)),
    "adam": (adam(0.01, 0.8, 0.99, 1e-6), lambda p: T.Adam(p, 0.01, (0.8, 0.99), 1e-6)),
    "adam-b1-0": (adam(0.01, b1=0.0), lambda p: T.Adam(p, 0.01, (0.0, 0.999))),
    "adamw": (adamw(0.01, weight_decay=0.3), lambda p: T.AdamW(p, 0.01, weight_decay=0.3)),
    "rmsprop": (rmsprop(0.01), lambda p: T.RMSprop(p, 0.01)),
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
@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_schedules_equal_torch(name, kind, problem):
    rate, scheduler = SCHEDULES[name]
    params, grads = problem
    grads = grads[:10]  # torch's cosine rises again after its period; ours stays at the floor
    make = {"sgd": T.SGD, "adam": T.Adam, "rmsprop": T.RMSprop}[kind]
    expected = run_torch(lambda p: make(p, 0.1), params, grads, scheduler)
    for n, value in run(torchs(getattr(fmeta, kind))(rate), params, grads).items():
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
    [
        fmeta.adam(0.1),
        fmeta.adamw(0.1),
        fmeta.rmsprop(0.1),
        adam(0.1),
        adamw(0.1),
        rmsprop(0.1),
        fmeta.clip_by_global_norm(1.0),
        fmeta.chain(fmeta.clip_by_global_norm(1.0)),
    ],
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
        lambda: fmeta.rmsprop(math.inf),
        lambda: fmeta.rmsprop(0.1, decay=1.0),
        lambda: fmeta.rmsprop(0.1, decay=-0.1),
        lambda: fmeta.rmsprop(0.1, eps=-1e-8),
        lambda: fmeta.rmsprop(0.1, eps=math.nan),
        lambda: fmeta.rmsprop(0.1, eps_root=-1e-8),
        lambda: fmeta.adam(0.1, eps_root=-1e-8),
        lambda: fmeta.adam(0.1, eps_root=math.nan),
        lambda: fmeta.adam(0.1, eps=math.inf),
        lambda: fmeta.adamw(0.1, eps_root=math.inf),
        lambda: fmeta.clip_by_global_norm(0.0),
        lambda: fmeta.cosine_decay(0.1, 0),
        lambda: fmeta.cosine_decay(-0.1, 10),
        lambda: fmeta.step_decay(float("nan"), 10),
        lambda: fmeta.linear_decay(0.1, 10, -0.1),
        lambda: fmeta.step_decay(0.1, 0),
        lambda: fmeta.linear_decay(0.1, 0),
    ],
)
def test_bad_settings_are_refused(call):
    with pytest.raises(fmeta.InputError, match="expected"):
        call()


# ---- eps inside the root -----------------------------------------------------------------------

ROOTS = {
    "adam": (fmeta.adam, lambda m, v: (m / (1 - 0.9), v / (1 - 0.999)), 0.9, 0.999),
    "adamw": (partial(fmeta.adamw, weight_decay=0.0), lambda m, v: (m / (1 - 0.9), v / (1 - 0.999)), 0.9, 0.999),
    "rmsprop": (fmeta.rmsprop, lambda m, v: (m, v), 0.0, 0.99),
}


@pytest.mark.parametrize("name", ROOTS)
def test_the_first_step_is_the_equation_with_eps_root_inside_the_root(name):
    make, corrected, b1, b2 = ROOTS[name]
    g = torch.tensor([0.0, 1e-5, -1e-3, 2.0], dtype=F64)
    m, v = corrected((1 - b1) * g, (1 - b2) * g * g)
    for settings in ({}, {"eps_root": 1e-8}, {"eps_root": 0.0}):
        root = settings.get("eps_root", 1e-16)
        moved = run(make(0.1, **settings), {"a": torch.zeros(4, dtype=F64)}, [{"a": g}])["a"]
        torch.testing.assert_close(moved, -0.1 * m / ((v + root).sqrt() + 1e-8), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ROOTS)
def test_the_usual_eps_root_changes_a_step_by_no_more_than_eps(name):
    make = ROOTS[name][0]
    for size in 10.0 ** torch.arange(-12.0, 3.0, dtype=F64):
        usual, without, neither = (
            run(make(1.0, **settings), {"a": torch.zeros((), dtype=F64)}, [{"a": size}])["a"]
            for settings in ({}, {"eps_root": 0.0}, {"eps_root": 0.0, "eps": 0.0})
        )
        assert (usual - without).abs() <= (without - neither).abs() + 1e-15


def test_a_meta_gradient_through_gradients_of_exactly_zero_holds_for_moves_within_the_root():
    """A last layer that starts at zero lets no gradient through to the layer below."""
    model = fmeta.models.mlp([2, 4, 1], torch.tanh, F64)
    tasks = fmeta.testing.random_regression(fmeta.key(1), tasks=2)
    for make in (fmeta.adam, fmeta.rmsprop):
        learner = fmeta.maml(model, fmeta.mse, optimizer=make(0.01, eps_root=1e-8), steps=2)
        meta = learner.init(fmeta.key(0))
        meta = meta | {"head.weight": torch.zeros_like(meta["head.weight"])}
        grads = fmeta.meta_grad(learner)(meta, tasks)[0]
        move = {n: torch.full_like(m, float(n == "head.weight")) for n, m in meta.items()}
        slope = fmeta.testing.finite_difference(
            lambda at, learner=learner: fmeta.meta_grad(learner)(at, tasks)[1].loss, meta, move
        )
        assert grads["head.weight"].sum().item() == pytest.approx(slope, rel=1e-3)


# ---- rmsprop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "eps"), [(0.99, 1e-8), (0.9, 1e-8), (0.5, 1e-2), (0.0, 1e-3)])
def test_rmsprop_equals_torch_over_many_steps(decay, eps):
    """Gradients of many sizes, exact zeros among them."""
    torch.manual_seed(1)
    params = {"a": torch.randn(3, dtype=F64), "b": torch.randn(2, 2, dtype=F64)}
    sizes = [10.0 ** (k % 7 - 4) for k in range(300)]
    grads = [{n: size * torch.randn_like(p).relu() for n, p in params.items()} for size in sizes]
    expected = run_torch(lambda p: T.RMSprop(p, 0.03, decay, eps), params, grads)
    assert distance(run(rmsprop(0.03, decay, eps), params, grads), expected) < 1e-12


def test_rmsprop_stands_still_where_the_gradient_has_always_been_zero():
    params = {"a": torch.ones(2, dtype=F64)}
    grads = [{"a": torch.tensor([0.0, 1.0], dtype=F64)}] * 3
    assert run(fmeta.rmsprop(0.1), params, grads)["a"][0] == 1.0


# ---- masked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_masked_moves_the_matching_as_torch_would_and_no_others(name, problem):
    ours, theirs = PAIRS[name]
    params, grads = problem
    moved = run(fmeta.masked(ours, "b"), params, grads)
    expected = run_torch(theirs, {"b": params["b"]}, [{"b": g["b"]} for g in grads])
    torch.testing.assert_close(moved["b"], expected["b"], rtol=1e-12, atol=1e-12)
    assert torch.equal(moved["a"], params["a"])


def test_masked_keeps_state_for_the_matching_only(problem):
    params, _ = problem
    state = fmeta.masked(fmeta.adam(0.1), "b").init(params)
    assert list(state.mean) == list(state.square) == ["b"]


def test_clipping_inside_a_mask_counts_the_matching_gradients_only(problem):
    params, grads = problem
    grads = [{"a": 1e6 * g["a"], "b": g["b"]} for g in grads]
    ours = fmeta.masked(fmeta.chain(fmeta.clip_by_global_norm(0.5), fmeta.sgd(0.1)), "b")
    alone = run_torch(lambda p: T.SGD(p, 0.1), {"b": params["b"]}, [{"b": g["b"]} for g in grads], clip=0.5)
    torch.testing.assert_close(run(ours, params, grads)["b"], alone["b"], rtol=1e-12, atol=1e-12)


NAMES = ["body.weight", "body.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("pattern", "moving"),
    [
        ("*", NAMES),
        ("head.*", ["head.weight", "head.bias"]),
        ("head.bias", ["head.bias"]),
        ("head.*,*.bias", ["body.bias", "norm.bias", "head.weight", "head.bias"]),
        ("head.* , norm.weight", ["norm.weight", "head.weight", "head.bias"]),
        ("!head.*", ["body.weight", "body.bias", "norm.weight", "norm.bias"]),
        ("!body.*,norm.*", ["head.weight", "head.bias"]),
        ("*.b?as", ["body.bias", "norm.bias", "head.bias"]),
    ],
)
def test_patterns_choose_what_moves(pattern, moving):
    params = {name: torch.ones(2) for name in NAMES}
    updates, _ = fmeta.masked(fmeta.sgd(1.0), pattern).update(params, (), params)
    assert [name for name in NAMES if updates[name].any()] == moving


def test_patterns_see_the_path_through_a_nested_tree():
    params = {"outer": [torch.ones(2), {"inner": torch.ones(3)}], "other": torch.ones(1)}
    updates, _ = fmeta.masked(fmeta.sgd(1.0), "outer.1.*").update(params, (), params)
    assert [bool(u.any()) for u in tree_leaves(updates)] == [False, True, False]


@pytest.mark.parametrize("pattern", ["haed.*", "head.*,haed.*", "!haed.*"])
def test_a_mask_that_matches_nothing_lists_near_names(pattern):
    params = {name: torch.ones(2) for name in NAMES}
    with pytest.raises(fmeta.InputError, match=r"masked\(.*'haed\.\*' matches no.*did you mean 'head\.") as caught:
        fmeta.masked(fmeta.sgd(0.1), pattern).init(params)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_link_inside_a_mask_leaves_the_other_gradients_as_they_are(problem):
    params, grads = problem
    ours = fmeta.chain(fmeta.masked(fmeta.clip_by_global_norm(0.5), "b"), fmeta.sgd(0.1))
    expected = run_torch(lambda p: T.SGD(p, 0.1), {"a": params["a"]}, [{"a": g["a"]} for g in grads])
    clipped = run_torch(lambda p: T.SGD(p, 0.1), {"b": params["b"]}, [{"b": g["b"]} for g in grads], clip=0.5)
    moved = run(ours, params, grads)
    torch.testing.assert_close(moved, expected | clipped, rtol=1e-12, atol=1e-12)


def test_two_optimizers_in_a_chain_are_refused():
    """The second would take the first's step for a gradient: two masks in a row moved nothing at all."""
    body, head = fmeta.masked(fmeta.sgd(0.1), "!head.*"), fmeta.masked(fmeta.sgd(0.5), "head.*")
    for links in ((body, head), (fmeta.adam(0.1), fmeta.clip_by_global_norm(1.0))):
        with pytest.raises(fmeta.InputError, match=r"chain: a link before the last descends already.*tree of rates"):
            fmeta.chain(*links)
    for links in ((), (0.1, fmeta.sgd(0.1))):
        with pytest.raises(fmeta.InputError, match=r"chain\(.*\): expected one link or more"):
            fmeta.chain(*links)


def test_a_link_alone_is_no_optimizer():
    """Its updates are gradients, so the loss would climb."""
    for link in (fmeta.clip_by_global_norm(1.0), fmeta.chain(fmeta.masked(fmeta.clip_by_global_norm(1.0), "*"))):
        with pytest.raises(fmeta.InputError, match=r"maml: optimizer only transforms the gradient.*fmeta\.chain\("):
            fmeta.maml(fmeta.models.mlp([1, 1]), fmeta.mse, optimizer=link, steps=1)


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(fmeta.InputError, match=r"masked\('!\*'\): leaves no parameter"):
        fmeta.masked(fmeta.sgd(0.1), "!*").init({"a": torch.ones(2)})


# ---- rates of every form -----------------------------------------------------------------------

KINDS = {
    "sgd": (fmeta.sgd, lambda p: T.SGD(p, 1.0)),
    "momentum": (lambda lr: fmeta.momentum(lr, 0.8), lambda p: T.SGD(p, 1.0, momentum=0.8)),
    "adam": (adam, lambda p: T.Adam(p, 1.0)),
    "rmsprop": (rmsprop, lambda p: T.RMSprop(p, 1.0)),
}


def steps_at_rate_one(make, params, grads):
    """What torch.optim adds at each step: at another rate it adds a multiple of it, because none looks at params."""
    path = [params, *(run_torch(make, params, grads[: k + 1]) for k in range(len(grads)))]
    return [{n: after[n] - before[n] for n in params} for before, after in itertools.pairwise(path)]


def drawn_rates(*shape):
    return 0.01 + 0.1 * torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(3))


PER_STEP = {
    "one for all": lambda params: drawn_rates(5),
    "a scalar for each leaf": lambda params: {"a": drawn_rates(5), "b": 2 * drawn_rates(5)},
    "one for each entry": lambda params: {n: drawn_rates(5, *p.shape) for n, p in params.items()},
    "mixed": lambda params: {"a": drawn_rates(5), "b": drawn_rates(5, 4)},
}


@pytest.mark.parametrize("form", PER_STEP)
@pytest.mark.parametrize("kind", KINDS)
def test_per_step_takes_the_rate_of_each_step_and_after_the_last_the_last(kind, form, problem):
    params, grads = problem  # 12 steps, 5 rates
    ours, theirs = KINDS[kind]
    rates = PER_STEP[form](params)
    expected = dict(params)
    for k, step in enumerate(steps_at_rate_one(theirs, params, grads)):
        for n in params:
            rate = rates if isinstance(rates, torch.Tensor) else rates[n]
            expected[n] = expected[n] + rate[min(k, 4)] * step[n]
    assert distance(run(ours(fmeta.per_step(rates)), params, grads), expected) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_scalars_is_a_rate_for_each_leaf(kind, problem):
    params, grads = problem
    ours, theirs = KINDS[kind]
    rates = {"b": torch.tensor(0.3, dtype=F64), "a": torch.tensor(0.02, dtype=F64)}  # the order does not matter
    moves = steps_at_rate_one(theirs, params, grads)
    expected = {n: p + rates[n] * sum(m[n] for m in moves) for n, p in params.items()}
    assert distance(run(ours(rates), params, grads), expected) < 1e-12


def test_adamw_decays_each_leaf_by_its_own_rate(problem):
    rates = {"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(0.02, dtype=F64)}
    expected = run_torch(
        lambda p: T.AdamW([{"params": [p[0]], "lr": 0.3}, {"params": [p[1]], "lr": 0.02}], weight_decay=0.4), *problem
    )
    assert distance(run(adamw(rates, weight_decay=0.4), *problem), expected) < 1e-12


@pytest.mark.parametrize("shaped", [False, True], ids=["scalars", "shaped"])
@pytest.mark.parametrize("kind", KINDS)
def test_learned_rates_of_each_step_have_their_gradient(kind, shaped):
    """The jacobian of the end of a real descent in the rates, against central differences."""
    start = {"a": torch.tensor([0.7, -1.1], dtype=F64), "b": torch.tensor(0.4, dtype=F64)}
    own = grad(lambda p: (p["a"] ** 4).sum() + (torch.sin(p["a"]) * p["b"]).sum() + p["b"] ** 2)

    def end(flat):
        a = flat[: 6 if shaped else 3].reshape((3, 2) if shaped else (3,))
        params, optimizer = start, KINDS[kind][0](fmeta.per_step({"a": a, "b": flat[-3:]}))
        state = optimizer.init(params)
        for _ in range(4):  # one step more than rates
            updates, state = optimizer.update(own(params), state, params)
            params = add(params, updates)
        return torch.cat([params["a"], params["b"][None]])

    rates, h = drawn_rates(9 if shaped else 6), 1e-6
    moves = h * torch.eye(len(rates), dtype=F64)
    numeric = torch.stack([(end(rates + m) - end(rates - m)) / (2 * h) for m in moves], -1)
    assert distance(jacrev(end)(rates), numeric) < 1e-7
    assert (numeric.abs().amax(0) > 1e-3).all()


@pytest.mark.parametrize("schedule", [False, True], ids=["tree", "per step"])
@pytest.mark.parametrize(
    ("rates", "where"),
    [
        ({"a": (3, 2)}, "b"),
        ({"a": (3, 2), "b": (4,), "c": ()}, "c"),
        ({"a": (3, 2), "b": (3,)}, "b"),
        ({"a": (2,), "b": (4,)}, "a"),
        ({"a": (3, 1), "b": (1,)}, "a, b"),
    ],
)
def test_rates_that_do_not_fit_are_named(rates, where, schedule, problem):
    params, grads = problem
    tree = {n: torch.ones((5, *shape) if schedule else shape, dtype=F64) for n, shape in rates.items()}
    optimizer = fmeta.sgd(fmeta.per_step(tree) if schedule else tree)
    with pytest.raises(fmeta.InputError, match=rf"do not fit the parameters at {where}; expected"):
        run(optimizer, params, grads[:1])
