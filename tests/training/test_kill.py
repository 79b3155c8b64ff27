"""Runs that are killed with SIGKILL: resumed, they end with the same bits as a run that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import lines_of

from fmeta.cli import main

N = 160
SMALL = ["--iterations", str(N), "--save-every", "20", "--log-every", "10", "--hidden", "8", "8", "--meta-batch", "4"]
SMALL += ["--eval-tasks", "10", "--eval-steps", "0", "1"]

if os.name != "posix":
    pytest.skip("needs SIGKILL", allow_module_level=True)


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _fmeta(*arguments, code=None):
    command = [sys.executable, "-m", "fmeta"] if code is None else [sys.executable, "-c", code]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
    )


def _finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def _steps(run):
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


def _assert_same(one, two):
    states = [run / "checkpoints" / f"{N:08d}" / "state.safetensors" for run in (one, two)]
    assert states[0].read_bytes() == states[1].read_bytes()
    assert lines_of(one) == lines_of(two)
    assert [line["step"] for line in lines_of(one)] == list(range(10, N + 1, 10))
    assert (one / "evaluation.json").read_text() == (two / "evaluation.json").read_text()


def _killed_past(step, run, *arguments):
    """A run that was killed after so many steps; begun anew where it was over first, as can be on a busy machine."""
    for _ in range(5):
        process, deadline = _fmeta("train", *SMALL, *arguments, "--run-dir", str(run)), time.monotonic() + 200
        while process.poll() is None and max(_steps(run), default=0) <= step:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        output, _ = process.communicate()
        if process.returncode and max(_steps(run), default=0) < N:
            assert process.returncode == -signal.SIGKILL, output
            return
        shutil.rmtree(run)
    raise AssertionError("five runs were over before they could be killed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "B"
    assert main(["train", *SMALL, "--compile", "none", "--run-dir", str(run)]) == 0
    return run


def test_killed_at_any_moment_and_resumed_a_run_ends_with_the_same_bits(tmp_path, undisturbed):
    run = tmp_path / "A"
    _killed_past(40, run, "--compile", "none")
    _finish(_fmeta("train", "--resume", "--run-dir", str(run)))
    _assert_same(run, undisturbed)


KILLER = """
import os, shutil, signal, sys
from fmeta.cli import main
from fmeta.training import _checkpoint

target, name, wanted = {where}, {name!r}, {wanted}
real, calls = getattr(target, name), []

def killed(path, *rest, **more):
    if "000000" in str(path):
        calls.append(path)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *rest, **more)

setattr(target, name, killed)
main(sys.argv[1:])
"""
MOMENTS = {
    "before the tensors": ("_checkpoint", "_write", 5),
    "between tensors and facts": ("_checkpoint", "_write", 6),
    "before an old one is set aside": ("os", "rename", 3),
    "before the new checkpoint is published": ("os", "rename", 4),
    "before an old one is removed": ("_checkpoint.shutil", "rmtree", 5),
}


QUICK = ("between tensors and facts", "before an old one is removed")


@pytest.mark.parametrize("moment", [m if m in QUICK else pytest.param(m, marks=pytest.mark.thorough) for m in MOMENTS])
def test_killed_in_the_middle_of_saving_and_resumed_a_run_ends_with_the_same_bits(tmp_path, undisturbed, moment):
    where, name, wanted = MOMENTS[moment]
    run = tmp_path / "A"
    code = KILLER.format(where=where, name=name, wanted=wanted)
    process = _fmeta("train", *SMALL, "--compile", "none", "--run-dir", str(run), code=code)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output
    assert 20 <= max(_steps(run)) <= 60
    assert main(["train", "--resume", "--run-dir", str(run)]) == 0
    _assert_same(run, undisturbed)
    assert all(p.name.isdigit() for p in (run / "checkpoints").iterdir())  # nothing half written stays


@pytest.mark.thorough
def test_killed_while_compiled_and_resumed_a_run_ends_with_the_same_bits(tmp_path):
    whole, run = tmp_path / "B", tmp_path / "A"
    _finish(_fmeta("train", *SMALL, "--compile", "whole", "--run-dir", str(whole)))
    _killed_past(40, run, "--compile", "whole")
    _finish(_fmeta("train", "--resume", "--run-dir", str(run)))
    assert json.loads((run / "recipe.json").read_text())["scope"] == "whole"
    _assert_same(run, whole)
