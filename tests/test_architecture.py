"""Imports go downwards only, and the task axis enters in one place."""

import ast
import re
import typing
from pathlib import Path

import fmeta

ROOT = Path(fmeta.__file__).parent
FLOORS = [  # each may import those before it
    ["core"], ["operators"], ["gradients"], ["learners"], ["execution"], ["evaluation"], ["training"],
    ["runs"], ["recipes"], ["cli"],
]  # fmt: skip
BESIDE = {  # what these may import, apart from themselves
    "models": {"core", "operators"},
    "tasks": {"core", "operators"},
    "testing": {"core", "operators", "gradients", "learners", "execution", "models"},
}
ABOVE_BESIDE = ("runs", "recipes", "cli")  # which may import those too, where they need them
LEAVES = {"_errors", "_lazy", "_objects", "_version"}  # files of the root that everyone may import


def imports(path):
    """The parts of fmeta that a file imports, in functions and for type checkers too; the root counts as `fmeta`."""
    found, parts = set(), {p.stem if p.suffix else p.name for p in ROOT.iterdir()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fmeta":
            names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
            found |= {name if name in parts else "fmeta" for name in names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or node.module is None, f"{path}: a relative import hides its package"
        elif isinstance(node, ast.Import):
            found |= {"fmeta" for alias in node.names if alias.name.split(".")[0] == "fmeta"}
    return found


def allowed(package):
    if package in BESIDE:
        return BESIDE[package] | {package} | LEAVES
    floor = next(number for number, names in enumerate(FLOORS) if package in names)
    below = {name for names in FLOORS[:floor] for name in names} | {package} | LEAVES
    return below | (set(BESIDE) if package in ABOVE_BESIDE else set())


def test_no_arrow_runs_up():
    wrong = {}
    for path in ROOT.rglob("*.py"):
        if path.parent != ROOT:
            over = imports(path) - allowed(path.relative_to(ROOT).parts[0])
            wrong |= {str(path.relative_to(ROOT)): over} if over else {}
    assert wrong == {}


def test_files_of_the_root_import_nothing_of_fmeta_but_one_another():
    """`__init__` takes names from the packages when they are asked for, `__main__` is the command line."""
    files = {path.stem: imports(path) for path in ROOT.glob("*.py")}
    assert files.keys() == LEAVES | {"__init__", "__main__"}
    assert {name: found for name, found in files.items() if name in LEAVES and found - LEAVES} == {}
    assert files["__main__"] == {"cli"}


def test_every_package_is_in_the_picture():
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert packages == {name for names in FLOORS for name in names} | set(BESIDE)


def test_no_domain_and_no_learner_is_named_on_the_command_line():
    """What a recipe or a learner decides, its own file decides."""
    from fmeta.runs._gradient_rows import GRADIENTS
    from fmeta.runs._learner_rows import LEARNERS

    names = {"accuracy", "loss", "omniglot", "glyphs", "images", "mini_imagenet", *LEARNERS, *GRADIENTS}
    for path in [*(ROOT / "cli").glob("*.py"), *(ROOT / "runs").glob("*.py")]:
        if path.name.endswith("_rows.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            said = {side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)}
            assert not said & names, f"{path.relative_to(ROOT)}, line {node.lineno}: decides by {said & names}"


def test_vmap_stands_in_one_function():
    rules = re.compile(r"(def |register_)vmap\(")  # of operators of our own
    users = [p.name for p in ROOT.rglob("*.py") if "vmap(" in rules.sub("", p.read_text(encoding="utf-8"))]
    assert users == ["_over_tasks.py"]


def test_packages_only_re_export():
    """An `__init__` holds imports and `__all__`; where it must not wait for torch, by the one lazy helper."""
    lazy = {ROOT / name / "__init__.py" for name in ("runs", "recipes")}
    for path in ROOT.rglob("__init__.py"):
        if path == ROOT / "__init__.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            kind = isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            targets = [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []
            named = targets == ["__all__"]
            lazily = path in lazy and (
                targets == ["_PLACES"]
                or (targets == ["(__getattr__, __dir__)"] and ast.unparse(node.value) == "lazily(__name__, _PLACES)")
            )
            assert kind or named or lazily, f"{path}: line {node.lineno}"


def test_every_exported_name_exists_and_has_a_docstring():
    for name in fmeta.__all__:
        value = getattr(fmeta, name)
        alias = typing.get_origin(value) is not None  # which can have none
        assert alias or (value.__doc__ or "").strip(), name
