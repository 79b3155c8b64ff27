"""Compiled equals eager, whatever comes in and whatever is set around: the result, and the arguments afterwards."""

import contextlib
import enum
import functools
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fmeta
from fmeta.core.tree import tree_leaves
from fmeta.execution import CompileWarning, RetraceWarning
from fmeta.execution._effects import overlap

HERE = contextlib.nullcontext()


def alike(found, expected):
    """Whether two trees have the same leaves: values to the sign of a zero, dtype, device, class."""
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    return all(type(a) is type(b) and kind_and_values(a, b) for a, b in pairs)


def kind_and_values(a, b):
    if not isinstance(a, torch.Tensor):
        return repr(a) == repr(b)
    if (a.dtype, a.device, a.shape) != (b.dtype, b.device, b.shape):
        return False
    if a.device.type == "meta" or a.layout is not torch.strided or a.is_nested:
        return True
    near = torch.allclose(a, b, equal_nan=True)
    return near and (a.is_complex() or bool((a.signbit() == b.signbit()).all()))


def agrees(function, *calls, around=(), backend="aot_eager"):
    """Compiled equals eager in a row of calls. A call is what makes its arguments, each time anew."""
    compiled = fmeta.compile(function, backend=backend)
    for made, within in zip(calls, [*around, *[lambda: HERE] * len(calls)], strict=False):
        mine, theirs = made(), made()
        with warnings.catch_warnings(), within():
            warnings.simplefilter("ignore", RetraceWarning)
            warnings.simplefilter("ignore", CompileWarning)
            found, expected = compiled(*mine), function(*theirs)
        if not (alike(found, expected) and alike(mine, theirs)):
            return False
    return True


def row(first=0.0, count=6):
    return torch.arange(first, first + count)


# ---- one memory in two places --------------------------------------------------------------------


def apart():
    return row(), row(5.0)


def one():
    x = row()
    return x, x


def overlapping():
    x = row(count=10)
    return x[:6], x[2:8]


def side_by_side():
    x = row(count=12)
    return x[:6], x[6:]


def added(a, b):
    return 2 * a + b


def doubled_then_added(a, b):
    a.mul_(2)
    return a + b


ORDERS = [(one, apart), (apart, one), (overlapping, apart), (apart, overlapping), (side_by_side, overlapping)]


@pytest.mark.parametrize("calls", ORDERS)
@pytest.mark.parametrize("function", [added, doubled_then_added])
def test_arguments_that_share_memory(function, calls):
    assert agrees(function, *calls)


def test_arguments_that_share_memory_by_inductor():
    assert agrees(doubled_then_added, apart, one, overlapping, backend="inductor")


@pytest.mark.parametrize(
    "make", [lambda: (row().view(2, 3), row().view(3, 2)), lambda: (lambda t: (t, t.T))(row().view(2, 3))]
)
def test_a_matrix_and_its_transpose(make):
    assert agrees(torch.matmul, make, make)


@pytest.mark.parametrize("function", [lambda a, b: a * b, doubled_then_added])
def test_an_argument_that_is_closed_over(function):
    x, y = row(), row(7.0)
    start = x.clone()
    for first in (x, y):
        compiled = fmeta.compile(lambda a: function(a, x), backend="aot_eager")
        for argument in (first, x, y):
            x.copy_(start)
            expected = function(argument.clone() if argument is y else argument, x)
            x.copy_(start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CompileWarning)
                assert torch.equal(compiled(argument.clone() if argument is y else argument), expected)


def test_a_change_in_place_of_memory_in_two_places_is_said_at_the_first_call():
    with pytest.warns(CompileWarning, match="changes an argument in place that shares memory"):
        fmeta.compile(doubled_then_added, backend="aot_eager")(*one())


def test_addresses_tell_whether_memory_is_shared():
    x = row(count=12)
    assert overlap([x[:6], x[5:]])
    assert not overlap([x[:6], x[6:], row()])
    assert overlap([x[:1].expand(4), x])
    assert not overlap([x[:0], x[:0], torch.eye(2).to_sparse()])
    numbers = np.arange(4.0)
    assert overlap([torch.from_numpy(numbers[:3]), torch.from_numpy(numbers[2:])])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    "function",
    [
        lambda a: a,
        lambda a: a[0],
        lambda a: (lambda b: (b, b, b.T))(a * 2),
        lambda a: {"it": a, "turned": a.T},
        lambda a: a[:1].expand(4, 3),
    ],
)
def test_results_that_are_arguments_or_each_other(function, backend):
    """They share memory where they do in eager code."""
    x, places = row().view(2, 3), []
    for run in (function, fmeta.compile(function, backend=backend)):
        found = tree_leaves(run(x))
        places.append([(t is x, overlap([t, x]), t.stride(), [overlap([t, o]) for o in found]) for t in found])
    assert places[0] == places[1]
    assert agrees(function, lambda: (x,), backend=backend)


def test_a_result_that_is_closed_over_is_itself():
    x = row()
    assert fmeta.compile(lambda a: (a, x), backend="aot_eager")(row(1.0))[1] is x


# ---- tensors that are made inside ----------------------------------------------------------------


def test_a_tensor_made_for_a_default():
    def scaled(a, scale=torch.full((3,), 3.0)):  # noqa: B008  # what is tested
        return a * scale

    assert agrees(scaled, lambda: (torch.ones(3),), lambda: (torch.ones(3), torch.full((3,), 4.0)))


@functools.cache
def sevens():
    return torch.full((3,), 7.0)


class Remembers:
    def __init__(self):
        self.table = None

    def __call__(self, x):
        if self.table is None:
            self.table = x.mean()
        return x * self.table


def kept_in_a_cache():
    sevens.cache_clear()
    return lambda x: x * sevens()


def kept_in_a_list():
    seen = []

    def function(x):
        seen.append(x * 2)
        return x * 3

    return function


def kept_as_a_gradient():
    w = torch.ones(3, requires_grad=True)

    def function(x):
        (w * x).sum().backward()
        return x * 2

    return function


def kept_before_it_fails():
    seen = []

    def function(x):
        seen.append(x * 2)
        return x * 2 if x.sum() > 0 else x

    return function


KEEPING = [kept_in_a_cache, kept_in_a_list, kept_as_a_gradient, kept_before_it_fails, Remembers]


@pytest.mark.parametrize("make", KEEPING)
def test_a_function_that_keeps_what_it_makes_is_refused(make):
    """What it kept has no values: a second call would hand it out."""
    compiled = fmeta.compile(make(), backend="aot_eager")
    for _ in range(2):
        with pytest.raises(
            fmeta.InputError, match=r"keeps a tensor, float32 \[.* made at '.*\(test_equals_eager.py, l"
        ):
            compiled(torch.ones(3))
    sevens.cache_clear()


def test_a_function_that_fails_while_it_is_traced_keeps_nothing():
    def function(x):
        twice = x * 2
        try:
            return twice if twice.sum() > 0 else x
        except RuntimeError as error:
            raise ValueError("on the way") from error

    with pytest.warns(CompileWarning, match="could not be compiled"):
        assert torch.equal(fmeta.compile(function, backend="aot_eager")(row()), 2 * row())


@pytest.mark.parametrize("make", [kept_in_a_cache, Remembers])
def test_what_was_kept_before_is_taken_as_it_is(make):
    function, x = make(), torch.tensor([1.0, 2.0, 3.0])
    function(x)
    assert agrees(function, lambda: (x,), lambda: (2 * x,))
    assert type(function(x)) is torch.Tensor


def test_a_closed_over_tensor_that_it_writes_into_is_written_as_often_as_in_eager_code():
    def counting():
        count = torch.zeros(())

        def function(x):
            count.add_(1)
            return x * count

        return function

    function, compiled, x = counting(), fmeta.compile(counting(), backend="aot_eager"), torch.ones(2)
    with pytest.warns(CompileWarning, match=r"at 'count\.add_\(1\)'.*changes a tensor in place that it closes over"):
        assert torch.equal(compiled(x), function(x))
    assert torch.equal(compiled(x), function(x))


# ---- what is read while tracing ------------------------------------------------------------------


@contextlib.contextmanager
def set_to(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def default_type():
    return set_to(torch.get_default_dtype, torch.set_default_dtype, torch.float64)


def default_device():
    return set_to(lambda: None, torch.set_default_device, "meta")


def product_precision():
    return set_to(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high")


def deterministic():
    return set_to(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


class Doubling(torch.overrides.TorchFunctionMode):
    """Doubles sines."""

    seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is not torch.Tensor.sin:
            return found
        self.seen += 1
        return found * 2


AROUND = {
    "default type": default_type,
    "default device": default_device,
    "a device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "precision of products": product_precision,
    "deterministic": deterministic,
    "a function mode": Doubling,
}


def reads_all(x):
    facts = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return x @ x.T, x.sin(), torch.ones(3), *facts


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("first", [True, False])
def test_global_state(name, first):
    around = [AROUND[name], lambda: HERE] if first else [lambda: HERE, AROUND[name]]
    assert agrees(reads_all, *[lambda: (row().view(2, 3),)] * 3, around=around)


def test_the_warning_names_the_state_that_changed():
    run, x = fmeta.compile(lambda x: x * 2, backend="aot_eager"), row()
    run(x)
    with (
        pytest.warns(RetraceWarning, match="its input changed: deterministic mode from 0 to 2; expected"),
        deterministic(),
    ):
        run(x)


def test_precisions_set_for_each_library_are_no_obstacle():
    """torch then refuses to name one precision."""
    matmul = torch.backends.cuda.matmul
    with set_to(lambda: matmul.fp32_precision, functools.partial(setattr, matmul, "fp32_precision"), "tf32"):
        assert agrees(lambda x: x * 2, lambda: (row(),))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_forward_mode_has_its_tangents(backend):
    run, x = fmeta.compile(torch.sin, backend=backend), row()
    run(x)
    with torch.autograd.forward_ad.dual_level():
        found = run(torch.autograd.forward_ad.make_dual(x, torch.ones(6)))
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(found).tangent, x.cos())


def test_inference_mode_is_told_from_no_grad():
    assert agrees(reads_all, *[lambda: (row().view(2, 3),)] * 2, around=[torch.no_grad, torch.inference_mode])


def test_a_function_mode_sees_every_call():
    run, x = fmeta.compile(lambda x: x.sin(), backend="aot_eager"), row()
    with Doubling() as mode:
        found = [run(x) for _ in range(2)]
    assert mode.seen == 2
    assert all(torch.equal(each, 2 * x.sin()) for each in found)


# ---- kinds of arguments --------------------------------------------------------------------------


class Named(torch.Tensor):
    """A tensor of another class."""


class Shifted(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found + 1 if func is torch.Tensor.mul else found


class Secret(float):
    def __repr__(self):
        return "secret"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def parameter(requires_grad):
    return nn.Parameter(row(), requires_grad)


def told_apart(x, *_):
    return x.detach().mul(3 if isinstance(x, nn.Parameter) else 2)


MATRIX = torch.arange(1.0, 7.0).view(2, 3)
TENSORS = {
    "a parameter": [row(), parameter(True), parameter(False), row()],
    "a parameter first": [parameter(True), row()],
    "requires grad": [row().requires_grad_(), row()],
    "another class": [row().as_subclass(Named), row()],
    "another class later": [row(), row().as_subclass(Named)],
    "a class with its own functions": [row(), row().as_subclass(Shifted), row()],
    "no elements": [torch.ones(0, 3), torch.ones(2, 3), torch.ones(0, 3)],
    "no axes": [torch.tensor(2.0), torch.tensor(3.0)],
    "expanded": [torch.ones(1, 3).expand(2, 3), MATRIX],
    "transposed": [MATRIX, MATRIX.T.contiguous().T, MATRIX.T],
    "every other": [row(count=12)[::2], row()],
    "elsewhere in memory": [row(count=9)[1:7], row(count=9)[3:]],
    "conjugated": [torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj(), torch.tensor([3j])],
    "conjugated first": [torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j])],
    "negated": [torch.tensor([1 + 2j]).imag, torch.tensor([1 + 2j]).conj().imag],
    "negated first": [torch.tensor([1 + 2j]).conj().imag, torch.tensor([1 + 2j]).imag],
    "integers and truths": [torch.arange(3), torch.tensor([True, False, True])],
    "inference": [row(), torch.inference_mode()(row)(), row()],
}


@pytest.mark.parametrize("name", TENSORS)
def test_kinds_of_tensors(name):
    assert agrees(told_apart, *[lambda x=x: (x.detach() if type(x) is torch.Tensor else x,) for x in TENSORS[name]])
    assert agrees(lambda x: x.detach() * 2, *[lambda x=x: (x,) for x in TENSORS[name]])


@pytest.mark.parametrize("name", ["negated", "negated first", "conjugated", "a parameter", "expanded", "no elements"])
def test_kinds_of_tensors_by_inductor(name):
    assert agrees(told_apart, *[lambda x=x: (x,) for x in TENSORS[name]], backend="inductor")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors():
    forms = [MATRIX, MATRIX.to_sparse(), MATRIX.to_sparse_csr(), MATRIX]
    assert agrees(
        lambda x: x.to_dense() * 2 if x.layout is not torch.strided else x * 3, *[lambda x=x: (x,) for x in forms]
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_run_eager():
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)
    with pytest.warns(CompileWarning, match="an argument holds a nested tensor; expected tensors and plain"):
        found = fmeta.compile(lambda x: x * 2, backend="aot_eager")(ragged)
    assert [t.tolist() for t in found.unbind()] == [[2, 2], [2, 2, 2]]


VALUES = [
    [0.1, 0.1 + 2e-17, 0.2],
    [0.0, -0.0, 0, False],
    [float("nan"), 1.0, float("nan"), float("inf")],
    [1, True, 1.0, 1 + 0j, Level.LOW, np.int64(1), np.float64(1), np.True_, Secret(1)],
    [Secret(1), Secret(2)],
    [Level.LOW, Level.HIGH],
    [2**62, 2**62 + 1],
    [np.float64(2), np.float64(3)],
    [np.ones(3, "f4"), np.zeros(3, "f4")],
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_kinds_of_numbers(values):
    def function(x, value):
        return x * (torch.from_numpy(value) if isinstance(value, np.ndarray) else complex(value)), type(value).__name__

    assert agrees(function, *[lambda v=v: (torch.ones(3), v) for v in values])


@pytest.mark.parametrize(
    "values", [["a", b"a", "bb", "a"], [None, "None"], [{}, (), []], [torch.float64, "torch.float64"]], ids=str
)
def test_kinds_of_words_and_of_nothing(values):
    assert agrees(lambda x, value: (x * 2, value, str(value)), *[lambda v=v: (row(), v) for v in values])


def test_dicts_in_another_order_and_other_containers_are_named():
    run, x, y = fmeta.compile(lambda d: d["a"] - d["b"], backend="aot_eager"), row(), row(3.0)
    assert torch.equal(run({"a": x, "b": y}), x - y)
    with pytest.warns(RetraceWarning, match="its input changed: the containers of its arguments from PyTreeSpec"):
        assert torch.equal(run({"b": y, "a": x}), x - y)


def test_calls_without_tensors_and_without_results():
    assert agrees(lambda *values: torch.ones(2) * len(values), tuple, lambda: (2,), lambda: (3,))
    assert agrees(lambda x: None, lambda: (row(),))


# ---- threads -------------------------------------------------------------------------------------


def test_threads_that_compile_at_once():
    """Each has its own result, one function is compiled once, and nobody is left in a trace."""
    learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    meta, tasks = learner.init(fmeta.key(0)), fmeta.tasks.sinusoid()(fmeta.key(1), 4)
    ways = [fmeta.unrolled(), fmeta.adjoint(), fmeta.first_order()]
    eager = [fmeta.meta_grad(learner, way)(meta, tasks)[0] for way in ways]
    compiled = [fmeta.compile(fmeta.meta_grad(learner, way), backend="aot_eager") for way in ways]
    found = {}

    def work(number):
        for _ in range(3):
            found[number] = compiled[number % 3](meta, tasks)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not torch.compiler.is_compiling()
    assert all(fmeta.tree.global_norm(fmeta.tree.sub(found[i], eager[i % 3])) < 1e-5 for i in range(6))


def test_settings_belong_to_their_thread():
    run, x, found = fmeta.compile(reads_all, backend="aot_eager"), row().view(2, 3), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetraceWarning)
        with torch.no_grad(), torch.device("meta"):
            run(x)
            thread = threading.Thread(target=lambda: found.append(run(x)))
            thread.start()
            thread.join()
    assert alike(found[0], reads_all(x))
