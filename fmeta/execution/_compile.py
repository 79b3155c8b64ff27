"""`compile`: torch.compile with the settings that meta-gradients need, and the scopes it is used in."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch._inductor.config
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters, get_compilation_metrics

from fmeta.core import InputError, Stage, _convolution, _lowerings, _pool, eager, nearest
from fmeta.execution._auto import measured
from fmeta.execution._signature import differences, signature

Scope = Literal["none", "whole", "step", "auto"]
Backend = str | Callable[..., Any]
_REPORT = "the issues of fmeta, with the output under TORCHDYNAMO_VERBOSE=1"


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

    Inputs of a function that comes from `meta_grad` or `trainer` are checked at its first call. Shapes are static:
    other shapes compile once more, with a `RetraceWarning` that names what changed. Where compiling fails, or the
    default backend has no working C++ compiler, the function runs eager, with one `CompileWarning`; its result is the
    same.

    Args:
        function: anything that torch.compile can trace; for "step" and "auto" it comes from `meta_grad` or `trainer`.
        scope: "whole": one graph, the fastest for small nets; its compile time grows with the number of inner steps.
            "step": a graph for each stage of the meta-gradient and a loop in Python; its compile time does not depend
            on the number of inner steps. "auto": measures these and eager code at the first call and remembers the
            fastest for this machine and these shapes; the logger "fmeta" says what was chosen and why. "none": eager.
        backend: of torch.compile.

    Raises:
        InputError: an unknown scope; a scope that the function cannot be compiled in.
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
    if not hasattr(function, "staged"):
        raise InputError(
            f"compile({_name(function)}, scope={scope!r}): expected a function from meta_grad or trainer, whose stages "
            "are known; use scope='whole'"
        )
    if scope == "step":
        return function.staged(functools.partial(compile, backend=backend))
    return measured(function, functools.partial(compile, backend=backend))


def _one_graph(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    _let_graphs_be_cached()
    # torch.compile caches by code object: with a shared one, every closure of the same source would fill one cache
    name = _name(function)
    alone = types.FunctionType(call.__code__.replace(co_name=name), call.__globals__, name, None, call.__closure__)
    compiled = torch.compile(alone, backend=backend, fullgraph=True, dynamic=False)
    check = getattr(function, "check", None)
    traced: dict[str, str] | None = None  # the inputs it was last compiled for
    failed = False

    @functools.wraps(function, updated=())
    def guarded(*args: Any, **keywords: Any) -> Any:
        nonlocal check, traced, failed
        if failed or torch.compiler.is_compiling():
            return function(*args, **keywords)
        if check is not None:
            check(*args, **keywords)
            check = None
        graphs = counters["stats"]["unique_graphs"]
        try:
            result = compiled(*args, **keywords)
        except TorchDynamoException as error:
            failed = True
            result = function(*args, **keywords)  # bad input ends here, under its own name
            warnings.warn(_why(name, error), CompileWarning, stacklevel=2)
        if counters["stats"]["unique_graphs"] != graphs:
            seen = signature(args, keywords)
            if traced is not None:
                changed = differences(traced, seen)
                if changed:
                    changed = f"its input changed: {changed}; drop or pad a smaller last batch"
                else:
                    known = get_compilation_metrics()
                    changed = f"{(known and known[-1].recompile_reason) or 'a global setting or a closure changed'}"
                warnings.warn(
                    f"{name} was compiled once more, because {changed}; expected one compilation for all steps",
                    RetraceWarning,
                    stacklevel=2,
                )
            traced = seen
        return result

    guarded._torchdynamo_orig_callable = function  # type: ignore[attr-defined]  # so that it is known as compiled
    return guarded


@functools.cache
def _let_graphs_be_cached() -> None:
    """Lets torch keep graphs that call fmeta's operators; other code in the operators' files makes other graphs."""
    config, own = torch._inductor.config, {}
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (_convolution, _lowerings, _pool))
    for module, name in ((_convolution, "_bilinear"), (_pool, "max_pool2x2")):
        own[f"{module.__name__}.{name}"] = hashlib.sha256(code).hexdigest()
    config.unsafe_marked_cacheable_functions = {**config.unsafe_marked_cacheable_functions, **own}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", "call")


def _why(name: str, error: Exception) -> str:
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = re.findall(r'File "[^"]*?([^"/\\]+)", line (\d+), in (\w+)\n\s+(\S.*)', text)
    where = f" at {places[-1][3]!r} ({places[-1][0]}, line {places[-1][1]})" if places else ""
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
        source.write_text("#include <Python.h>\n#include <cmath>\nint probe() { return PY_MAJOR_VERSION; }\n")
        include = sysconfig.get_paths()["include"]
        command = [compiler, "-shared", "-fPIC", "-std=c++17", f"-I{include}", str(source), "-o", f"{folder}/probe.so"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        return f"the C++ compiler {compiler} does not work ({reason[:120]})"
    return None
