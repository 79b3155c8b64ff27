"""`compile`: torch.compile with the settings that meta-gradients need, and the scopes it is used in."""

from __future__ import annotations

import functools
import os
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

from fmeta.core import InputError, Stage, eager, nearest

Scope = Literal["none", "whole", "step"]


class Execution(NamedTuple):
    """How a training step is run: `stage` wraps the pieces of a meta-gradient, `whole` the entire step."""

    scope: Scope
    stage: Stage
    whole: Stage


def compile(function: Callable[..., Any], *, backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """One graph for `function`, which may take derivatives inside: `fmeta.compile(trainer.step)`.

    Also a `stage` for `meta_grad` and `trainer`. Shapes are static: another batch size compiles once more. Where the
    default backend has no working C++ compiler, `function` comes back as it is, with one warning.

    Inputs of a function that comes from `meta_grad` or `trainer` are checked at its first call.
    """
    if backend == "inductor":
        problem = compiler_problem()
        if problem:
            warnings.warn(f"fmeta runs eager: {problem}", stacklevel=2)
            return function

    def call(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    # torch.compile caches by code object: with a shared one, every closure of the same source would fill one cache
    name = getattr(function, "__name__", "call")
    alone = types.FunctionType(call.__code__.replace(co_name=name), call.__globals__, name, None, call.__closure__)
    compiled = torch.compile(alone, backend=backend, fullgraph=True, dynamic=False)
    check = getattr(function, "check", None)
    if check is None:
        return compiled

    def checked(*args: Any, **keywords: Any) -> Any:
        nonlocal check
        if check is not None and not torch.compiler.is_compiling():
            check(*args, **keywords)
            check = None
        return compiled(*args, **keywords)

    checked._torchdynamo_orig_callable = function  # type: ignore[attr-defined]  # so that it is known as compiled
    return checked


def plan(scope: str) -> Execution:
    """How to run under a scope: "none" (eager), "whole" (one graph) or "step" (a graph per stage, a loop in Python).

    "whole" is fastest for small nets; its compile time grows with the number of inner steps. "step" compiles in a time
    that does not depend on them.
    """
    if scope not in get_args(Scope):
        raise InputError(f"plan(scope={scope!r}): unknown scope; {nearest(scope, get_args(Scope))}")
    if scope == "whole":
        return Execution("whole", eager, compile)
    return Execution("step", compile, eager) if scope == "step" else Execution("none", eager, eager)


def resolve(scope: str, preferred: Scope) -> Scope:
    """The scope to use: "auto" becomes `preferred`, and anything becomes "none" where nothing can be compiled."""
    chosen = plan(preferred if scope == "auto" else scope).scope
    return "none" if chosen != "none" and compiler_problem() else chosen


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
