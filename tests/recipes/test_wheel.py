"""A recipe that another wheel brings: every command works on it, without an edit in fmeta."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fmeta.cli import _printing, main
from fmeta.runs import experiment
from fmeta.runs._find import recipe_class, recipe_points
from fmeta.runs._rows import offered

PACKAGE = Path(__file__).with_name("tokens_package")
ROOT = Path(__file__).parents[2]  # of this fmeta, whatever is installed beside it
TINY = ["--compile", "none", "--iterations", "4", "--meta-batch", "2", "--log-every", "2", "--save-every", "2"]
TINY += ["--validation-tasks", "4", "--eval-tasks", "6", "--threads", "1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package as pip would install it, in a folder of its own: its module and what its wheel says of itself."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    shutil.copy(PACKAGE / "fmeta_tokens.py", folder)
    facts = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.3\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in members.items())
        for group, members in project["entry-points"].items()
    )
    (facts / "entry_points.txt").write_text(points)
    (facts / "RECORD").write_text(
        "".join(f"{f.relative_to(folder)},,\n" for f in [*folder.glob("*.py"), *facts.glob("*")])
    )
    return folder


@pytest.fixture
def installed(site, monkeypatch):
    """In this process too, for the length of a test."""
    monkeypatch.syspath_prepend(site)
    recipe_points.cache_clear()
    yield
    recipe_points.cache_clear()


@pytest.fixture
def absent():
    """Another test may have left it known."""
    recipe_points.cache_clear()


@pytest.fixture
def fmeta(capfd, tmp_path, monkeypatch):
    """Runs a command in this process, which has torch already; returns what it printed, or its line of error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_printing.console, "_width", 200)

    def run(*arguments, status=0):
        capfd.readouterr()
        try:
            found = main([str(a) for a in arguments])
        except SystemExit as left:  # where help was asked for
            found = left.code
        assert found == status, capfd.readouterr().err
        out, err = capfd.readouterr()
        return line_of(err) if status else out

    return run


def line_of(error):
    assert error.startswith("fmeta: ")
    assert error.count("\n") == 1
    return error


def process(place, path, *arguments):
    """A command in a process of its own, with what lies in these folders."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"}
    command = [sys.executable, "-m", "fmeta", *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def runs(site, tmp_path_factory):
    """A run of maml, resumed, and one of protonet, trained by processes that know no more than where the wheel is."""
    folder = tmp_path_factory.mktemp("runs")
    for words in (
        ["tokens", *TINY, "--run-dir", "maml"],
        ["--resume", "--run-dir", "maml", "--iterations", "6"],
        ["tokens", "--learner", "protonet", *TINY, "--run-dir", "protonet"],
    ):
        done = process(folder, [ROOT, site], "train", *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three topics of one's own as files of token ids, and two files to ask about."""
    folder, chance = tmp_path_factory.mktemp("texts"), random.Random(0)

    def write(file, first):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(str(first + chance.randrange(8)) for _ in range(16)))

    for topic, first in {"cooking": 0, "[b]law": 20, "sport": 40}.items():
        for number in range(2):
            write(folder / "support" / topic / f"{number}.txt", first)
    write(folder / "query" / "about_law.txt", 20)
    write(folder / "query" / "about_sport.txt", 40)
    return folder


def test_it_is_listed_with_the_others(installed, fmeta):
    assert re.search(r"^recipes: .*\bomniglot\b.*\btokens\b", fmeta("--help"), re.MULTILINE)


def test_train_and_resume_know_who_brought_the_recipe(runs):
    stored = json.loads((runs / "maml" / "recipe.json").read_text())
    assert stored["recipe"]["name"] == "tokens"
    assert stored["recipe"]["from"] == "fmeta-tokens 0.3.1"
    assert stored["learner"]["options"]["inner_lr"] == 0.5  # the recipe's default, not the row's
    assert stored["run"]["options"]["iterations"] == 6
    steps = [json.loads(line)["step"] for line in (runs / "maml" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert (runs / "maml" / "adaptation.png").stat().st_size > 1000


def test_evaluate(installed, fmeta, runs):
    said = fmeta("evaluate", runs / "maml")
    assert "query accuracy, %: tasks 6, recipe tokens, split test, ways 5, shots 1, query 3, seed 0" in said
    found = json.loads(fmeta("evaluate", runs / "protonet", "--tasks", "40", "--json"))
    assert found["protocol"]["tasks"] == 40
    assert found["accuracy"]["mean"][0] > 0.5  # chance is 0.2: the windows of topics overlap little


def test_report_shows_the_sequences_as_the_recipe_writes_them(installed, fmeta, runs):
    assert "report: " in fmeta("report", runs / "maml")
    page = (runs / "maml" / "report.html").read_text(encoding="utf-8")
    sequences = re.findall(r">\s*(t\d+(?: t\d+){15})\s*<", page)
    assert len(sequences) == 3 * (5 + 15)  # of three tasks: support and query
    assert len(set(re.findall(r"test topic \d+", page))) >= 5
    assert "data:image/png" not in page


def test_compare(installed, fmeta, runs, tmp_path):
    said = fmeta("compare", runs / "maml", runs / "protonet", "--out", tmp_path / "both")
    assert "accuracy after the last of each run's steps" in said
    stored = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert [Path(one["run"]).name for one in stored["runs"]] == ["maml", "protonet"]


def test_ablate(installed, fmeta, tmp_path):
    options = ["--learner", "maml,protonet", "--distance", "euclidean,cosine", "--seeds", "1", *TINY]
    fmeta("ablate", "tokens", *options, "--run-dir", tmp_path / "study")
    stored = json.loads((tmp_path / "study" / "ablation.json").read_text())
    assert [one["fields"] for one in stored["combinations"]] == [
        {"learner": "maml"},
        {"learner": "protonet", "distance": "euclidean"},
        {"learner": "protonet", "distance": "cosine"},
    ]


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="fmeta tune needs optuna")
def test_tune_and_train_its_best(installed, fmeta, tmp_path):
    fmeta("tune", "tokens", "--trials", "2", "--inner-lr", "0.1:1:log", *TINY, "--run-dir", tmp_path / "study")
    trials = json.loads((tmp_path / "study" / "trials.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    best = tmp_path / "study" / "best.json"
    assert json.loads(best.read_text())["recipe"]["from"] == "fmeta-tokens 0.3.1"
    fmeta("train", "--recipe", best, "--run-dir", tmp_path / "run")
    rate = json.loads((tmp_path / "run" / "recipe.json").read_text())["learner"]["options"]["inner_lr"]
    assert rate in [trial["fields"]["inner_lr"] for trial in trials]


def test_export_needs_the_names_of_the_network_alone(installed, fmeta, runs, tmp_path):
    from safetensors import safe_open

    fmeta("export", runs / "maml", "--to", "safetensors", "--out", tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == {"embedding.weight", "head.weight", "head.bias"}
        assert file.metadata()["recipe"] == "tokens"


@pytest.mark.parametrize("learner", ["maml", "protonet"])
def test_predict_reads_the_recipes_own_files(installed, fmeta, runs, texts, learner, tmp_path):
    out = tmp_path / "answers.csv"
    fmeta("predict", runs / learner, "--support", texts / "support", "--query", texts / "query", "--out", out)
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert rows[0] == ["file", "class", "probability", "p([b]law)", "p(cooking)", "p(sport)"]
    assert [row[0] for row in rows[1:]] == ["about_law.txt", "about_sport.txt"]
    assert [row[1] for row in rows[1:]] == ["[b]law", "sport"]


def test_predict_says_what_the_recipe_says_of_a_bad_file(installed, fmeta, runs, texts, tmp_path):
    shutil.copytree(texts / "query", tmp_path / "query")
    (tmp_path / "query" / "bad.txt").write_text("1 2 three")
    said = fmeta("predict", runs / "maml", "--support", texts / "support", "--query", tmp_path / "query", status=2)
    assert "bad.txt" in said
    assert "expected token ids" in said


def test_check(installed, fmeta):
    said = fmeta("check", "tokens", "--ways", "2", "--meta-batch", "2", "--threads", "1")
    assert "embedding.weight" in said
    assert float(re.search(r"cosine to finite differences ([\d.]+)", said)[1]) > 0.9999


def test_help_shows_the_options_of_the_chosen_learner_alone(installed, fmeta):
    said = fmeta("train", "tokens", "--learner", "protonet", "--help")
    assert "--distance" in said
    assert "topics of a task" in said
    assert "--inner-lr" not in said
    assert "--inner-lr" in fmeta("train", "tokens", "--learner", "maml", "--help")


def test_learners_that_it_cannot_have_are_refused_by_what_they_miss(installed, fmeta):
    said = fmeta("train", "tokens", "--learner", "cavia", status=2)
    assert "recipe tokens gives no context" in said
    assert "maml" in said
    assert "gives no film" in fmeta("train", "tokens", "--learner", "task_encoder", status=2)
    assert "gives no batches" in fmeta("train", "tokens", "--learner", "transfer", status=2)


def test_every_learner_that_it_gives_enough_for_is_ready_by_its_name_alone(installed):
    names = list(offered(recipe_class("tokens")))
    assert {"maml", "protonet", "mann", "ridge", "relation", "matching"} < set(names)
    assert not {"cavia", "task_encoder", "transfer"} & set(names)
    for name in names:
        assert experiment("tokens", learner=name, validation_tasks=2).ready().learner.name


@pytest.mark.parametrize(
    "words",
    [["report"], ["predict", "--support", "s", "--query", "q"], ["train", "--resume", "--run-dir"]],
    ids=lambda words: words[0],
)
def test_where_it_is_not_installed_a_run_says_what_to_install(absent, fmeta, runs, words):
    at = len(words) if words[-1] == "--run-dir" else 1
    said = fmeta(*words[:at], runs / "maml", *words[at:], status=2)
    assert "recipe 'tokens' is not installed here" in said
    assert "install fmeta-tokens" in said


def test_so_it_does_in_a_process_of_its_own(runs):
    done = process(runs, [ROOT], "evaluate", "maml")
    assert done.returncode == 2
    assert "install fmeta-tokens" in line_of(done.stderr)


def test_where_it_is_not_installed_its_name_is_unknown(absent, fmeta):
    assert "unknown recipe 'tokens'" in fmeta("train", "tokens", status=2)
