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

__all__ = ["CompileWarning", "Execution", "RetraceWarning", "Scope", "capture", "compile", "compiler_problem", "plan"]
