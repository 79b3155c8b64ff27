"""How a step is run: eager is correct, compiled is fast, and both are tested to agree."""

from fmeta.execution._capture import capture
from fmeta.execution._compile import CompileWarning, RetraceWarning, Scope, compile
from fmeta.execution._memory import OutOfMemoryError, peak_memory

__all__ = [
    "CompileWarning", "OutOfMemoryError", "RetraceWarning", "Scope", "capture", "compile", "peak_memory",
]  # fmt: skip
