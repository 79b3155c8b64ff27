"""Compiled equals eager, compiles once, and says when it cannot."""

import subprocess
import sys

import pytest
import torch
from helpers import LEARNERS, distance
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

import fmeta
from fmeta.core import fold
from fmeta.execution import RetraceWarning

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
THREE_STEPS = [n for n, row in LEARNERS.items() if row.learner.inner.steps == 3]
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
}


def combinations():
    for name in LEARNERS:
        for gradient in GRADIENTS:
            fits = {"difference": name in SAME_SHAPE, "implicit": name == "imaml", "multi-step": name in THREE_STEPS}
            if not fits.get(gradient, True):
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
    """torch.compile caches by code object: closures of one source would share one cache of eight entries."""
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
    run = fmeta.execution.plan("none")
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
f = fmeta.compile(lambda x: x + 1)
print(f(torch.ones(1)).item(), fmeta.execution.plan("none").scope)
from fmeta.execution import compiler_problem
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
