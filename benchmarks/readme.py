"""Writes the numbers between the markers of README.md from the result files.

python benchmarks/readme.py
"""

import json
from pathlib import Path

from _report import RESULTS
from order import LEARNED, learned

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
    if not run:
        return
    slopes = run.get("MiB per inner step", {})
    rows = []
    for name, row in run["bytes"].items():
        known = [(int(s), b) for s, b in row.items() if s.isdigit() and b is not None]
        ends = dict(sorted(known)[:1] + sorted(known)[-1:])
        figures = [f"{b / 2**20:.0f} at {s}" for s, b in ends.items()]
        slope = slopes.get(name, {})
        if slope.get("measured") is not None:
            figures.append(f"{slope['measured']:.1f} per step (parameters alone {slope['trajectory']:.1f})")
        rows.append(f"{name} {', '.join(figures) or 'not measured'}")
    yield "- Peak memory of a Conv4-64 meta-gradient (8 tasks), MiB by inner steps: " + "; ".join(rows) + "."


def mutation_lines():
    run = load("mutations")
    if run:
        yield f"- Faults planted one at a time by `benchmarks/mutations.py`: {run['caught']} of {run['faults']} caught."


def plus_plus_lines():
    run = load("maml_plus_plus")
    if run:
        facts = run["protocol"]
        others = load("maml_plus_plus-schedules") or {"summary": {}}  # the same with the outer schedules exchanged
        figures = [
            f"{name} {100 * r['accuracy']:.1f}% (sd {100 * r['sd over seeds']:.1f}%)"
            for name, r in (run["summary"] | others["summary"]).items()
        ]
        yield (
            f"- `omniglot`, 20-way 1-shot, conv4-{facts['width']}, {facts['iterations']} meta-steps of "
            f"{facts['meta batch']} tasks, {facts['seeds']} seeds, {facts['test_tasks']} test tasks: "
            f"{', '.join(figures)}. maml's own outer rate is constant, maml_plus_plus's a cosine."
        )


def order_lines():
    for problem in ("sinusoid", "omniglot"):
        run = load(f"order-{problem}")
        if not run:
            continue
        facts = run["protocol"]
        accuracy = facts["metric"] == "accuracy"
        yield ""
        yield (
            f"First against second order on `{problem}`: {facts['inner_steps']} inner steps, "
            f"{facts['meta_batch']} tasks a meta-step, compile {facts['scope']}, {facts['seeds']} seeds, "
            f"{facts['test_tasks']} new tasks: mean ± 95% interval over tasks (sd over seeds). implicit is on imaml, "
            "whose few steps do not reach the optimum it presumes; its cosine is to unrolled there."
        )
        yield ""
        what = "accuracy, %," if accuracy else "error"
        yield (
            "| meta-gradient | cosine to the exact one, at the start / trained | time over first order (owed) | "
            f"{what} after {facts['iterations']} meta-steps | {what} at equal time |"
        )
        yield "|---|---|---|---|---|"
        for name, row in run["gradients"].items():
            cosines = [f"{row[when]['cosine']:.2f}" for when in ("at initialisation", "after training")]
            ratio, count = row["time over first order"], row["equal wall clock"]["iterations"]
            figures = [learned(row[when], accuracy) for when in LEARNED]
            yield (
                f"| {name} | {' / '.join(cosines)} | {ratio['measured']:.2f} ({ratio['owed']:.2f}) | "
                f"{figures[0]} | {figures[1]}, {count:.0f} meta-steps |"
            )


def families_lines():
    """A row for every learner and baseline, a column for every test."""
    run = load("families")
    if not run:
        return
    columns = {
        "5-way 1-shot": "omniglot 5 1", "5-way 5-shot": "omniglot 5 5", "20-way 1-shot": "omniglot 20 1",
        "5-way 1-shot on glyphs": "glyphs 5 1",
    }  # fmt: skip
    yield ""
    yield (
        f"Every family in the same time: {run['minutes']:g} minutes of one processor core each, from scratch, "
        f"{run['network']}, Omniglot ({run['data'].split(',', 1)[1].split(';')[0].strip()}); accuracy in % ± 95% "
        f"interval over {run['test tasks']} test tasks ({run['tests']}), one seed. Papers train for hours. "
        "The last column is on another domain, whose scripts no training saw."
    )
    yield ""
    yield "| learner | " + " | ".join(columns) + " | published 5-way 1-shot / 5-shot / 20-way 1-shot |"
    yield "|---" * (len(columns) + 2) + "|"
    longer = load("families-6") or {"models": {}}
    rows = run["models"] | {f"{name}, 6 minutes": row for name, row in longer["models"].items()}
    for name, row in rows.items():
        found = [row["cells"].get(cell) for cell in columns.values()]
        figures = [f"{100 * c['accuracy']:.1f} ± {100 * c['interval95']:.1f}" if c else "" for c in found]
        published = " / ".join("–" if p is None else f"{p:g}" for p in row["published"])
        yield f"| {name} | " + " | ".join(figures) + f" | {published} |"
    alone = {n: c for n, row in run["models"].items() if "alone" in (c := row["cells"].get("omniglot 5 1", {}))}
    if alone:
        yield ""
        rows = []
        for name, cell in alone.items():
            gap = 100 * (cell["accuracy"] - cell["alone"])
            rows.append(f"{name} {100 * cell['alone']:.1f} (gap {gap:.1f} ± {100 * cell['gap interval95']:.1f})")
        yield (
            "5-way 1-shot with every query beside the support set alone, and what seeing the other queries adds (the "
            "transductive gap): " + "; ".join(rows) + "."
        )


def _milliseconds(row):
    ms = 1e3 * row["seconds"]["median"]
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _times(row):
    return f"{row['times fmeta']:.0f}" if row["times fmeta"] >= 10 else f"{row['times fmeta']:.2g}"


def peer_lines():
    """A table of times over fmeta's, one column for each problem."""
    runs = [run for key in ("sinusoid-1", "sinusoid-5", "conv4", "omniglot") if (run := load(f"peers-{key}"))]
    if not runs:
        return
    yield ""
    yield (
        "One second-order meta-gradient, the same to 1e-8 in float64 in every library, on two CPU cores (one for the "
        "sinusoid): milliseconds (times fmeta's) in float32, median of one run by `benchmarks/peers.py`."
    )
    yield ""
    yield "| | " + " | ".join(run["work"] for run in runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for peer in dict.fromkeys(name for run in runs for name in run["peers"]):
        cells = []
        for run in runs:
            row = run["peers"].get(peer)
            cells.append(f"{_milliseconds(row)} ({_times(row)})" if row else "–")
        yield f"| {peer} | " + " | ".join(cells) + " |"
    for label in ("cold seconds", "warm seconds"):
        cells = [f"{run['peers']['fmeta'][label]:.0f} s" if label in run["peers"]["fmeta"] else "–" for run in runs]
        yield f"| fmeta, first step {label.split()[0]} | " + " | ".join(cells) + " |"


def speed_lines():
    run = load("sinusoid")
    if run:
        times = run["seconds per meta-step"]
        rows = [f"{name} {1e3 * t['median']:.2f} ms" for name, t in times.items()]
        yield "- One sinusoid meta-step (25 tasks, 1 inner step, Adam), medians of one run: " + "; ".join(rows) + "."


def long_run_lines():
    """What long runs and many processes do."""
    soak, ranks, faults, tuned = load("soak"), load("distributed"), load("faults"), load("tuned")
    if tuned:
        facts, means = tuned["protocol"], tuned["means"]
        rows = tuned["seeds"]
        apart = "; ".join("{:.3f} ({:.3f} to {:.3f})".format(*row["tuned - default"]) for row in rows)
        found = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in tuned["best"].items())
        yield (
            f"- `fmeta tune sinusoid`, {facts['trials']} trials of {facts['iterations']} meta-steps over both rates, "
            f"the outer schedule and the width: {found}. Error after one step, {len(rows)} other seeds, "
            f"{facts['test tasks']} test tasks: default {means['default']:.3f}, tuned {means['tuned']:.3f}; tuned "
            f"minus default by seed, paired by task, with 95% intervals: {apart}."
        )
    if soak:
        yield (
            f"- {soak['steps']:,} meta-steps with validation, checkpoints and TensorBoard: memory changed by "
            f"{100 * soak['growth']:+.2f}%, {soak['handles'][0]} to {soak['handles'][1]} open files."
        )
    if ranks:
        yield (
            f"- Two processes of one thread each ({ranks['work']}): weak efficiency "
            f"{ranks['weak efficiency on 2']:.2f}, "
            f"strong speed-up {ranks['strong speed-up on 2']:.2f}; the meta-gradient is "
            f"{ranks['bytes of the meta-gradient'] / 1e6:.2f} MB; in float64 they end where one process does, to "
            f"{ranks['parameters of two from those of one, float64, relative']:.0e}."
        )
    if faults:
        fine = [name for name, outcome in faults["outcomes"].items() if not outcome.startswith(("FAILED", "not run"))]
        yield f"- Faults survived: {len(fine)} of {len(faults['outcomes'])} ({'; '.join(fine)})."


def main():
    text = README.read_text()
    before, rest = text.split(BEGIN)
    lines = [
        *recipe_lines(),
        *plus_plus_lines(),
        *memory_lines(),
        *speed_lines(),
        *mutation_lines(),
        *long_run_lines(),
        *peer_lines(),
        *families_lines(),
        *order_lines(),
    ]
    README.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
