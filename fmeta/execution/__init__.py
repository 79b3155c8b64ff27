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
from fmeta.execution._interrupt import interruptible
from fmeta.execution._memory import MemoryAdvice, OutOfMemoryError, peak_memory

__all__ = [
    "CompileWarning", "Execution", "MemoryAdvice", "OutOfMemoryError", "RetraceWarning", "Scope", "capture", "compile",
    "compiler_problem", "interruptible", "peak_memory", "plan",
]  # fmt: skip
