"""What runs in place of torch's operators over tasks: by whatever name, with every derivative, drawn from a key."""

import types

import pytest
import torch
from helpers import F64
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fmeta
from fmeta.core._torch import opened, spellings
from fmeta.operators._noise import DRAWN, Noise
from fmeta.operators._over_tasks import _OPENED, _REPLACED, drawing

KEY = fmeta.key(0)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 6, 8, dtype=F64, generator=GENERATOR)
W = torch.randn(8, dtype=F64, generator=GENERATOR)


def meta_gradient(function, w=W, x=X):
    """Through a step of gradient descent on each of three tasks, by fmeta's way over tasks."""

    def after_a_step(w, x):
        step = grad(lambda v: function(x, v).sin().sum())(w)
        return function(x, w - 0.1 * step).cos().sum()

    return grad(lambda w: fmeta.over_tasks(after_a_step)(w, x).sum())(w)


def by_a_loop(function, w=W, x=X):
    """The same with torch.autograd, task by task."""
    base, total = w.clone().requires_grad_(), 0.0
    for each in x:
        (step,) = torch.autograd.grad(function(each, base).sin().sum(), base, create_graph=True)
        total = total + function(each, base - 0.1 * step).cos().sum()
    return torch.autograd.grad(total, base)[0]


def first(result):
    return result[0] if isinstance(result, tuple) else result


NORMS = {  # each by every name that torch has for it
    "layer_norm": lambda call: lambda x, w: first(call(x * w, [8], w, None, 1e-5)),
    "native_layer_norm": lambda call: lambda x, w: first(call(x * w, [8], w, None, 1e-5)),
    "batch_norm": lambda call: lambda x, w: call(x * w, w, None, None, None, True, 0.1, 1e-5, False),
    "native_batch_norm": lambda call: lambda x, w: first(call(x * w, w, None, None, None, True, 0.1, 1e-5)),
    "instance_norm": lambda call: lambda x, w: call((x * w)[None], w[:6], None, None, None, True, 0.1, 1e-5, False),
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n in NORMS for i, _ in enumerate(spellings(n))])
def test_a_norm_has_its_second_derivative_by_whatever_name_it_is_called(name, number):
    call = spellings(name)[number]
    if "out" in getattr(call, "__name__", ""):
        pytest.skip("writes into a tensor that is given")
    function = NORMS[name](call)
    torch.testing.assert_close(meta_gradient(function), by_a_loop(function))


def test_torch_still_has_the_fault_that_the_norms_are_replaced_for():
    def layer_norm(x, w):
        return F.layer_norm(x * w, (8,), w)

    def after_a_step(w, x):
        step = grad(lambda v: layer_norm(x, v).sin().sum())(w)
        return layer_norm(x, w - 0.1 * step).cos().sum()

    of_torch = grad(lambda w: vmap(after_a_step, (None, 0))(w, X).sum())(W)
    assert (of_torch - by_a_loop(layer_norm)).abs().max() > 1e-3


REFUSED = {
    "_native_batch_norm_legit": lambda call, x: call(x, None, None, True, 0.1, 1e-5),
    "cudnn_batch_norm": lambda call, x: call(x, W, None, None, None, True, 0.1, 1e-5),
    "embedding_bag": lambda call, x: call(x, torch.tensor([0, 1]), torch.tensor([0])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_kernel_without_a_right_derivative_is_refused_by_its_names(name):
    for call in (getattr(torch, name), getattr(torch.ops.aten, name)):
        with pytest.raises(fmeta.InputError, match=name):
            fmeta.over_tasks(lambda x, call=call: REFUSED[name](call, x), shared=())(X)


def test_no_function_of_torch_hides_an_operator_that_is_replaced():
    """A mode sees functions in Python as a whole: those that call such an operator must be replaced or opened.

    Fractional pooling draws in evaluation mode too; vmap refuses it.
    """
    names = {getattr(f, "__name__", "") for f in (*_REPLACED, *DRAWN)} - {
        "linear",
        "max_pool2d",
        "empty",
        "empty_like",
        "conv1d",
        "normal",
    }
    names |= {"bernoulli_", "uniform_", "exponential_", "normal_", "lstm", "gru"}
    hiding = []
    for name, function in vars(F).items():
        if not isinstance(function, types.FunctionType) or function.__module__ != F.__name__:
            continue
        used = names & set(function.__code__.co_names)
        if (
            used
            and "fractional" not in name
            and function not in _REPLACED
            and function not in _OPENED
            and function not in DRAWN
        ):
            hiding.append((name, used))
    assert hiding == []


def test_an_opened_function_is_the_function():
    x = torch.randn(4, 5)
    torch.testing.assert_close(opened(F.dropout)(x, 0.5, False), x)


class TestEmbedding:
    table = torch.randn(7, 4, dtype=F64, generator=GENERATOR)
    ids = torch.randint(0, 7, (3, 6, 5), generator=GENERATOR)

    @pytest.mark.parametrize("padding", [None, 0, 6, -1, -7])
    def test_padding_has_no_derivative(self, padding):
        def rows(ids, w):
            return F.embedding(ids, w, padding_idx=padding) ** 2

        found = meta_gradient(rows, self.table, self.ids)
        torch.testing.assert_close(found, by_a_loop(rows, self.table, self.ids))
        assert padding is None or not found[padding].any()

    @pytest.mark.parametrize("mode", ["sum", "mean", "max"])
    def test_bags_are_torchs(self, mode):
        ids = self.ids.clone()
        ids[0, 0] = 2  # a bag of padding alone
        weights = {"per_sample_weights": torch.rand(6, 5, dtype=F64)} if mode == "sum" else {}
        tables = torch.stack([self.table, self.table + 1, self.table * 2])

        def bag(w, ids):
            return F.embedding_bag(ids, w, mode=mode, padding_idx=2, **weights)

        expected = torch.stack([bag(w, i) for w, i in zip(tables, ids, strict=True)])
        torch.testing.assert_close(fmeta.over_tasks(bag, shared=())(tables, ids), expected)

    def test_a_number_out_of_range_reads_no_other_tasks_row(self):
        tables, ids = self.table.expand(3, 7, 4).contiguous(), self.ids.clone()
        ids[0, 0, 0] = 7
        with pytest.raises(Exception, match=r"out of (range|bounds)"):
            fmeta.over_tasks(lambda w, i: F.embedding(i, w), shared=())(tables, ids)

    @pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
    def test_what_cannot_be_right_is_refused(self, options):
        with pytest.raises(fmeta.InputError, match=next(iter(options))):
            fmeta.over_tasks(lambda i: F.embedding(i, self.table, **options), shared=())(self.ids)
        with pytest.raises(fmeta.InputError, match=r"1 \(Embedding\)." + next(iter(options))):
            fmeta.from_module(nn.Sequential(nn.Identity(), nn.Embedding(7, 4, **options)))


def test_one_hot_over_tasks_within_a_gradient():
    y = torch.arange(12).reshape(3, 4) % 5

    def loss(w, y):
        return (F.one_hot(y, 5).to(F64) @ w).sin().sum()

    w = torch.randn(5, dtype=F64)
    found = fmeta.over_tasks(grad(loss))(w, y)
    torch.testing.assert_close(found, torch.stack([grad(loss)(w, each) for each in y]))
    with pytest.raises(fmeta.InputError, match="num_classes"):
        fmeta.over_tasks(lambda y: F.one_hot(y), shared=())(y)
    with pytest.raises(fmeta.InputError, match="labels run from 0 to 4"):
        fmeta.over_tasks(lambda y: F.one_hot(y, 3), shared=())(y)


def test_a_linear_layer_in_bfloat16_is_rounded_once():
    layer = nn.Linear(9, 6, dtype=torch.bfloat16)
    x = torch.randn(4, 3, 5, 9).bfloat16()
    params = {n: p.detach() for n, p in layer.named_parameters()}
    each = {n: torch.stack([p * (1 + k) for k in range(4)]) for n, p in params.items()}

    def call(p, x):
        return functional_call(layer, p, x)

    shared = fmeta.over_tasks(call)(params, x)
    assert torch.equal(shared, torch.stack([call(params, t) for t in x]))
    own = fmeta.over_tasks(call, shared=())(each, x)
    alone = torch.stack([call({n: p[k] for n, p in each.items()}, x[k]) for k in range(4)])
    torch.testing.assert_close(own, alone, rtol=1e-2, atol=1e-2)
    slopes = fmeta.over_tasks(grad(lambda p, x: call(p, x).float().sin().sum()))(params, x)
    for name, slope in slopes.items():
        exact = torch.stack(
            [
                grad(lambda p, t=t: call(p, t.double()).sin().sum())({n: p.double() for n, p in params.items()})[name]
                for t in x
            ]
        )
        torch.testing.assert_close(slope.double(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_compiles(kind):
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=F64)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(8, 2, dtype=F64)

        def forward(self, x):
            return self.head(self.layer(x)[0].mean(1))

    learner = fmeta.maml(fmeta.from_module(Net()), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    x, y = torch.randn(2, 4, 5, 3, dtype=F64), torch.randn(2, 4, 2, dtype=F64)
    tasks = fmeta.Task(fmeta.Examples(x, y), fmeta.Examples(x, y), fmeta.split(KEY, 2))
    step = fmeta.meta_grad(learner)
    meta = learner.init(KEY)
    torch.testing.assert_close(fmeta.compile(step, backend="aot_eager")(meta, tasks)[0], step(meta, tasks)[0])


def test_a_packed_sequence_is_refused_with_a_cure():
    layer = nn.LSTM(3, 4)

    def call(x):
        return layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4])))[1][0]

    with pytest.raises(fmeta.InputError, match=r"[Pp]acked.*gather"), drawing(Noise(())):
        call(torch.zeros(5, 2, 3))


class TestNoise:
    """Moments of what is drawn in place of torch's own; the zoo holds networks to their own distribution."""

    def draw(self, function, key=KEY):
        with drawing(Noise(key)):
            return function()

    @pytest.mark.parametrize(
        ("function", "mean", "deviation"),
        [
            (lambda: torch.rand(20_000), 0.5, 12**-0.5),
            (lambda: torch.rand_like(torch.zeros(20_000)), 0.5, 12**-0.5),
            (lambda: torch.randn(20_000), 0.0, 1.0),
            (lambda: torch.normal(2.0, 3.0, (20_000,)), 2.0, 3.0),
            (lambda: torch.zeros(20_000).uniform_(-1, 3), 1.0, 4 * 12**-0.5),
            (lambda: torch.zeros(20_000).normal_(1, 2), 1.0, 2.0),
            (lambda: torch.empty(20_000).exponential_(2.0), 0.5, 0.5),
            (lambda: torch.empty(20_000).bernoulli_(0.3), 0.3, 0.21**0.5),
            (lambda: torch.bernoulli(torch.full((20_000,), 0.3)), 0.3, 0.21**0.5),
            (lambda: torch.randint(2, 5, (20_000,)).double(), 3.0, (2 / 3) ** 0.5),
            (lambda: torch.randint(3, (20_000,)).double(), 1.0, (2 / 3) ** 0.5),
            (lambda: torch.randint(0, 3, size=(20_000,)).double(), 1.0, (2 / 3) ** 0.5),
            (lambda: torch.randint(high=3, size=(20_000,)).double(), 1.0, (2 / 3) ** 0.5),
            (lambda: torch.randint(low=2, high=5, size=(20_000,)).double(), 3.0, (2 / 3) ** 0.5),
            (lambda: torch.zeros(20_000).normal_(1, 2, generator=None), 1.0, 2.0),
            (lambda: nn.init.normal_(torch.empty(20_000), 1, 2), 1.0, 2.0),
            (lambda: nn.init.uniform_(torch.empty(20_000), a=-1, b=3), 1.0, 4 * 12**-0.5),
            (lambda: torch.randperm(101).double(), 50.0, None),
            (lambda: F.dropout(torch.ones(20_000), 0.25), 1.0, (0.25 / 0.75) ** 0.5),
            (lambda: torch.native_dropout(torch.ones(20_000), 0.25, True)[0], 1.0, (0.25 / 0.75) ** 0.5),
            (lambda: F.alpha_dropout(torch.zeros(20_000), 0.3, training=True), 0.0, None),
            (lambda: F.rrelu(-torch.ones(20_000), 0.2, 0.4, training=True), -0.3, 0.2 * 12**-0.5),
        ],
    )
    def test_moments(self, function, mean, deviation):
        drawn = self.draw(function).double()
        sure = 5 * (deviation or drawn.std().item()) / len(drawn) ** 0.5 + 1e-9
        assert abs(drawn.mean().item() - mean) < sure
        assert deviation is None or abs(drawn.std().item() / deviation - 1) < 0.05
        assert torch.equal(drawn, self.draw(function).double())
        assert mean == 50 or not torch.equal(drawn, self.draw(function, fmeta.fold(KEY, 1)).double())

    def test_draws_of_one_pass_differ(self):
        one, two = self.draw(lambda: (torch.rand(9), torch.rand(9)))
        assert not torch.equal(one, two)

    def test_tasks_draw_apart_even_into_a_tensor_they_share(self):
        def mask(key):
            with drawing(Noise(key)):
                return torch.empty(50).bernoulli_(0.5)

        masks = fmeta.over_tasks(mask, shared=())(fmeta.split(KEY, 2))
        assert not torch.equal(*masks)

    def test_without_a_key_nothing_is_drawn(self):
        with (
            pytest.raises(fmeta.InputError, match="no key to draw them from; give one"),
            drawing(Noise((), "give one")),
        ):
            torch.rand(3)

    def test_what_cannot_be_drawn_is_refused_by_name(self):
        with pytest.raises(fmeta.InputError, match="poisson draws"):
            self.draw(lambda: torch.poisson(torch.ones(3)))
        with pytest.raises(fmeta.InputError, match="generator"):
            self.draw(lambda: torch.rand(3, generator=torch.Generator()))
        with pytest.raises(fmeta.InputError, match=r"p=1\.5"):
            self.draw(lambda: torch.dropout(torch.ones(3), 1.5, True))

    def test_everything_dropped_is_zero(self):
        for call in (F.dropout, F.alpha_dropout, F.dropout2d):
            assert not self.draw(lambda call=call: call(torch.ones(2, 3, 4, 4), 1.0, True)).any()


WRONG = {
    "layer norm of another width": lambda: F.layer_norm(torch.randn(2, 7), (5,)),
    "batch norm of other channels": lambda: F.batch_norm(torch.randn(4, 3), None, None, torch.ones(1), None, True),
    "a running mean of other channels": lambda: F.batch_norm(torch.randn(4, 3), torch.zeros(1), torch.ones(1)),
    "batch norm without statistics": lambda: F.batch_norm(torch.randn(4, 3), None, None),
    "fewer query heads": lambda: attend((2, 1, 4, 8), (2, 2, 4, 8), enable_gqa=True),
    "an integer mask": lambda: attend((2, 1, 4, 8), (2, 1, 4, 8), attn_mask=torch.ones(4, 4, dtype=torch.int64)),
    "an unknown mode": lambda: F.embedding_bag(torch.zeros(2, 3, dtype=torch.int64), torch.randn(7, 4), mode="foo"),
    "weights of a mean": lambda: F.embedding_bag(
        torch.zeros(2, 3, dtype=torch.int64), torch.randn(7, 4), per_sample_weights=torch.ones(2, 3)
    ),
    "padding out of range": lambda: F.embedding(torch.zeros(2, dtype=torch.int64), torch.randn(7, 4), padding_idx=20),
    "pooling one pixel": lambda: F.max_pool2d(torch.randn(1, 1, 1, 1), 2),
}


def attend(query, key, **options):
    k = torch.randn(key)
    return F.scaled_dot_product_attention(torch.randn(query), k, k, **options)


@pytest.mark.parametrize("what", WRONG)
def test_what_torch_refuses_is_refused(what):
    call = WRONG[what]
    with pytest.raises((RuntimeError, ValueError, AssertionError, NotImplementedError)):
        call()
    with pytest.raises((fmeta.InputError, RuntimeError)), drawing(Noise(())):
        call()


def test_a_single_word_has_its_row():
    table = torch.randn(5, 3)
    found = fmeta.over_tasks(lambda w, i: F.embedding(i, w))(table, torch.tensor([1, 2]))
    assert torch.equal(found, table[1:3])


def test_attention_in_half_precision_has_its_scores_in_float32():
    torch.manual_seed(0)
    q, k, v = ((torch.randn(2, 4, 64, 32) * scale).bfloat16() for scale in (3, 3, 1))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with drawing(Noise(())):
        found = F.scaled_dot_product_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0.02)


def test_the_operators_are_replaced_inside_a_function_of_torch_that_calls_back():
    def distance(a, b):
        with drawing(Noise(KEY)):
            return (F.dropout(a, 0.5, True) - b).norm(dim=-1)

    with drawing(Noise(())):
        one, two = (F.triplet_margin_with_distance_loss(X[0], X[1], X[2], distance_function=distance) for _ in range(2))
    assert one == two
