"""Imports go downwards only, and the task axis enters in one place."""

import ast
from pathlib import Path

import fmeta

ROOT = Path(fmeta.__file__).parent
LAYERS = ["core", "operators", "gradients", "learners", "execution", "evaluation", "training", "cli"]
BESIDE = {  # what these may import, apart from themselves
    "models": {"core", "operators"},
    "tasks": {"core", "operators"},
    "testing": {"core", "operators", "gradients", "learners", "execution", "fmeta"},
}


def imports(path):
    """The packages of fmeta that a file imports at run time; the top level counts as `fmeta`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fmeta":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fmeta":
                    found.add([*alias.name.split("."), "fmeta"][1])
    return found


def allowed(package):
    if package in BESIDE:
        return BESIDE[package] | {package}
    below = set(LAYERS[: LAYERS.index(package) + 1])
    return below | set(BESIDE) | {"fmeta"} if package == "cli" else below


def test_no_arrow_runs_up():
    for path in ROOT.rglob("*.py"):
        package = path.relative_to(ROOT).parts[0]
        if path.parent == ROOT:
            continue
        wrong = imports(path) - allowed(package)
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_package_is_in_the_picture():
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert packages == set(LAYERS) | set(BESIDE)


def test_vmap_stands_in_one_function():
    users = [p.name for p in ROOT.rglob("*.py") if "vmap(" in p.read_text().replace("def vmap(", "")]
    assert users == ["_over_tasks.py"]


def test_packages_only_re_export():
    """An `__init__` holds imports and `__all__`, nothing else."""
    for path in ROOT.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            kind = isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            named = isinstance(node, ast.Assign) and node.targets[0].id in ("__all__", "__version__")
            assert kind or named, f"{path}: line {node.lineno}"


def test_every_exported_name_exists_and_has_a_docstring():
    for name in fmeta.__all__:
        value = getattr(fmeta, name)
        assert (value.__doc__ or "").strip() or name in ("GradFn", "Output", "Precision", "Solver"), name
