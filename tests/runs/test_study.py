"""`fmeta.runs.study`: the trials and the spaces that they come from."""

import itertools
import math
import subprocess
import sys

import pytest
from helpers import options_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fmeta.recipes import Glyphs, Sinusoid
from fmeta.runs import Choice, Chooser, Range, Search, experiment, study
from fmeta.runs._study import open_study, state_of
from fmeta.runs._tuning import usual_space

pytest.importorskip("optuna")


def test_learners_without_an_inner_loop_have_the_outer_rate_alone():
    assert usual_space(experiment("glyphs", learner="protonet")) == {"outer_lr": Range(3e-4, 3e-2, log=True)}


def test_accuracy_is_maximised(tmp_path):
    study = open_study(tmp_path, Chooser(Glyphs, "", {}), {"clip": Choice({"1": 1.0, "2": 2.0, "3": 3.0})}, None)
    for value in (0.5, 0.7, 0.6):
        study.finish(study.claim(3, "grid", 5), value)
    study.keep()
    assert [trial.value for trial in study.ranked()] == [0.7, 0.6, 0.5]
    assert options_of(tmp_path / "best.json")["clip"] == 2.0


def test_a_trial_that_is_held_is_left_alone_and_one_that_is_not_was_broken_off(tmp_path):
    space = {"outer_lr": Range(0.1, 1.0)}
    study, program = (
        open_study(tmp_path, Chooser(Sinusoid, "", {}), space, None),
        """if True:
        import pathlib, sys
        from fmeta.recipes import Sinusoid
        from fmeta.runs import Chooser, Range
        from fmeta.runs._study import open_study
        space, chooser = {"outer_lr": Range(0.1, 1.0)}, Chooser(Sinusoid, "", {})
        trial = open_study(pathlib.Path(sys.argv[1]), chooser, space, None).claim(2, "random", 5)
        print(trial.optuna.number, flush=True)
        sys.stdin.read()
    """,
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "0\n"
        own = study.claim(2, "random", 5)
        assert own.optuna.number == 1
        study.finish(own, 1.0)
        own.lock.release()
        assert study.claim(2, "random", 5) is None
        other.kill()
    again = study.claim(2, "random", 5)
    assert again.optuna.number == 2
    assert [state_of(trial) for trial in study.trials()] == ["broken off", "finished", "running"]
    again.lock.release()


def test_a_grid_of_ranges_gives_every_point_once(tmp_path):
    space = {"inner_lr": Range(0.001, 0.1, log=True), "clip": Range(0.5, 1.0), "inner_steps": Range(1, 3)}
    study, claimed = open_study(tmp_path, Chooser(Sinusoid, "", {}), space, None), []
    while (trial := study.claim(100, "grid", 4)) is not None:
        chosen = trial.experiment.options()
        claimed.append((chosen["inner_lr"], chosen["clip"], chosen["inner_steps"]))
        study.finish(trial, 1.0)
        trial.lock.release()
    rates, clips = [0.001, 0.1 ** (7 / 3), 0.1 ** (5 / 3), 0.1], [0.5, 2 / 3, 5 / 6, 1.0]
    assert claimed == [pytest.approx(point) for point in itertools.product(rates, clips, [1, 2, 3])]
    assert {type(steps) for *_, steps in claimed} == {int}


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 50), st.integers(1, 50), st.booleans(), st.booleans())
def test_the_grid_of_a_range_rises_from_end_to_end(points, low, width, log, whole):
    ends = (low, low + width) if whole else (low / 7, (low + width) / 7)
    grid = Range(*ends, log=log).grid(points)
    assert (grid[0], grid[-1]) == ends
    assert all(a < b for a, b in itertools.pairwise(grid))
    assert len(grid) <= points if whole else len(grid) == points
    if not whole:
        gaps = [math.log(b / a) if log else b - a for a, b in itertools.pairwise(grid)]
        assert max(gaps) == pytest.approx(min(gaps))


def test_a_study_is_a_call_of_the_library(tmp_path):
    """What the command line does, from Python: a sequence of values is a choice."""
    tiny = {"hidden": (4,), "meta_batch": 2, "iterations": 1, "compile": "none", "validation_tasks": 2}
    told = []
    of = experiment("sinusoid", **tiny)
    search = Search(trials=3, sampler="grid")
    found = study(of, {"inner_lr": [0.001, 0.002, 0.003]}, tmp_path / "study", search=search, tell=told.append)
    assert [found.fields_of(trial) for trial in found.trials()] == [
        {"inner_lr": rate} for rate in (0.001, 0.002, 0.003)
    ]
    best = found.experiment_of(found.ranked()[0])
    assert best.options() == {**of.options(), "inner_lr": best.options()["inner_lr"]}
    assert len(told) == 3
    with pytest.raises(ValueError, match="the study there differs: inner_lr"):
        study(of, {"inner_lr": [0.1]}, tmp_path / "study", search=search)
