"""Meta-learning as pure functions: exact, batched and compiled meta-gradients on torch.func.

Each package is a chapter: `fmeta.core` (the vocabulary), `fmeta.learners` (the algorithms), `fmeta.gradients` (how to
differentiate through adaptation) and `fmeta.training` (the step and the loop) come first; then what you need of
`fmeta.models`, `fmeta.tasks`, `fmeta.evaluation`, `fmeta.execution` (compile, capture, memory), `fmeta.operators` (the
task axis) and `fmeta.testing` (the laws). What most programs need is here by its own name, too: `fmeta.maml`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmeta._version import __version__

if TYPE_CHECKING:
    from fmeta import execution, models, recipes, runs, tasks, testing
    from fmeta.core import *
    from fmeta.evaluation import *
    from fmeta.execution import *
    from fmeta.gradients import *
    from fmeta.learners import *
    from fmeta.models import from_module, to_module
    from fmeta.operators import *
    from fmeta.runs import Adapted, Predictions, adapt
    from fmeta.training import *

_WHOLE = ("core", "operators", "gradients", "learners", "execution", "evaluation", "training")  # all their names
_PARTS = {"models": ("from_module", "to_module"), "runs": ("Adapted", "Predictions", "adapt")}  # these names
_PACKAGES = ("cli", "models", "recipes", "runs", "tasks", "testing", *_WHOLE)


def __getattr__(name: str) -> Any:
    """What is asked for, from the package that has it: `import fmeta` waits for none of them, nor for torch."""
    if name in _PACKAGES:
        return importlib.import_module(f"fmeta.{name}")
    if name == "__all__":
        return sorted({*_PACKAGES, *_homes()})
    if not name.startswith("_"):
        homes = _homes()
        if name in homes:
            return globals().setdefault(name, getattr(importlib.import_module(f"fmeta.{homes[name]}"), name))
    raise AttributeError(f"module 'fmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]


def _homes() -> dict[str, str]:
    """Every name that the packages make public here, and the package that has it."""
    whole = {name: package for package in _WHOLE for name in importlib.import_module(f"fmeta.{package}").__all__}
    return whole | {name: package for package, names in _PARTS.items() for name in names}
