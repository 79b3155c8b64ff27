"""`fit(recipe=…)` keeps where the recipe of a run stands; all files are UTF-8, whatever the locale."""

import json
import os
import subprocess
import sys

import pytest
from own_trainers import LEARNER, OUTER, WAVES

import fmeta
from fmeta.core import key


def train(run_dir=None, **more):
    return fmeta.fit(LEARNER, OUTER, WAVES, key=key(0), iterations=1, meta_batch=2, run_dir=run_dir, **more)


def stored(run_dir):
    return json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))


def test_a_module_is_kept_by_its_name(tmp_path):
    train(tmp_path, recipe="fmeta.tasks:sinusoid")
    found = stored(tmp_path)
    assert found["recipe"] == {"object": "fmeta.tasks:sinusoid"}
    assert (found["format"], found["fmeta"]) == (2, fmeta.__version__)


def test_a_file_is_kept_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "größe.py").write_text("class A:\n    recipe = 1\n", encoding="utf-8")
    train(tmp_path / "run", recipe="größe.py:A.recipe")
    assert stored(tmp_path / "run")["recipe"] == {"object": f"{tmp_path.resolve() / 'größe.py'}:A.recipe"}


def test_one_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "recipe.json").write_text("mine")
    train(tmp_path, recipe="fmeta.tasks:sinusoid")
    assert (tmp_path / "recipe.json").read_text() == "mine"
    train(tmp_path / "none")
    assert not (tmp_path / "none" / "recipe.json").exists()


@pytest.mark.parametrize(
    "where", ["fmeta.tasks:sine", "no_such_module:x", "no/file.py:x", "fmeta.tasks", ":x", "bad.py:x"]
)
def test_what_cannot_be_imported_is_refused_by_name_before_a_folder_is_made(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(fmeta.InputError, match=r"fit\(recipe=…\)") as caught:
        train(tmp_path / "run", recipe=where)
    assert repr(where) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_it_needs_a_folder():
    with pytest.raises(fmeta.InputError, match=r"recipe=.*expected run_dir"):
        train(recipe="fmeta.tasks:sinusoid")


SCRIPT = """
import sys, warnings
from own_trainers import LEARNER, OUTER, WAVES
import fmeta
print("begun")
recipe = "anything"
warnings.filterwarnings("error", category=EncodingWarning, module="fmeta")
for resume in (False, True):
    fmeta.fit(LEARNER, OUTER, WAVES, key=fmeta.key(0), iterations=2 + resume, meta_batch=2, run_dir=sys.argv[1],
              resume=resume, recipe=__file__ + ":recipe", saving=fmeta.Saving(1, {"what": "größe"}))
"""


def test_a_script_is_not_run_again_and_no_file_depends_on_the_locale(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNDEFAULTENCODING": "1"}
    command = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
    assert stored(tmp_path / "run")["recipe"] == {"object": f"{script.resolve()}:recipe"}
