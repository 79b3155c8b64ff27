"""The first moment: what a command imports before it works, and in which encoding it writes."""

import json
import os
import subprocess
import sys

import pytest

PROBE = """
import sys
from fmeta.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "numpy", "matplotlib", "optuna"} & sys.modules.keys()
print("status", status, "imported", *sorted(heavy))
"""


def probed(*words, environment=(), code=PROBE):
    command = [sys.executable, "-c", code, *words]
    env = {**os.environ, **dict(environment)}
    return subprocess.run(command, capture_output=True, env=env, timeout=300, check=False)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["trian"], 2),
        (["train", "sinusoid", "--iner-lr", "1"], 2),
        (["train", "omniglot", "--learner", "protonet", "--context", "3"], 2),
        (["ablate", "glyphs", "--learner", "maml,mamal"], 2),
        (["evaluate", "run", "--task", "3"], 2),
        (["export", "run"], 2),
    ],
)
def test_help_version_and_a_mistyped_option_do_not_wait_for_torch(words, status):
    done = probed(*words)
    assert done.stdout.decode().splitlines()[-1] == f"status {status} imported", done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "there", "not_there"),
    [
        (["train", "omniglot", "--learner", "protonet"], ["--distance", "--ways", "--data-dir"], ["--inner-lr"]),
        (["train", "omniglot"], ["--inner-lr", "--first-order-until", "--resume"], ["--distance", "--context"]),
        (["train", "--learner", "cavia"], ["--context", "--hidden"], ["--data-dir", "protonet"]),
        (["ablate", "glyphs"], ["--seeds", "--drawings"], ["--distance"]),
        (["tune"], ["--trials", "--inner-lr"], ["--distance"]),
        (["predict"], ["--support", "--query"], ["--inner-lr"]),
    ],
)
def test_help_shows_the_options_of_what_was_chosen_and_no_others(words, there, not_there):
    done = probed(*words, "--help", code="import sys\nfrom fmeta.cli import main\nmain(sys.argv[1:])")
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode()
    assert all(option in out for option in there)
    assert not any(option in out for option in not_there)


def test_files_are_utf_8_whatever_the_locale(tmp_path):
    """Classes beyond ASCII, where the system's encoding is ASCII; what the screen lacks is a question mark there."""
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    plain |= {"FMETA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    code = f"""
import locale, sys
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), "the locale did not take"
from fmeta.cli import main
run = {str(run)!r}
tiny = ["--width", "4", "--drawings", "2", "--ways", "2", "--iterations", "1", "--meta-batch", "2", "--eval-tasks", "3"]
assert main(["train", "glyphs", "--learner", "protonet", *tiny, "--run-dir", run]) == 0
assert main(["evaluate", run, "--json"]) == 0
assert main(["report", run]) == 0
assert main(["export", run, "--to", "torch"]) == 0
assert main(["compare", run, run + "/../" + {run.name!r}, "--tasks", "2", "--out", run + "/compared"]) == 0
"""
    done = probed(environment=plain, code=code)
    assert done.returncode == 0, done.stderr.decode()
    texts = {p.name: p.read_bytes().decode("utf-8") for p in run.rglob("*") if p.suffix in (".json", ".html")}
    names = list(json.loads(texts["evaluation.json"])["classes"])
    assert not all(map(str.isascii, names))
    assert any(name in texts["evaluation.json"] for name in names if not name.isascii())  # not as escapes
    assert any(name in texts["report.html"] for name in names if not name.isascii())
    assert texts["compare.json"]
    assert b"?" in done.stdout
