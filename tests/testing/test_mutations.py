"""benchmarks/mutations.py: its faults still fit the source, and one is planted and caught for real."""

import ast
from pathlib import Path

import pytest

import fmeta

PACKAGE, BENCHMARKS = Path(fmeta.__file__).parent, Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def mutations(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return pytest.importorskip("mutations")


def test_every_fault_has_its_line(mutations):
    assert len(mutations.FAULTS) >= 12
    for fault in (*mutations.FAULTS, *mutations.AT_THE_BOUNDARY):
        source = (PACKAGE / fault.file).read_text()
        assert source.count(fault.old) == 1, fault.what
        ast.parse(source.replace(fault.old, fault.new))


def test_every_fault_at_the_boundary_names_its_tests(mutations):
    for fault in mutations.AT_THE_BOUNDARY:
        assert all((BENCHMARKS.parent / each.partition("::")[0]).exists() for each in fault.tests.split()), fault.what


def test_a_fault_at_the_boundary_is_caught_by_its_test(mutations, tmp_path):
    fault = next(
        f for f in mutations.AT_THE_BOUNDARY if f.what == "train on another number of tasks than was asked for"
    )
    assert len(mutations.failing_tests(fault, tmp_path)) == 2


def test_a_fault_in_a_copy_of_the_package_is_caught(mutations, tmp_path):
    fault = next(f for f in mutations.FAULTS if f.what == "detach the learned rate")
    assert "equals finite differences" in mutations.planted(fault, tmp_path)
