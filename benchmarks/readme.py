"""Writes RESULTS.md, every figure with how to repeat it, and the six figures between README's markers.

python benchmarks/readme.py            both, from results/*.json
python benchmarks/readme.py --check    writes nothing; fails where either is not what the results say
"""

import argparse
import json
import sys
from pathlib import Path

from _report import RESULTS
from order import LEARNED, learned

README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parent / "RESULTS.md"
BEGIN, END = "<!-- figures: written by benchmarks/readme.py -->\n", "<!-- end of figures -->"
MIB = 2**20

HEAD = """# What was measured

Written by `python benchmarks/readme.py` from `benchmarks/results/*.json`, which also hold what is left out here:
quartiles, every setting, every run. Do not edit it by hand. Each section names the command that repeats it; its script
says at its head what is measured and how. Intervals are 95% over tasks, sd is over seeds. Where a command says
`--data-dir PATH`, PATH is a folder with Omniglot's `images_background.zip` and `images_evaluation.zip`.
"""


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(titles, rows):
    """A table in Markdown."""
    for row in [titles, ["---"] * len(titles), *rows]:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def percent(value, places=1):
    return f"{100 * value:.{places}f}"


def measured_on(run):
    machine = run["machine"]
    return f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, fmeta {run['fmeta']}"


def section(title, command, run, text=""):
    yield from ("", f"## {title}", "", f"`{command}`, on {measured_on(run)}.")
    if text:
        yield from ("", " ".join(text.split()))
    yield ""


# what RESULTS.md holds, section by section


def recipes():
    runs = {path.stem.removeprefix("recipe-"): load(path.stem) for path in sorted(RESULTS.glob("recipe-*.json"))}
    if not runs:
        return
    command = "python benchmarks/recipes.py NAME RECIPE [--option value …]"
    about = "Whole runs of `fmeta train`, from scratch to the test, with the recipe's defaults unless said otherwise."
    yield from section("Recipes", command, next(iter(runs.values())), about)
    titles = [
        "NAME and options",
        "task",
        "learner, seed",
        "minutes",
        "test tasks",
        "on the query set, after inner steps",
    ]
    yield from table(titles, [_recipe_row(name, run) for name, run in runs.items()])


def _recipe_row(name, run):
    recipe, result = run["recipe"], run["evaluation"]
    fields = recipe["fields"]
    classes = f"{fields['ways']}-way " if "ways" in fields else ""
    data = " --data-dir PATH" if "protocol" in fields else ""
    options = f"{recipe['recipe']} --iterations {fields['iterations']} --compile {fields['compile']}{data}"
    return [
        f"`{name} {options}`", f"{classes}{fields['shots']}-shot", f"{fields['learner']}, {fields['seed']}",
        f"{run['seconds'] / 60:.1f}", result["protocol"]["tasks"], after_steps(result),
    ]  # fmt: skip


def after_steps(result):
    """What an evaluation found after each number of inner steps but 0."""
    accuracy = "accuracy" in result
    values = result["accuracy" if accuracy else "loss"]
    unit = (lambda v: f"{percent(v, 2)}%") if accuracy else (lambda v: f"{v:.3f}")
    rows = zip(result["steps"], values["mean"], values["interval95"], strict=True)
    return "; ".join(f"{s}: {unit(m)} ± {unit(h)}" for s, m, h in rows if s)


def families():
    """A row for every learner and baseline, a column for every test."""
    run = load("families")
    if not run:
        return
    columns = {
        "5-way 1-shot": "omniglot 5 1", "5-way 5-shot": "omniglot 5 5", "20-way 1-shot": "omniglot 20 1",
        "5-way 1-shot on glyphs": "glyphs 5 1",
    }  # fmt: skip
    about = f"""{run["minutes"]:g} minutes of one processor core each, from scratch, {run["network"]}, Omniglot
        ({run["data"].split(",", 1)[1].split(";")[0].strip()}); accuracy in % over {run["test tasks"]} test tasks
        ({run["tests"]}), one seed. Papers train for hours. "On glyphs" is another domain, whose scripts no training
        saw. The last row is of `--minutes 6`."""
    command = "python benchmarks/families.py --data-dir PATH"
    yield from section("Every family of learners, in the same time", command, run, about)
    longer = load("families-6") or {"models": {}}
    models = run["models"] | {f"{name}, 6 minutes": row for name, row in longer["models"].items()}
    rows = []
    for name, row in models.items():
        found = [row["cells"].get(cell) for cell in columns.values()]
        figures = [f"{percent(c['accuracy'])} ± {percent(c['interval95'])}" if c else "" for c in found]
        rows.append([name, *figures, " / ".join("–" if p is None else f"{p:g}" for p in row["published"])])
    yield from table(["learner", *columns, "published 5-way 1-shot / 5-shot / 20-way 1-shot"], rows)
    cells = {n: row["cells"].get("omniglot 5 1", {}) for n, row in run["models"].items()}
    alone = [
        [n, percent(c["accuracy"]), percent(c["alone"]),
         f"{percent(c['accuracy'] - c['alone'])} ± {percent(c['gap interval95'])}"]
        for n, c in cells.items() if "alone" in c
    ]  # fmt: skip
    if alone:
        yield from ("", "What a network owes to seeing the query examples together (5-way 1-shot, %):", "")
        yield from table(["learner", "together", "each beside the support set alone", "transductive gap"], alone)


def order():
    for problem in ("sinusoid", "omniglot"):
        run = load(f"order-{problem}")
        if not run:
            continue
        facts = run["protocol"]
        accuracy = facts["metric"] == "accuracy"
        about = f"""{facts["inner_steps"]} inner steps, {facts["meta_batch"]} tasks a meta-step, compile
            {facts["scope"]}, {facts["seeds"]} seeds, {facts["test_tasks"]} new tasks: mean ± 95% interval over tasks
            (sd over seeds). "Owed" is the time that the arithmetic owes. implicit is on imaml, whose few steps do not
            reach the optimum it presumes; its cosine is to unrolled there."""
        options = {name: facts[name] for name in ("iterations", "seeds", "scope")}
        options |= {"data-dir": "PATH"} if problem == "omniglot" else {}
        chosen = " ".join(f"--{name} {value}" for name, value in options.items())
        command = f"python benchmarks/order.py --problems {problem} {chosen}"
        yield from section(f"First against second order on {problem}", command, run, about)
        what = "accuracy, %," if accuracy else "error"
        titles = [
            "meta-gradient", "cosine to the exact one, at the start / trained", "time over first order (owed)",
            f"{what} after {facts['iterations']} meta-steps", f"{what} at equal time",
        ]  # fmt: skip
        yield from table(titles, [_order_row(name, row, accuracy) for name, row in run["gradients"].items()])
        if (RESULTS / f"order-{problem}.png").exists():
            yield from ("", f"![First against second order on {problem}](results/order-{problem}.png)")


def _order_row(name, row, accuracy):
    cosines = [f"{row[when]['cosine']:.2f}" for when in ("at initialisation", "after training")]
    ratio, count = row["time over first order"], row["equal wall clock"]["iterations"]
    figures = [learned(row[when], accuracy) for when in LEARNED]
    return [
        name, " / ".join(cosines), f"{ratio['measured']:.2f} ({ratio['owed']:.2f})", figures[0],
        f"{figures[1]}, {count:.0f} meta-steps",
    ]  # fmt: skip


def plus_plus():
    run = load("maml_plus_plus")
    if not run:
        return
    facts = run["protocol"]
    others = load("maml_plus_plus-schedules") or {"summary": {}}  # the same with the outer schedules exchanged
    about = f"""Omniglot, 20-way 1-shot, conv4-{facts["width"]}, {facts["iterations"]} meta-steps of
        {facts["meta batch"]} tasks, {facts["seeds"]} seeds, {facts["test_tasks"]} test tasks. maml's own outer rate is
        constant, maml_plus_plus's a cosine; the other way round with `--algorithms "maml with cosine" "maml_plus_plus
        without cosine" --name maml_plus_plus-schedules`."""
    yield from section("MAML++ against MAML", "python benchmarks/maml_plus_plus.py --data-dir PATH", run, about)
    rows = (run["summary"] | others["summary"]).items()
    yield from table(
        ["learner", "accuracy, %", "sd over seeds"],
        [[name, percent(r["accuracy"]), percent(r["sd over seeds"])] for name, r in rows],
    )


def speed():
    run = load("sinusoid")
    if not run:
        return
    facts = run["protocol"]
    about = f"{facts['tasks']} tasks, {facts['shots']}-shot, {facts['inner steps']} inner step, outer step by Adam."
    yield from section("One sinusoid meta-step", "python benchmarks/sinusoid.py", run, about)
    times = run["seconds per meta-step"].items()
    yield from table(
        ["meta-gradient, compiled", "median, ms", "least, ms", "over unrolled, whole"],
        [
            [name, *(f"{1e3 * t[k]:.2f}" for k in ("median", "min")), f"{t['ratio to unrolled, whole']:.2f}"]
            for name, t in times
        ],
    )


def peers():
    """A table of times over fmeta's, one column for each problem."""
    runs = [run for key in ("sinusoid-1", "sinusoid-5", "conv4", "omniglot") if (run := load(f"peers-{key}"))]
    if not runs:
        return
    about = """One second-order meta-gradient, the same to 1e-8 in float64 in every library, on two processor cores (one
        for the sinusoid): milliseconds (times fmeta's) in float32, median of one run."""
    yield from section("Beside other libraries", "python benchmarks/peers.py", runs[0], about)
    rows = []
    for peer in dict.fromkeys(name for run in runs for name in run["peers"]):
        found = [run["peers"].get(peer) for run in runs]
        rows.append([peer, *(f"{milliseconds(row)} ({times(row)})" if row else "–" for row in found)])
    for label in ("cold seconds", "warm seconds"):
        mine = [run["peers"]["fmeta"] for run in runs]
        cells = [f"{row[label]:.0f} s" if label in row else "–" for row in mine]
        rows.append([f"fmeta, first step {label.split()[0]}", *cells])
    yield from table(["", *(run["work"] for run in runs)], rows)


def milliseconds(row):
    ms = 1e3 * row["seconds"]["median"]
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def times(row):
    return f"{row['times fmeta']:.0f}" if row["times fmeta"] >= 10 else f"{row['times fmeta']:.2g}"


def memory():
    run = load("memory")
    if not run:
        return
    yield from section("Memory by inner steps", "python benchmarks/memory.py", run, run["protocol"])
    counts = sorted({int(s) for row in run["bytes"].values() for s in row})
    slopes = run.get("MiB per inner step", {})
    rows = []
    for name, row in run["bytes"].items():
        peaks = [row.get(str(count)) for count in counts]
        slope = slopes.get(name, {"measured": None})
        slope = "–" if slope["measured"] is None else f"{slope['measured']:.1f} ({slope['trajectory']:.1f})"
        rows.append([name, *("–" if b is None else f"{b / MIB:.0f}" for b in peaks), slope])
    yield from table(["peak, MiB", *counts, "per step (parameters alone)"], rows)


def scaling():
    run = load("scaling")
    if not run:
        return
    about = run["protocol"]
    yield from section("Time over tasks, inner steps and width", "python benchmarks/scaling.py", run, about)
    rows = [
        [axis, row[axis], milliseconds(row), percent(row["share of the matmul rate"], 0)]
        for axis in ("tasks", "steps", "width")
        for row in run[axis]["rows"]
    ]
    yield from table(["of", "how many", "median, ms", "% of the rate of a matrix product"], rows)
    cold = ", ".join(f"{value:.0f} s with {steps}" for steps, value in run["cold seconds by inner steps"].items())
    yield from ("", f"Compiling Conv4 cold, by inner steps: {cold}.")


def tuned():
    run = load("tuned")
    if not run:
        return
    facts, means = run["protocol"], run["means"]
    found = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in run["best"].items())
    about = f"""`fmeta tune sinusoid`, {facts["trials"]} trials of {facts["iterations"]} meta-steps over both rates, the
        outer schedule and the width, found: {found}. Error after one step, seeds that the study never saw,
        {facts["test tasks"]} test tasks: default {means["default"]:.3f}, tuned {means["tuned"]:.3f}. Differences are
        paired by task, with 95% intervals."""
    yield from section("Tuning", "python benchmarks/tuned.py", run, about)
    rows = [
        [
            r["seed"],
            f"{r['default'][0]:.3f}",
            f"{r['tuned'][0]:.3f}",
            "{:.3f} ({:.3f} to {:.3f})".format(*r["tuned - default"]),
        ]
        for r in run["seeds"]
    ]
    yield from table(["seed", "default", "tuned", "tuned minus default"], rows)


def soak():
    run = load("soak")
    if not run:
        return
    yield from section("A long run", "python benchmarks/soak.py", run)
    yield (
        f"{run['steps']:,} meta-steps with validation, checkpoints and TensorBoard: memory changed by "
        f"{100 * run['growth']:+.2f}%, {run['handles'][0]} to {run['handles'][1]} open files."
    )


def ranks():
    run = load("distributed")
    if not run:
        return
    about = f"""{run["work"]}; two processes of one thread each. In float64 they end where one process does, to
        {run["parameters of two from those of one, float64, relative"]:.0e}; the meta-gradient is
        {run["bytes of the meta-gradient"] / 1e6:.2f} MB. Measured on two: weak efficiency
        {run["weak efficiency on 2"]:.2f}, strong speed-up {run["strong speed-up on 2"]:.2f}. The table is a model and
        not measured ({run["assumptions"].split(";")[0]})."""
    yield from section("Several processes", "python benchmarks/distributed.py", run, about)
    counts = sorted({row["processes"] for row in run["model"]})
    shares = {(row["link"], row["processes"]): f"{row['weak efficiency']:.3f}" for row in run["model"]}
    links = dict.fromkeys(row["link"] for row in run["model"])
    rows = [[link, *(shares.get((link, count), "–") for count in counts)] for link in links]
    yield from table(["weak efficiency, modelled, by processes", *counts], rows)


def looks():
    run = load("first_look")
    if run:
        about = f"""What `fit` looks at before the first step, beside an eager meta-step: the median of {run["pairs"]}
            pairs, and their 5th to 95th percentile."""
        yield from section("The first look", "python benchmarks/first_look.py", run, about)
        rows = [
            [name, f"{row['share of a step']:.2f} ({low:.2f} to {high:.2f})"]
            for name, row in run["problems"].items()
            for low, high in [row["5 to 95% of pairs"]]
        ]
        yield from table(["problem", "share of a step"], rows)


def broken_runs():
    run = load("faults")
    if run:
        yield from section("Runs broken on purpose", "python benchmarks/faults.py --data-dir PATH", run)
        yield from table(["fault", "how it ended"], run["outcomes"].items())


def planted():
    run = load("mutations")
    if run:
        about = f"{run['caught']} of {run['faults']} planted faults are caught, by the laws or tests named beside them."
        yield from section("Faults planted in the source", "python benchmarks/mutations.py", run, about)
        rows = [[name, row["planted in"], "; ".join(row["caught by"])] for name, row in run["by"].items()]
        yield from table(["fault", "planted in", "caught by"], rows)


SECTIONS = (
    recipes, families, order, plus_plus, speed, peers, memory, scaling, tuned, soak, ranks, looks, broken_runs, planted,
)  # fmt: skip


# README's six


def accuracy_figure():
    run = load("recipe-omniglot-5w1s-20min")
    last, facts = run["evaluation"]["accuracy"], run["recipe"]["fields"]
    yield (
        f"- Omniglot, {facts['ways']}-way {facts['shots']}-shot, {facts['learner']}: "
        f"**{percent(last['mean'][-1], 2)}%** ± {percent(last['interval95'][-1], 2)}% on "
        f"{run['evaluation']['protocol']['tasks']} test tasks, trained for {run['seconds'] / 60:.0f} minutes on "
        f"{run['machine']['cores']} processor cores."
    )


def speed_figure():
    runs = {name: load(f"peers-{name}")["peers"] for name in ("sinusoid-1", "omniglot")}
    ratios = ", ".join(
        f"{peer} {' and '.join(times(run[peer]) for run in runs.values())}"
        for peer in ("JAX", "autograd loop", "TorchOpt", "higher")
    )
    mine = " and ".join(f"**{milliseconds(run['fmeta'])} ms**" for run in runs.values())
    yield (
        f"- One second-order meta-gradient, compiled, for 25 sine waves and for 32 Omniglot tasks on processor cores: "
        f"{mine}. Times as long: {ratios}."
    )


def order_figure():
    rows, count = load("order-sinusoid")["gradients"], load("order-sinusoid")["protocol"]["iterations"]
    first, exact = rows["first_order"], rows["unrolled"]
    apart = [f"{learned(first[when], False)} against {learned(exact[when], False)}" for when in LEARNED]
    yield (
        "- First against second order on sine waves, 5 inner steps: the cosine between them is "
        f"**{first['after training']['cosine']:.2f}** after training, second order takes "
        f"**{exact['time over first order']['measured']:.1f} times** as long; error {apart[0]} after {count} "
        f"meta-steps, {apart[1]} in equal time."
    )


def memory_figure():
    slopes, peaks = load("memory")["MiB per inner step"], load("memory")["bytes"]
    exact = [f"**{slopes[name]['measured']:.1f} MiB**" for name in ("adjoint", "unrolled")]
    total = [f"{peaks[name]['50'] / MIB / 1024:.1f}" for name in ("adjoint", "unrolled")]
    yield (
        f"- The exact gradient by `adjoint()` takes {exact[0]} for each further inner step of a Conv4, by `unrolled()` "
        f"{exact[1]}: {total[0]} against {total[1]} GiB with 50 steps."
    )


def faults_figure():
    run, broken = load("mutations"), load("faults")["outcomes"].values()
    fine = [outcome for outcome in broken if not outcome.startswith(("FAILED", "not run"))]
    yield (
        f"- Faults planted in the source: **{run['caught']} of {run['faults']}** caught by laws and tests. Runs "
        f"killed, starved, corrupted and cut off: **{len(fine)} of {len(broken)}** ended well."
    )


def soak_figure():
    run = load("soak")
    yield f"- {run['steps']:,} meta-steps in one run: memory changed by **{100 * run['growth']:+.2f}%**."


FIGURES = (accuracy_figure, speed_figure, order_figure, memory_figure, faults_figure, soak_figure)


def page():
    return HEAD + "\n".join(line for part in SECTIONS for line in part()) + "\n"


def readme(text):
    """README with the six figures of today."""
    before, rest = text.split(BEGIN)
    figures = "\n".join(line for figure in FIGURES for line in figure())
    return before + BEGIN + figures + "\n" + END + rest.split(END, 1)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something is out of date")
    options = parser.parse_args()
    now = {PAGE: page(), README: readme(README.read_text(encoding="utf-8"))}
    if options.check:
        stale = [p.name for p, text in now.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
        sys.exit(f"out of date: {', '.join(stale)}; run python benchmarks/readme.py" if stale else 0)
    for path, text in now.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
