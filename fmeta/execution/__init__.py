"""How a step is run: eager is correct, compiled is fast, and both are tested to agree."""

from fmeta.execution._capture import capture
from fmeta.execution._compile import (
    CompileWarning,
    Execution,
    RetraceWarning,
    Scope,
    compile,
    compiler_problem,
    plan,
)
from fmeta.execution._memory import OutOfMemoryError, memory_advice, peak_memory

__all__ = [
    "CompileWarning", "Execution", "OutOfMemoryError", "RetraceWarning", "Scope", "capture", "compile",
    "compiler_problem", "memory_advice", "peak_memory", "plan",
]  # fmt: skip
