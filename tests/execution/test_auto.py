"""The scope "auto", chunks and captures: what is measured, what is remembered, what falls back."""

import logging
import subprocess
import sys
import time

import pytest
import torch
from helpers import LEARNERS, distance
from torch._dynamo.testing import CompileCounterWithBackend

import fmeta
from fmeta.core import InputError, fold
from fmeta.core.tree import tree_map
from fmeta.execution import CompileWarning, RetraceWarning
from fmeta.operators import _choices

KEY = fmeta.key(4)


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch, tmp_path):
    """Nothing is known at first."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path))
    _choices._answers.cache_clear()
    yield
    _choices._answers.cache_clear()


def parts(name="maml", gradient=None):
    learner, sample, _ = LEARNERS[name]
    trainer = fmeta.trainer(learner, fmeta.adam(0.01), gradient)
    return trainer, trainer.init(KEY), sample


@pytest.mark.parametrize(
    ("gradient", "ways"), [(fmeta.unrolled(), {"none", "whole"}), (fmeta.adjoint(), {"none", "whole", "step"})]
)
def test_auto_measures_every_scope_that_differs_and_says_why(gradient, ways, caplog):
    trainer, state, sample = parts(gradient=gradient)
    step = fmeta.compile(trainer.step, scope="auto", backend="aot_eager")
    with caplog.at_level(logging.INFO, "fmeta"):
        found, _ = step(state, sample(KEY))
    ((question, answer),) = ((q, a) for q, a in _choices.choices().items() if q.startswith("scope of step"))
    assert answer["milliseconds"].keys() == ways
    assert answer["choice"] == min(ways, key=answer["milliseconds"].get)
    assert any(question in m and f": {answer['choice']} (" in m and "measured now" in m for m in caplog.messages)
    assert distance(found, trainer.step(state, sample(KEY))[0]) < 1e-10


def test_what_auto_chose_is_remembered_by_later_processes(caplog, monkeypatch):
    trainer, state, sample = parts()
    fmeta.compile(trainer.step, scope="auto", backend="aot_eager")(state, sample(KEY))
    before = _choices.choices()
    _choices._answers.cache_clear()  # as a new process begins
    monkeypatch.setattr(_choices, "_best_times", None)  # nothing is timed again
    with caplog.at_level(logging.INFO, "fmeta"):
        fmeta.compile(trainer.step, scope="auto", backend="aot_eager")(state, sample(KEY))
    assert _choices.choices() == before
    assert any("remembered" in message for message in caplog.messages)


def test_a_long_step_is_not_tried_as_one_graph(monkeypatch, caplog):
    monkeypatch.setattr(fmeta.execution._auto, "_LONGEST_GRAPH", 10)
    trainer, state, sample = parts()
    with caplog.at_level(logging.INFO, "fmeta"):
        fmeta.compile(trainer.step, scope="auto", backend="aot_eager")(state, sample(KEY))
    assert "are too many for one graph" in caplog.messages[0]


def test_a_resumed_run_goes_by_the_choices_it_was_begun_with(tmp_path):
    learner, sample, _ = LEARNERS["maml"]

    def train(iterations, **options):
        return fmeta.fit(
            learner,
            fmeta.adam(0.01),
            sample,
            key=KEY,
            iterations=iterations,
            meta_batch=3,
            run_dir=tmp_path / "run",
            **options,
        )

    question = "what this run was begun with"
    _choices.prefer({question: {"choice": "first"}})
    train(2)
    _choices.prefer({question: {"choice": "second"}})
    train(4, resume=True)
    assert _choices.choices()[question] == {"choice": "first"}


ASKS = """
import sys, time, torch
from fmeta.operators._choices import fastest
def candidate(name, seconds):
    def run():
        with open(sys.argv[1], "a") as file:
            file.write(name)
        time.sleep(seconds)
    return run
print(fastest("q", {"a": candidate("a", 0.2), "b": candidate("b", 0.2)}, torch.device("cpu")))
"""


def test_of_processes_that_ask_at_once_one_measures_and_all_get_its_answer(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", ASKS, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=200)[0] for process in runs}
    assert [process.returncode for process in runs] == [0, 0, 0]
    assert len(said) == 1
    assert len((tmp_path / "runs").read_text()) <= 8  # two candidates: to warm up, and three times


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_one_slow_run_decides_nothing(repeats):
    """The first that is timed, after the one to warm up."""
    waits = iter([0, 0.4])
    ways = {"a": lambda: time.sleep(next(waits, 0)), "b": lambda: time.sleep(0.1)}
    assert _choices.fastest("slow once", ways, torch.device("cpu"), repeats=repeats) == "a"


@pytest.mark.parametrize("content", ["", "[]", '{"q": 3}', '{"q": {}}', "\x00"])
def test_a_damaged_memory_is_measured_again(tmp_path, content):
    (tmp_path / "choices.json").write_text(content)
    ways = {"a": lambda: None, "b": lambda: time.sleep(0.05)}
    assert _choices.fastest("q", ways, torch.device("cpu")) == "a"


# ---- scopes ------------------------------------------------------------------------------------


def test_step_scope_is_the_trainer_built_in_stages():
    trainer, state, sample = parts(gradient=fmeta.adjoint())
    step = fmeta.compile(trainer.step, scope="step", backend="aot_eager")
    assert distance(step(state, sample(KEY))[0], trainer.step(state, sample(KEY))[0]) < 1e-10
    assert fmeta.compile(trainer.step, scope="none") is trainer.step


def test_what_cannot_be_compiled_so_is_refused():
    with pytest.raises(
        InputError, match=r"compile\(sum, scope='step'\): expected a function from meta_grad or trainer"
    ):
        fmeta.compile(sum, scope="step")
    with pytest.raises(InputError, match=r"compile\(scope='steps'\): unknown scope; did you mean 'step'"):
        fmeta.compile(sum, scope="steps")


def test_a_retrace_names_what_changed():
    trainer, state, sample = parts()
    step = fmeta.compile(trainer.step, backend="aot_eager")
    step(state, sample(KEY))
    step(state, sample(fold(KEY, 1)))  # new data: no warning, or it would be an error here
    fewer = tree_map(lambda t: t[:2].clone(), sample(KEY))
    with pytest.warns(
        RetraceWarning, match=r"step was compiled once more, .*argument 1\.support\.x from .*\[4, .* to .*\[2, "
    ):
        step(state, fewer)


def test_a_model_that_cannot_be_compiled_runs_eager_with_one_warning_that_names_the_operation():
    def odd(x):
        return x * 2 if x.sum() > 0 else x

    def double(x):
        return odd(x) + 1

    compiled = fmeta.compile(double, backend="aot_eager")
    with pytest.warns(
        CompileWarning, match=r"double could not be compiled at 'return x \* 2 if x.sum\(\) > 0 .*report this to"
    ):
        assert compiled(torch.ones(2)).tolist() == [3, 3]
    assert compiled(-torch.ones(2)).tolist() == [0, 0]  # and no second warning


def test_a_backend_that_fails_is_named_and_the_result_is_right():
    def backend(graph, inputs):
        raise NotImplementedError("no such instruction")

    compiled = fmeta.compile(lambda x: x * 2, backend=backend)
    with pytest.warns(CompileWarning, match=r"<lambda> could not be compiled: NotImplementedError: no such instr"):
        assert compiled(torch.ones(2)).tolist() == [2, 2]


def test_bad_input_is_reported_as_itself_and_not_as_a_failure_to_compile():
    learner, sample, _ = LEARNERS["maml-classes"]
    model = fmeta.models.mlp([5, 8, 3], torch.tanh, torch.float64)  # the data has four features
    learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.5), steps=2)
    grads = fmeta.compile(fmeta.meta_grad(learner), backend="aot_eager")
    with pytest.raises(InputError, match=r"mlp\(\[5, 8, 3\]\): x has shape"):
        grads(learner.init(KEY), sample(KEY))


def test_bad_input_does_not_keep_good_input_from_being_compiled():
    counter = CompileCounterWithBackend("aot_eager")
    f, x = fmeta.compile(lambda a, b: a @ b, backend=counter), torch.eye(3)
    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        f(x, torch.ones(2, 2))
    assert torch.equal(f(x, x), x)
    assert counter.frame_count == 1


# ---- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, "auto"])
@pytest.mark.filterwarnings("ignore:.*relative residual")
@pytest.mark.parametrize("name", ["maml", "cavia", "reptile", "imaml"])
def test_chunks_of_any_size_are_the_whole(name, size):
    learner, sample, _ = LEARNERS[name]
    meta, tasks = learner.init(KEY), sample(KEY)
    expected = fmeta.meta_grad(learner)(meta, tasks)
    assert distance(fmeta.meta_grad(learner, fmeta.chunked(learner.gradient, size))(meta, tasks), expected) < 1e-12


def test_chunks_compile_whole_and_in_stages():
    learner, sample, _ = LEARNERS["maml"]
    meta, tasks = learner.init(KEY), sample(KEY)
    expected = fmeta.meta_grad(learner)(meta, tasks)
    for scope in ("whole", "step"):
        grads = fmeta.meta_grad(learner, fmeta.chunked(fmeta.adjoint(), 3))
        compiled = fmeta.compile(grads, scope=scope, backend="aot_eager")
        assert distance(compiled(meta, tasks), expected) < 1e-10  # and no RetraceWarning: the last slice is smaller


def test_measuring_chunk_sizes_of_compiled_stages_says_nothing():
    learner, sample, _ = LEARNERS["maml"]
    meta, tasks = learner.init(KEY), sample(KEY)
    grads = fmeta.meta_grad(learner, fmeta.chunked(fmeta.adjoint(), "auto"))
    compiled = fmeta.compile(grads, scope="step", backend="aot_eager")
    assert distance(compiled(meta, tasks), fmeta.meta_grad(learner)(meta, tasks)) < 1e-10


@pytest.mark.parametrize("size", [0, -3, 2.5, "all", None])
def test_a_chunk_size_that_is_not_a_positive_count_is_refused(size):
    with pytest.raises(InputError, match=r"chunked\(size="):
        fmeta.chunked(fmeta.unrolled(), size)


# ---- capture -----------------------------------------------------------------------------------


def test_a_capture_without_cuda_runs_eager_with_one_warning_and_the_same_bits():
    trainer, state, sample = parts()
    step = fmeta.capture(lambda state: trainer.step(state, sample(fold(KEY, state.step))))
    with pytest.warns(CompileWarning, match=r"capture\(<lambda>\): its arguments are on cpu; expected all on one CUDA"):
        first, _ = step(state)
    second, info = step(first)  # no second warning
    expected, _ = trainer.step(state, sample(fold(KEY, state.step)))
    expected, expected_info = trainer.step(expected, sample(fold(KEY, expected.step)))
    assert distance(second, expected) == 0
    assert distance(info, expected_info) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_has_the_results_of_an_eager_one_and_survives_new_shapes():
    learner = fmeta.maml(fmeta.models.mlp([1, 8, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=2)
    trainer, sample, key = fmeta.trainer(learner, fmeta.adam(1e-2)), fmeta.tasks.sinusoid(), fmeta.key(0, "cuda")

    def plain(state, scale):
        return trainer.step(state, sample(fold(key, state.step), 4))[0]

    step, state, scale = fmeta.capture(plain), trainer.init(key), torch.ones(3, device="cuda")
    expected = state
    for _ in range(5):
        state, expected = step(state, scale), plain(expected, scale)
    assert distance(state, expected) < 1e-6
    with pytest.warns(CompileWarning, match="its input changed: argument 1"):
        step(state, torch.ones(4, device="cuda"))
