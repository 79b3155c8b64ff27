"""Compiled equals eager, compiles once, and says when it cannot."""

import logging
import subprocess
import sys

import pytest
import torch
from helpers import LEARNERS, STEPPING, distance
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import fmeta
from fmeta import testing
from fmeta.core import fold
from fmeta.core.tree import tree_leaves
from fmeta.execution import CompileWarning, RetraceWarning
from fmeta.execution._announce import announce_compilation
from fmeta.execution._compile import plan

KEY = fmeta.key(4)
GRADIENTS = {
    "unrolled": fmeta.unrolled,
    "adjoint": fmeta.adjoint,
    "truncated": lambda: fmeta.truncated(1),
    "first_order": fmeta.first_order,
    "difference": fmeta.difference,
    "evolution": lambda: fmeta.evolution(0.01, 2),
    "implicit": lambda: fmeta.implicit(fmeta.cg(3), tolerance=1e9),
    "multi-step": lambda: fmeta.adjoint([0.5, 0.0, 0.5]),
}
STAGES = {  # whatever the inner steps
    "unrolled": 1, "difference": 1, "adjoint": 5, "first_order": 5, "truncated": 7, "evolution": 2, "implicit": 5,
    "multi-step": 5,
}  # fmt: skip
SAME_SHAPE = [n for n in LEARNERS if n.startswith("maml-") or n in ("maml", "reptile", "imaml")]
THREE_STEPS = [n for n, steps in STEPPING.items() if steps == 3]
COVERING = {  # every learner, every meta-gradient and both scopes at least once
    ("maml", "truncated", "step"),
    ("maml-adam", "adjoint", "step"),
    ("maml-clip-momentum", "first_order", "step"),
    ("maml-dropout", "adjoint", "step"),
    ("maml-classes", "unrolled", "whole"),
    ("meta_sgd", "first_order", "whole"),
    ("anil", "adjoint", "step"),
    ("reptile", "difference", "whole"),
    ("maml-rmsprop-masked", "evolution", "step"),
    ("boil", "unrolled", "whole"),
    ("cavia", "multi-step", "step"),
    ("protomaml", "adjoint", "step"),
    ("meta_curvature", "first_order", "step"),
    ("maml_plus_plus", "unrolled", "whole"),
    ("maml_plus_plus", "multi-step", "step"),
    ("imaml", "implicit", "step"),
    ("imaml", "implicit", "whole"),
    ("protonet", "unrolled", "whole"),
    ("protonet-cosine", "unrolled", "step"),
    ("matching", "unrolled", "whole"),
    ("matching-context", "unrolled", "whole"),
    ("relation", "evolution", "whole"),
    ("ridge", "unrolled", "whole"),
}


def combinations():
    for name in LEARNERS:
        for gradient in GRADIENTS:
            fits = {"difference": name in SAME_SHAPE, "implicit": name == "imaml", "multi-step": name in THREE_STEPS}
            if not fits.get(gradient, name in STEPPING or gradient in ("unrolled", "evolution")):
                continue
            for scope in ("whole", "step"):
                quick = (name, gradient, scope) in COVERING
                yield pytest.param(name, gradient, scope, marks=[] if quick else pytest.mark.thorough)


@pytest.mark.parametrize(("name", "gradient", "scope"), list(combinations()))
def test_compiled_equals_eager_and_compiles_once(name, gradient, scope):
    learner, sample, _ = LEARNERS[name]
    meta, tasks = learner.init(KEY), sample(fold(KEY, 1))
    eager = fmeta.meta_grad(learner, GRADIENTS[gradient]())
    counter = CompileCounterWithBackend("aot_eager")

    def stage(function):
        return fmeta.compile(function, backend=counter)

    if scope == "whole":
        compiled = stage(fmeta.meta_grad(learner, GRADIENTS[gradient]()))
    else:
        compiled = fmeta.meta_grad(learner, GRADIENTS[gradient](), stage)
    for seed in (1, 2):
        tasks = sample(fold(KEY, seed))
        assert distance(compiled(meta, tasks), eager(meta, tasks)) < 1e-10
        if seed == 1:
            graphs = counter.frame_count
    assert counter.frame_count == graphs, "new data compiled again"
    assert graphs == (1 if scope == "whole" else STAGES[gradient])


def test_the_same_source_compiles_any_number_of_times():
    counter = CompileCounterWithBackend("aot_eager")
    for i in range(12):
        f = fmeta.compile(lambda x, i=i: x * (i + 1), backend=counter)
        assert f(torch.ones(2))[0] == i + 1
    assert counter.frame_count == 12


def test_another_batch_size_compiles_once_more_and_not_dynamically():
    counter = CompileCounterWithBackend("aot_eager")
    f = fmeta.compile(lambda x: x.sum(), backend=counter)
    f(torch.ones(3))
    with pytest.warns(RetraceWarning):
        f(torch.ones(5))
    f(torch.ones(3))
    with pytest.warns(RetraceWarning):
        f(torch.ones(7))
    assert counter.frame_count == 3


def train(scope, gradient, steps=5):
    learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=2)
    sample = fmeta.tasks.sinusoid()
    return fmeta.fit(
        learner, fmeta.adam(1e-2), sample, key=KEY, iterations=steps, meta_batch=3, gradient=gradient, scope=scope
    )


@pytest.mark.parametrize(("scope", "gradient"), [("whole", None), ("step", fmeta.adjoint())])
def test_training_compiled_by_inductor_equals_eager(scope, gradient):
    """The real backend, the whole loop: meta-gradient, Adam, the guard against non-finite losses."""
    assert distance(train(scope, gradient).meta, train("none", gradient).meta) < 1e-4


def test_an_eager_function_is_its_own_stage():
    run = plan("none")
    assert run.stage(test_an_eager_function_is_its_own_stage) is test_an_eager_function_is_its_own_stage
    assert run.whole(train) is train


def run_with_compiler(tmp_path, script, cxx):
    """A fresh process whose only compiler is a script with this content (or none at all)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if cxx is not None:
        (folder / "g++").write_text(cxx)
        (folder / "g++").chmod(0o755)
    environment = {"PATH": str(folder), "HOME": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)


SCRIPT = """
import fmeta, torch
from fmeta.execution._compile import compiler_problem, plan
f = fmeta.compile(lambda x: x + 1)
print(f(torch.ones(1)).item(), plan("none").scope)
print(compiler_problem())
"""


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        (None, "found no C++ compiler"),
        (
            "#!/bin/sh\necho 'cc1plus: not found' >&2; exit 1\n",
            r"the C++ compiler g++ does not work (cc1plus: not found)",
        ),
    ],
)
def test_without_a_working_compiler_it_says_so_once_and_runs_eager(tmp_path, cxx, message):
    done = run_with_compiler(tmp_path, SCRIPT, cxx)
    assert done.stdout.splitlines()[0] == "2.0 none"
    assert message in done.stdout
    assert done.stderr.count("fmeta runs eager: ") == 1


def test_the_result_of_a_compiled_step_is_new():
    """A compiled step must not hand back its inputs: the state before it stays what it was."""
    learner, sample, _ = LEARNERS["maml"]
    trainer = fmeta.trainer(learner, fmeta.adam(0.01))
    state = trainer.init(KEY)
    before = [t.clone() for t in tree_leaves(state)]
    fmeta.compile(trainer.step, backend="aot_eager")(state, sample(KEY))
    assert all(torch.equal(a, b) for a, b in zip(before, tree_leaves(state), strict=True))


# ---- what a graph is, and what it is not -------------------------------------------------------


def quick(function):
    return fmeta.compile(function, backend="aot_eager")


def test_what_is_no_tensor_is_a_constant_and_another_value_another_graph():
    f = quick(lambda x, options: {"x": x * options["times"], "times": options["times"]})
    x = torch.ones(2)
    assert f(x, {"times": 2})["x"].tolist() == [2, 2]
    with pytest.warns(RetraceWarning, match=r"argument 1\.times from 2 to 3"):
        assert f(x, {"times": 3})["times"] == 3
    with pytest.warns(RetraceWarning, match=r"argument 1\.times from 3 to 3.0"):
        assert isinstance(f(x, {"times": 3.0})["times"], float)
    assert f(x, {"times": 2})["x"].tolist() == [2, 2]


@pytest.mark.parametrize("change", ["layout", "structure", "gradient mode", "default type", "autocast"])
def test_whatever_else_changes_is_noticed(change):
    def f(x):
        x = x[0]
        return (x @ x).sum() + torch.zeros(()), x.stride(0), torch.is_grad_enabled()

    compiled, x = quick(f), torch.arange(6.0).reshape(2, 3)[:, :2]
    compiled((x,))
    inputs = {"layout": (x.clone(),), "structure": [x]}.get(change, (x,))
    before = torch.get_default_dtype()
    try:
        if change == "default type":
            torch.set_default_dtype(torch.float64)
        with (
            torch.set_grad_enabled(change != "gradient mode"),
            torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"),
        ):
            with pytest.warns(RetraceWarning):
                found = compiled(inputs)
            expected = f(inputs)
    finally:
        torch.set_default_dtype(before)
    assert found[1:] == expected[1:]
    assert found[0].dtype == expected[0].dtype
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("odd", [torch.ones(2).numpy(), {1, 2}, object()])
def test_arguments_and_results_that_are_neither_tensors_nor_plain_run_eager(odd):
    with pytest.warns(CompileWarning, match=rf"an argument holds a {type(odd).__name__}; expected tensors and plain"):
        assert quick(lambda x, y: x + 1)(torch.ones(1), odd) == 2
    with pytest.warns(CompileWarning, match=rf"its result holds a {type(odd).__name__}"):
        assert quick(lambda x: (x, odd))(torch.ones(1))[1] is odd


@pytest.mark.parametrize("where", ["argument", "closure"])
def test_a_gradient_is_never_lost(where):
    w = torch.ones(2, requires_grad=True)
    f = quick(lambda x: (w * x).sum() if where == "closure" else (x * x).sum())
    x = torch.ones(2, requires_grad=where == "argument")
    with pytest.warns(CompileWarning, match="its result requires grad; expected a function that takes its derivatives"):
        f(x).backward()
    assert (w if where == "closure" else x).grad is not None
    with torch.no_grad():
        assert not quick(lambda x: w * x)(x).requires_grad


def test_seen_from_outside_it_is_the_function_itself():
    f, x = quick(lambda x: (x**3).sum()), torch.tensor([1.0, 2.0])
    f(x)
    assert torch.func.grad(f)(x).tolist() == [3, 12]
    assert torch.func.vmap(f)(x[:, None]).tolist() == [1, 8]
    assert fmeta.compile(lambda x: f(x) + 1, backend="aot_eager")(x) == 10
    square = quick(lambda x: x @ x)
    square(torch.eye(3))
    with FlopCounterMode(display=False) as counter:
        square(torch.eye(3))
    assert counter.get_total_flops() == 54


def test_a_buffer_that_is_closed_over_is_read_at_every_call():
    buffer = torch.ones(2)
    f = quick(lambda x: x + buffer)
    f(torch.ones(2))
    buffer.fill_(5.0)
    assert f(torch.ones(2)).tolist() == [6, 6]


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_a_first_call_on_one_tensor_in_two_places_is_no_promise(name):
    learner, tasks, _ = LEARNERS[name]
    law = "compiled on aliased arguments equals eager"
    assert testing.check_learner(learner, tasks(KEY), laws=[law]).passed == [law]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_one_tensor_in_two_places_is_two_inputs(backend):
    x, y = torch.ones(3), torch.full((3,), 5.0)
    run = fmeta.compile(lambda a, b: 2 * a + b, backend=backend)
    assert [run(*pair)[0].item() for pair in ((x, x), (x, y), (y, x))] == [3.0, 7.0, 11.0]


def compile_once(backend="aot_eager"):
    fmeta.compile(lambda x: x.sin(), backend=backend)(torch.ones(3))


def set_up_logging(monkeypatch, *handlers):
    """These and no others, pytest's own neither."""
    monkeypatch.setattr(logging.getLogger("fmeta"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("fmeta"), "handlers", list(handlers))


def test_compiling_is_said_to_the_logger(caplog, capsys):
    with caplog.at_level(logging.INFO, "fmeta"):
        compile_once()
    assert caplog.messages == ["compiling <lambda>"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_where_no_logging_is_set_up_compiling_is_said_to_a_terminal(monkeypatch, capsys, terminal):
    set_up_logging(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    compile_once()
    assert capsys.readouterr().err == ("fmeta: compiling <lambda>\n" if terminal else "")


def test_who_has_set_up_logging_is_not_spoken_to_beside_it(monkeypatch, capsys):
    set_up_logging(monkeypatch, logging.NullHandler())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    compile_once()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("operations", "said"), [(100, []), (500, ["about 10 s"]), (4400, ["about 88 s"]), (5100, ["about 2 min"])]
)
def test_a_long_compilation_says_about_how_long(caplog, operations, said):
    with caplog.at_level(logging.INFO, "fmeta"):
        announce_compilation("step", operations)
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))


def test_an_eager_run_never_says_that_it_compiles(caplog):
    with caplog.at_level(logging.INFO, "fmeta"):
        train("none", None, steps=2)
    assert not any("compil" in message for message in caplog.messages)
