"""Writes the numbers between the markers of README.md from the result files.

python benchmarks/readme.py
"""

import json
from pathlib import Path

from _report import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- numbers: written by benchmarks/readme.py from benchmarks/results -->\n", "<!-- end of numbers -->"


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def recipe_lines():
    for path in sorted(RESULTS.glob("recipe-*.json")):
        run = json.loads(path.read_text())
        fields, result = run["recipe"]["fields"], run["evaluation"]
        accuracy = "accuracy" in result
        values = result["accuracy" if accuracy else "loss"]
        unit = (lambda v: f"{100 * v:.2f}%") if accuracy else (lambda v: f"{v:.3f}")
        rows = zip(result["steps"], values["mean"], values["interval95"], strict=True)
        figures = ", ".join(f"{unit(m)} ± {unit(h)} after {s}" for s, m, h in rows if s)
        classes = f"{fields['ways']}-way " if "ways" in fields else ""
        yield (
            f"- `{run['recipe']['recipe']}`, {classes}{fields['shots']}-shot, {fields['learner']}, "
            f"seed {fields['seed']}, "
            f"{fields['iterations']} meta-steps, compile {run['recipe']['scope']}, {run['seconds'] / 60:.1f} minutes "
            f"on {run['machine']['cores']} cores, {result['protocol']['tasks']} test tasks: "
            f"{'accuracy' if accuracy else 'error'} {figures} steps."
        )


def memory_lines():
    run = load("memory")
    if run:
        rows = [
            f"{name} " + ", ".join(f"{b / 2**20:.0f} MiB at {s}" for s, b in row.items() if s.isdigit())
            for name, row in run["bytes"].items()
        ]
        yield "- Peak memory of a Conv4-64 meta-gradient (8 tasks) by inner steps: " + "; ".join(rows) + "."


def speed_lines():
    run = load("sinusoid")
    if run:
        times = run["seconds per meta-step"]
        rows = [f"{name} {1e3 * t['median']:.2f} ms" for name, t in times.items()]
        yield "- One sinusoid meta-step (25 tasks, 1 inner step, Adam), medians of one run: " + "; ".join(rows) + "."


def main():
    text = README.read_text()
    before, rest = text.split(BEGIN)
    lines = [*recipe_lines(), *memory_lines(), *speed_lines()]
    README.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
