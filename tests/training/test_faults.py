"""The faults of `benchmarks/faults.py`, each done once to small runs. Kills are in `test_kill.py`."""

import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

if os.name != "posix":
    pytest.skip("needs signals and resource limits", allow_module_level=True)


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


@pytest.mark.parametrize(
    "name",
    [
        "interrupted",
        "disk_full",
        "not_writable",
        "pickled_checkpoint",
        "worker_killed",
        "node_lost",
        pytest.param("out_of_memory", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")),
        "bad_task",
        "two_processes",
        pytest.param("damaged_checkpoint", marks=pytest.mark.thorough),
    ],
)
def test_nothing_is_lost(faults, tmp_path, name):
    assert getattr(faults, name)(tmp_path)


def test_damaged_archives_are_refused_and_nothing_climbs_out(faults, tmp_path, omniglot_dir):
    assert faults.damaged_archive(tmp_path, omniglot_dir)
