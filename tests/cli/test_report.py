"""`fmeta report`: one page that holds together by itself and says what `fmeta evaluate` says."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import options_of
from PIL import Image

from fmeta.cli import main
from fmeta.runs import open_run
from fmeta.runs._folder import change_run

SINUSOID = ["sinusoid", "--hidden", "4", "4", "--iterations", "4", "--compile", "none", "--eval-steps", "0", "1", "3"]
GLYPHS = ["glyphs", "--width", "8", "--drawings", "6", "--ways", "3", "--query", "2", "--iterations", "4"]
EVERY = ["--meta-batch", "2", "--log-every", "1", "--save-every", "2", "--eval-tasks", "8", "--no-tensorboard"]
RUNS = {
    "sinusoid": [*SINUSOID, "--learner", "meta_sgd"],
    "maml": [*GLYPHS, "--eval-steps", "0", "1"],
    "protonet": [*GLYPHS, "--learner", "protonet", "--eval-tasks", "60", "--shots", "2"],
    "relation": [*GLYPHS, "--learner", "relation"],
    "mann": [*GLYPHS, "--learner", "mann"],
}
VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """What a page holds. Fails where a tag is left open or closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1][0] != "style":
            self.texts.append(([tag for tag, _ in self.open], data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def cells(self):
        """The text of each row of each table, cell by cell."""
        return [text for path, text in self.texts if "td" in path or "th" in path]

    @property
    def text(self):
        return " ".join(" ".join(text for _, text in self.texts).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by name, which nobody may change."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, options in RUNS.items():
            found[name] = tmp_path_factory.mktemp("runs") / name
            assert main(["train", options[0], *EVERY, *options[1:], "--run-dir", str(found[name])]) == 0
        yield found


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    """The report of each run, as text."""
    folder, found = tmp_path_factory.mktemp("pages"), {}
    for name, run in runs.items():
        assert main(["report", str(run), "--out", str(folder / name)]) == 0
        found[name] = (folder / name).read_text(encoding="utf-8")
    return found


def report(run, *options):
    assert main(["report", str(run), *options]) == 0
    return Page((run / "report.html").read_text(encoding="utf-8"))


def evaluation(run, capfd, *options):
    capfd.readouterr()
    assert main(["evaluate", str(run), "--json", *options]) == 0
    return json.loads(capfd.readouterr().out)


def pixels(source):
    assert source.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))) as image:
        return torch.tensor(np.array(image.convert("L"), np.int64))


@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_well_formed_and_complete_in_itself(pages, name):
    text, page = pages[name], Page(pages[name])
    assert len(text) < 3_000_000
    assert text.startswith("<!doctype html>")
    assert "http" not in text
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href="|url\()([^")]*)', text)
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    for image in page.all("img"):
        assert pixels(image["src"]).shape == (28, 28)


@pytest.mark.parametrize("name", RUNS)
def test_the_page_can_be_read_without_seeing_it(pages, name):
    page = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 1
    assert page.all("html") == [{"lang": "en"}]


def test_text_and_lines_stand_out_on_a_bright_and_on_a_dark_screen(pages):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 to 1 for text, 3 to 1 for lines."""

    def luminance(colour):
        digits = colour * 2 if len(colour) == 3 else colour
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dark = (
        dict(re.findall(r"--([\w-]+): #(\w+);", block)) for block in re.findall(r":root \{(.*?)\}", pages["maml"], re.S)
    )
    for colours in (bright, dark):
        for name, colour in colours.items():
            least = {"ink": 4.5, "soft": 4.5, "right": 4.5, "wrong": 4.5, "link": 4.5}.get(name)
            least = 3.0 if name.startswith("colour-") else least
            for behind in ("paper", "card") if least else ():
                high, low = sorted((luminance(colour), luminance(colours[behind])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


# figures


@pytest.mark.parametrize("name", RUNS)
def test_the_figures_are_those_of_evaluate(runs, pages, capfd, name):
    figures, page = evaluation(runs[name], capfd), Page(pages[name])
    metric = open_run(runs[name]).experiment.recipe.metric.name
    factor, digits = (100, 2) if metric == "accuracy" else (1, 4)
    cells = page.cells()
    for i, step in enumerate(figures["steps"]):
        row = [factor * figures[metric][column][i] for column in ("mean", "interval95", "median")]
        mean, half, median = (f"{value:.{digits}f}" for value in row)
        at = cells.index("median") + 1 + 4 * i
        assert cells[at : at + 4] == [str(step), mean, f"±{half}", median]
    unit = "%" if metric == "accuracy" else ""
    assert f"{mean}{unit} ± {half}{unit}" in page.text
    for name_of, value in figures["protocol"].items():
        assert f"{name_of} {value}" in page.text


def test_the_class_figures_and_confusions_are_those_of_evaluate(runs, pages, capfd):
    figures, page = evaluation(runs["protonet"], capfd), Page(pages["protonet"])
    for name in ("precision", "recall", "f1"):
        assert f"{100 * figures[name]['mean'][0]:.2f} ± {100 * figures[name]['interval95'][0]:.2f}" in page.cells()
    calibration = figures["calibration error"]
    low, high = (100 * value for value in calibration["interval95"][0])
    assert f"{100 * calibration['pooled'][0]:.2f} ({low:.2f} to {high:.2f})" in page.cells()
    cells = page.cells()
    listed = cells[cells.index("times") + 1 :]
    for i, (truth, other, count) in enumerate(figures["confused"]):
        assert listed[3 * i : 3 * i + 3] == [truth, other, str(count)]


def test_a_row_of_the_confusion_matrix_sums_to_the_examples_of_its_class(runs, pages, capfd):
    classes = evaluation(runs["protonet"], capfd)["classes"]
    body = re.search(r'<table class="matrix">.*?<tbody>(.*?)</tbody>', pages["protonet"], re.S).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    assert len(rows) == 20 < len(classes)
    assert f"The 20 of {len(classes)} classes most often confused" in pages["protonet"]
    for place, row in enumerate(rows):
        name = re.search(r"<bdi>(.*?)</bdi>", row).group(1)
        counts = [int(count or 0) for count in re.findall(r"<td[^>]*>(\d*)</td>", row)]
        assert len(counts) == 21
        assert sum(counts) == classes[name]["examples"]
        assert counts[place] == round(classes[name]["recall"] * classes[name]["examples"])


@pytest.mark.parametrize("name", ["maml", "protonet", "relation"])
def test_sample_episodes_are_the_first_test_tasks_judged_as_in_the_evaluation(runs, pages, capfd, name):
    of, page = open_run(runs[name]).experiment, Page(pages[name])
    recipe, tasks, (classes, names) = of.recipe, of.test_tasks(3), of.test_classes(3)
    images = page.all("img")
    support = [image for image in images if image["alt"].startswith("support")]
    query = [image for image in images if image["alt"].startswith("query")]
    assert (len(support), len(query)) == (3 * 3 * recipe.shots, 3 * 3 * recipe.query)
    for i, image in enumerate(query):
        task, example = divmod(i, 3 * recipe.query)
        x, way = tasks.query.x[task, example, 0], int(tasks.query.y[task, example])
        assert int((pixels(image["src"]) - (255 * (1 - x)).round()).abs().max()) <= 1
        assert image["alt"] == f"query example of {names[classes[task, way]]}"
    answers = re.findall(r"is <bdi>(.*?)</bdi><br>\nsaid <bdi>(.*?)</bdi>, (\d+)%", pages[name])
    told = re.findall(r"<strong>(. \w+)</strong>", pages[name])
    assert told == ["✓ right" if truth == said else "✗ wrong" for truth, said, _ in answers]
    assert all(int(share) >= 33 for _, _, share in answers)  # the most probable of three
    right = sum(truth == said for truth, said, _ in answers) / len(answers)
    figures = evaluation(runs[name], capfd, "--tasks", "3")
    assert right == pytest.approx(figures["accuracy"]["mean"][-1])


def test_a_stream_has_no_support_set_and_no_classes_but_pictures_and_answers(pages):
    page = Page(pages["mann"])
    assert "None: mann reads a stream" in page.text
    assert "Streams do not tell their classes apart" in page.text
    assert len(page.all("img")) == 3 * 3 * 3
    assert "mann takes no inner steps" in page.text


def test_a_regression_shows_its_curves_and_learned_rates(pages):
    page = Page(pages["sinusoid"])
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert sum(label.startswith("test task") and "Query error" in label for label in labels) == 3
    assert any(label.startswith("Learned inner rates") for label in labels)
    assert {"true curve", "support points", "after 3 steps"} <= {text for _, text in page.texts}
    assert "These tasks have no classes" in page.text


def test_the_curves_tell_what_the_metrics_hold(runs, pages):
    lines = [json.loads(line) for line in (runs["maml"] / "metrics.jsonl").read_text().splitlines()]
    labels = [svg["aria-label"] for svg in Page(pages["maml"]).all("svg")]
    checks = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    best = min(checks, key=checks.get)
    (loss,) = [label for label in labels if label.startswith("loss over meta-steps")]
    assert f"Training from {lines[0]['loss']:.4g} to {lines[-1]['loss']:.4g}" in loss
    assert f"{checks[best]:.4g} at the best checkpoint, of meta-step {best}" in loss
    for name in ("accuracy", "gradient norm", "tasks per second", "FLOP per second", "Shares of the time"):
        assert sum(label.startswith(name) for label in labels) == 1


def test_fields_other_than_the_defaults_come_first_and_all_are_there(runs, pages):
    text = Page(pages["protonet"]).text
    listed = text[text.index("Other than by default") : text.index("Environment", text.index("Other than by default"))]
    changed, unchanged = listed.split("As by default")
    assert "learner changed protonet maml" in changed
    assert "shots changed 2 1" in changed
    assert "query changed" not in unchanged
    fields = options_of(runs["protonet"] / "recipe.json")
    assert all(re.search(rf"\b{name}\b", listed) for name in fields)


def test_the_same_run_gives_the_same_page(runs, pages, tmp_path):
    assert main(["report", str(runs["maml"]), "--out", str(tmp_path / "again")]) == 0
    again = (tmp_path / "again").read_text(encoding="utf-8")
    dated = r"<dt>this report</dt><dd>.*?</dd>"
    assert re.sub(dated, "", again) == re.sub(dated, "", pages["maml"])


# options


def test_tasks_and_checkpoint_are_chosen_as_for_evaluate(runs, tmp_path, capfd):
    run = shutil.copytree(runs["sinusoid"], tmp_path / "run")
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    page = report(run, "--tasks", "3", "--checkpoint", str(steps[0]))
    figures = evaluation(run, capfd, "--tasks", "3", "--checkpoint", str(steps[0]))
    assert f"the checkpoint of step {steps[0]}" in page.text
    assert f"{figures['loss']['mean'][-1]:.4f} ± {figures['loss']['interval95'][-1]:.4f}" in page.text
    assert "over 3 test tasks" in page.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tasks", "1"], "report --tasks 1: expected at least 2"),
        (["--checkpoint", "7"], "report --checkpoint 7: "),
        (["--device", "gpu"], "report --device gpu: "),
        (["--out", "missing/page.html"], "report --out missing/page.html: "),
        (["--out", "."], "report --out .: "),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(runs, tmp_path, monkeypatch, capfd, options, named):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs["sinusoid"]), *options]) == 2
    message = capfd.readouterr().err
    assert named in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert not (runs["sinusoid"] / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capfd):
    assert main(["report", str(tmp_path)]) == 2
    assert "no recipe.json there" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_that_is_there_is_used_again(runs, tmp_path, capfd):
    """Of the same checkpoint, tasks and options; measured anew where these differ, or where it is damaged."""
    run = shutil.copytree(runs["maml"], tmp_path / "run")

    def tests(*options):
        capfd.readouterr()
        page = report(run, *options)
        return "testing step" in capfd.readouterr().out, page.text

    def kept(text):  # without the date
        return re.sub(r"20\d\d-\d\d-\d\d \d\d:\d\d", "", text)

    again, page = tests()
    assert not again
    assert not tests("--checkpoint", "4", "--tasks", "8")[0]
    assert tests("--tasks", "5")[0]
    (run / "evaluation.safetensors").write_bytes((run / "evaluation.safetensors").read_bytes()[:-9])
    again, measured = tests()
    assert again
    assert kept(measured) == kept(page)


# unfinished and odd runs


def test_a_run_that_has_just_begun_says_what_is_missing(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(runs["maml"] / "recipe.json", run)
    text = report(run).text
    for sentence in ("the run has no checkpoint", "No metrics yet", "This run is not finished", "0 of 4"):
        assert sentence in text
    assert main(["report", str(run), "--checkpoint", "best"]) == 2


def test_a_run_without_validation_says_so_and_half_a_line_is_left_out(runs, tmp_path):
    run = shutil.copytree(runs["sinusoid"], tmp_path / "run")
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(first + '\n{"step": 2, "lo')
    shutil.rmtree(run / "checkpoints")
    page = report(run)
    assert "No validation yet" in page.text
    assert f"Training from {json.loads(first)['loss']:.4g}" in page.text


def test_an_unfinished_run_is_tested_as_it_is(runs, tmp_path):
    run = shutil.copytree(runs["sinusoid"], tmp_path / "run")
    change_run(open_run(run), open_run(run).experiment.changed(iterations=9))  # as --resume begins
    assert not (run / "evaluation.json").exists()
    text = report(run).text
    assert "4 of 9" in text
    assert f"fmeta train --resume --run-dir {run}" in text
    assert "over 8 test tasks" in text


def test_figures_that_are_no_numbers_are_shown_as_such(tmp_path):
    """A rate that spoils every task, and metrics with all that JSON can hold."""
    run = tmp_path / "run"
    assert main(["train", *SINUSOID, *EVERY, "--inner-lr", "1e3", "--eval-steps", "40", "--run-dir", str(run)]) == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN, "residual": 1e9}\n{"step": 6, "loss": Infinity, "word": "text"}\n')
        file.write('{"step": 6, "odd $x <b>": 1, "validation/odd $x <b>": 2}\n')
        file.write('{"step": 7, "loss": 1e-9, "skipped": 2, "residual": 1, "all": NaN}\n{"step": 8, "all": NaN}\n')
    page = report(run)
    assert "nan ± nan" in page.text
    assert "In 8 of them the result is no finite number." in page.text
    titles = {text for path, text in page.texts if path[-1] == "h3"}
    assert {"Residual", "Skipped", "All", "Odd $x <b>"} <= titles
    assert "validation odd $x <b>" in {text for path, text in page.texts if path[-1] == "text"}
    assert "Word" not in titles


def test_training_time_adds_up_over_the_processes_of_a_resumed_run(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(runs["maml"] / "recipe.json", run)
    seconds = [50.0, 100.0, 40.0, 80.0]
    lines = [{"step": i + 1, "loss": 1.0, "time/seconds": s} for i, s in enumerate(seconds)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "3.0 minutes" in report(run).text


def test_long_metrics_stay_a_small_page(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(runs["sinusoid"] / "recipe.json", run)
    last = json.loads((runs["sinusoid"] / "metrics.jsonl").read_text().splitlines()[-1])
    lines = [json.dumps({**last, "step": step, "loss": step % 7}) for step in range(1, 20_001)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page = report(run)
    assert (run / "report.html").stat().st_size < 500_000
    assert any("the mean of 50 lines" in text for _, text in page.texts)


SCRIPT = "<script>alert('&amp;')</script>"
MARKED = f"""
from dataclasses import dataclass
from typing import ClassVar
from fmeta.recipes import Glyphs

@dataclass(frozen=True, kw_only=True)
class Marked(Glyphs):
    note: str = ""
    name: ClassVar[str] = "marked {SCRIPT}"

    def classes(self, split):
        found = super().classes(split)
        return found._replace(names=tuple(name + " {SCRIPT}" for name in found.names))
"""


def test_what_the_user_wrote_is_shown_and_never_markup(tmp_path):
    """In the name of a recipe and its options, in the folder's name and in the names of classes."""
    (tmp_path / "marked.py").write_text(MARKED)
    run, recipe = tmp_path / "<script>" / "run", ["--recipe", f"{tmp_path / 'marked.py'}:Marked"]
    assert main(["train", *recipe, *EVERY, *GLYPHS[1:], "--note", SCRIPT, "--run-dir", str(run)]) == 0
    page = report(run)
    assert not page.all("script")
    assert str(run) in page.text
    assert f"marked {SCRIPT}" in page.text
    assert page.cells().count(SCRIPT) == 1
    assert sum(SCRIPT in cell for cell in page.cells()) > 20
    assert sum(SCRIPT in image["alt"] for image in page.all("img")) == len(page.all("img"))


# in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")
@pytest.mark.parametrize("name", ["sinusoid", "protonet"])
def test_a_browser_shows_the_page_without_complaint_in_any_width(pages, tmp_path, name):
    def browse(text, width, *options):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000", *options]
        return subprocess.run(
            [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
        )

    headline = re.search(r'<p class="figure" id="headline">(.*?)</p>', pages[name]).group(1)
    plain = browse(pages[name], 1280, "--dump-dom")
    assert headline in plain.stdout
    assert "CONSOLE" not in plain.stderr
    probe = """<script>
    const { scrollWidth, clientWidth } = document.documentElement;
    console.error(`widths ${scrollWidth} ${clientWidth}`);
    </script>"""
    (tmp_path / "probed.html").write_text(pages[name].replace("</body>", probe + "</body>"), encoding="utf-8")
    for width in (1280, 400):  # in a frame, because a window has a least width
        frame = f'<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
        told = browse(frame, 1400, "--dump-dom").stderr  # which shows too that the silence above means something
        needed, given = map(int, re.search(r"CONSOLE.*widths (\d+) (\d+)", told).groups())
        assert needed <= given
        assert width - 20 <= given <= width
    picture = tmp_path / "shot.png"
    browse(pages[name], 1280, f"--screenshot={picture}")
    with Image.open(picture) as image:
        assert image.size == (1280, 1000)
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert len(colours) > 100
    assert max(count for count, _ in colours) < 0.9 * 1280 * 1000
