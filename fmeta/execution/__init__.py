"""How a step is run: eager is correct, compiled is fast, and both are tested to agree."""

from fmeta.execution._compile import Execution, Scope, compile, compiler_problem, plan, resolve

__all__ = ["Execution", "Scope", "compile", "compiler_problem", "plan", "resolve"]
