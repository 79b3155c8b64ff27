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
    for fault in mutations.FAULTS:
        source = (PACKAGE / fault.file).read_text()
        assert source.count(fault.old) == 1, fault.what
        ast.parse(source.replace(fault.old, fault.new))


def test_a_fault_in_a_copy_of_the_package_is_caught(mutations, tmp_path):
    fault = next(f for f in mutations.FAULTS if f.what == "detach the learned rate")
    assert "equals finite differences" in mutations.planted(fault, tmp_path)
