"""`compile`: a function as one graph for each kind of input, and the scopes in which that is used."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from fmeta.core import InputError, Stage, Staged, eager
from fmeta.core._checks import nearest
from fmeta.core._torch import mark_compiled, watched
from fmeta.core.tree import tree_flatten
from fmeta.execution import _graph
from fmeta.execution._announce import announce, announce_compilation
from fmeta.execution._auto import measured
from fmeta.execution._effects import LIBRARIES, KeptError
from fmeta.execution._graph import Backend, compile_graph
from fmeta.execution._interrupt import interruptible
from fmeta.execution._signature import differences, kind, settings, signature

Scope = Literal["none", "whole", "step", "auto"]
_REPORT = "the issues of fmeta, with the model"
_TRACING = threading.RLock()  # tracing and torch's compilers change state of the whole process


class RetraceWarning(UserWarning):
    """A compiled function was compiled once more. The message says what changed."""


class CompileWarning(UserWarning):
    """Something could not be compiled or captured and runs eager. The message says what and why."""


class Execution(NamedTuple):
    """How a training step is run: `stage` wraps the pieces of a meta-gradient, `whole` the entire step."""

    scope: Scope
    stage: Stage
    whole: Stage


def compile(
    function: Callable[..., Any], *, scope: Scope = "whole", backend: Backend = "inductor"
) -> Callable[..., Any]:
    """`function`, which may take derivatives inside, compiled: `fmeta.compile(trainer.step)`.

    It is run once on tensors without data, `torch.func` and all, and the operations seen are compiled by a backend of
    torch.compile. As in JAX, only tensors among its arguments can change from call to call, and it must not decide by
    a tensor's values. What it reads besides counts as constant: a number, a list or a tensor put in place of another
    in its closure is not seen, while a tensor changed in place is. PyTorch's own global state (gradient and inference
    mode, autocast, default type and device, precision of products, deterministic mode) is looked at in every call.

    Inputs of a function that comes from `meta_grad` or `trainer` are checked at its first call. Other shapes compile
    once more, with a `RetraceWarning` that names what changed. Where compiling fails, or the default backend has no
    working C++ compiler, the function runs eager, with one `CompileWarning`; its result is the same. So does one that
    changes a tensor of its closure in place. Under transforms of torch.func, in forward mode and under modes (a FLOP
    counter) it runs as it is, and so does a call that changes an argument in place which shares memory with another.
    What is compiled, and about how long that will be, goes to the logger "fmeta"; where no logging is set up, to the
    terminal.

    Args:
        function: of trees of tensors; for "step" and "auto" it comes from `meta_grad` or `trainer`.
        scope: "whole": one graph, the fastest for small nets; its compile time grows with the number of inner steps.
            "step": a graph for each stage of the meta-gradient and a loop in Python; its compile time does not depend
            on the number of inner steps. "auto": measures these and eager code at the first call and remembers the
            fastest for this machine and these shapes; the logger "fmeta" says what was chosen and why. "none": eager.
        backend: of torch.compile.

    Raises:
        InputError: an unknown scope; a scope that the function cannot be compiled in; when it is called, a function
            that keeps a tensor which it made, in a cache or a list: call it once before it is compiled.
    """
    if scope not in get_args(Scope):
        raise InputError(f"compile(scope={scope!r}): unknown scope; {nearest(str(scope), get_args(Scope))}")
    if scope == "none":
        return function
    if backend == "inductor":
        problem = compiler_problem()
        if problem:
            warnings.warn(f"fmeta runs eager: {problem}", CompileWarning, stacklevel=2)
            return function
    if scope == "whole":
        return _one_graph(function, backend)
    if not isinstance(function, Staged):
        raise InputError(
            f"compile({_name(function)}, scope={scope!r}): expected a function from meta_grad or trainer, whose stages "
            "are known; use scope='whole'"
        )
    if scope == "step":
        return function.build(functools.partial(compile, backend=backend))
    return measured(function, functools.partial(compile, backend=backend))


def _one_graph(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    name, check = _name(function), function.check if isinstance(function, Staged) else None
    graphs: dict[Any, Callable[..., Any]] = {}
    latest: dict[str, str] | None = None  # the inputs it was last compiled for
    failed = False
    spoiled: KeptError | None = None

    @functools.wraps(function, updated=())
    def compiled(*args: Any, **keywords: Any) -> Any:
        nonlocal failed
        if spoiled is not None:
            raise spoiled
        if failed or watched():
            return function(*args, **keywords)
        leaves, structure = tree_flatten((args, keywords))
        key = structure, settings(), *map(kind, leaves)
        run = graphs.get(key)
        if run is not None:
            return run(leaves)
        if check is not None and latest is None:
            check(*args, **keywords)
        with _TRACING:
            problem = "" if key in graphs else build(key, leaves, structure, signature(args, keywords))
        if problem:
            result = function(*args, **keywords)  # bad input ends here, under its own name
            failed = True
            warnings.warn(problem, CompileWarning, stacklevel=2)
            return result
        return graphs[key](leaves)

    def build(key: Any, leaves: list[Any], structure: Any, now: dict[str, str]) -> str:
        """Adds the graph for these leaves; returns why there is none."""
        nonlocal latest, spoiled
        try:
            run, problem = _attempt(function, name, leaves, structure, backend)
        except KeptError as error:
            spoiled = error
            raise
        if run is None:
            return problem
        graphs[key] = run
        before, latest = latest, now
        if before is not None:
            warnings.warn(
                f"{name} was compiled once more, because its input changed: {differences(before, latest)}; expected "
                "one compilation for all steps; drop or pad a smaller last batch",
                RetraceWarning,
                stacklevel=3,
            )
        return ""

    mark_compiled(compiled, function)
    return compiled


def _attempt(
    function: Callable[..., Any], name: str, leaves: list[Any], structure: Any, backend: Backend
) -> tuple[Callable[..., Any] | None, str]:
    announce(f"compiling {name}")
    told = functools.partial(announce_compilation, name) if backend == "inductor" else lambda operations: None
    try:
        with interruptible():
            return compile_graph(function, leaves, structure, backend, name, told), ""
    except KeptError:
        raise
    except Exception as error:  # whatever a backend or the caller's own code may raise
        return None, _why(name, error)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", "call")


def _why(name: str, error: Exception) -> str:
    """What stopped the compiler, and the last line of the user's own that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    traced = [i for i, frame in enumerate(frames) if frame.name == "flat" and frame.filename == _graph.__file__]
    own = [frame for frame in frames[traced[-1] :] if not frame.filename.startswith(LIBRARIES)] if traced else []
    where = f" at {own[-1].line!r} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:200] if lines else "no message"
    return (
        f"{name} could not be compiled{where}: {type(error).__name__}: {reason}. It runs eager from now on, with the "
        f"same results. If the model is plain PyTorch that vmap can batch, please report this to {_REPORT}"
    )


def plan(scope: str) -> Execution:
    """How to run under a scope: "none" (eager), "whole" (one graph), "step" (a graph per stage, a loop in Python) or
    "auto" (the fastest of them, measured at the first call); `compile` has the details.
    """
    if scope not in get_args(Scope):
        raise InputError(f"plan(scope={scope!r}): unknown scope; {nearest(scope, get_args(Scope))}")
    if scope in ("whole", "auto"):
        return Execution(scope, eager, functools.partial(compile, scope=scope))  # type: ignore[arg-type]
    return Execution("step", compile, eager) if scope == "step" else Execution("none", eager, eager)


@functools.cache
def compiler_problem() -> str | None:
    """Why inductor cannot compile here, in one line, or None. It builds an empty extension once per process."""
    candidates = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    compiler = next((c for c in candidates if c and shutil.which(c)), None)
    if compiler is None:
        return "found no C++ compiler (g++ or clang++); install one to compile"
    if compiler == "cl":
        return None  # MSVC's flags are inductor's business
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_bytes(b"#include <Python.h>\n#include <cmath>\nint probe() { return PY_MAJOR_VERSION; }\n")
        include = sysconfig.get_paths()["include"]
        command = [compiler, "-shared", "-fPIC", "-std=c++17", f"-I{include}", str(source), "-o", f"{folder}/probe.so"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        return f"the C++ compiler {compiler} does not work ({reason[:120]})"
    return None
