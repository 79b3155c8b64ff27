"""What the docstrings show runs, and the reference builds from them."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys

import pytest

import fmeta

PACKAGES = sorted(
    f"fmeta.{m.name}" for m in pkgutil.iter_modules(fmeta.__path__) if m.ispkg and not m.name.startswith("_")
)
CHAPTERS = ["core", "operators", "gradients", "learners", "models", "tasks", "execution", "evaluation", "training",
            "testing", "runs", "recipes", "cli"]  # fmt: skip


def public_values():
    """Every public function and class whose docstring has examples, and its package."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            if ">>>" in (inspect.getdoc(value) or "") and not inspect.ismodule(value):
                found[f"{value.__module__}.{name}"] = package, value
    return found


def run_examples(value, name, known):
    """The examples of one docstring, none of whose names any other sees. `known` are those imported before."""
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(value, name, globs=dict(known)):
        said = []
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)
    return runner.tries


@pytest.mark.parametrize("package", PACKAGES)
def test_the_examples_of_a_chapter_run(package):
    tries = run_examples(importlib.import_module(package), package, {})
    assert tries or package.removeprefix("fmeta.") not in CHAPTERS, f"{package}: its chapter shows nothing that runs"


def test_the_examples_of_every_public_docstring_run():
    for name, (package, value) in public_values().items():
        assert run_examples(value, name, {public: getattr(package, public) for public in package.__all__})


def test_a_wrong_example_fails():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    with pytest.raises(AssertionError, match="Expected"):
        run_examples(wrong, "wrong", {})


def test_the_reference_builds_without_a_warning(tmp_path):
    """With a page for every package. A warning about a named tuple's type: its file defers annotations, which it must
    not, because pdoc cannot resolve them there."""
    if importlib.util.find_spec("pdoc") is None:
        pytest.skip("needs pdoc (pip install '.[docs]')")
    command = [sys.executable, "-m", "pdoc", "fmeta", "--output-directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warn" not in done.stdout + done.stderr, done.stdout + done.stderr
    pages = {page.stem for page in (tmp_path / "fmeta").glob("*.html")}
    assert {package.removeprefix("fmeta.") for package in PACKAGES} <= pages
    assert "maml" in (tmp_path / "fmeta" / "learners.html").read_text(encoding="utf-8")
