"""Does tuning find a better recipe? The sinusoid's, by its error after one adaptation step.

python benchmarks/tuned.py [--trials 30] [--seeds 3]     writes results/tuned.json

`fmeta tune` looks for both rates, the outer schedule and the width on the validation tasks of seed 0, each trial as
long as the default recipe. Then the default and the best it found are trained anew with seeds that the study never saw,
and tested on 1,000 tasks, the same for both; their difference is paired by task, with a 95% bootstrap interval.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from _report import write

import fmeta
from fmeta.cli import main as fmeta_command
from fmeta.runs import load, measure
from fmeta.runs._folder import read_experiment

TUNED = ["--inner-lr", "0.001:0.1:log", "--outer-lr", "1e-4:1e-2:log", "--outer-schedule", "constant,cosine"]
TUNED += ["--hidden", "40 40|80 80|120 120"]


def command(*words):
    assert fmeta_command([str(word) for word in words]) == 0


def tested(folder, seed, *words):
    """A recipe trained with this seed, evaluated after one step."""
    command("train", *words, "--seed", seed, "--run-dir", folder)
    return measure(load(folder), 1000, (1,))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=15_000)
    options = parser.parse_args()
    length, rows = ["--iterations", options.iterations], []
    with tempfile.TemporaryDirectory() as base:
        study = Path(base, "study")
        command("tune", "sinusoid", *TUNED, *length, "--trials", options.trials, "--run-dir", study)
        best = read_experiment(study / "best.json").experiment.options()
        trials = json.loads((study / "trials.json").read_text(encoding="utf-8"))
        for seed in range(1, options.seeds + 1):
            default = tested(Path(base, f"default-{seed}"), seed, "sinusoid", *length)
            tuned = tested(Path(base, f"tuned-{seed}"), seed, "--recipe", study / "best.json")
            difference = fmeta.compare(tuned, default, "loss")
            rows.append({
                "seed": seed,
                **{n: [r.mean("loss")[0], r.interval("loss")[0]] for n, r in (("default", default), ("tuned", tuned))},
                "tuned - default": [difference.mean, *difference.interval],
            })  # fmt: skip
            print(rows[-1], flush=True)
    fields = trials["trials"][0]["fields"]
    write("tuned", {
        "protocol": {"iterations": options.iterations, "trials": options.trials, "test tasks": 1000, "space": TUNED,
                     "figure": "query error after one adaptation step: mean, half of its 95% interval over tasks"},
        "states": {s: [t["state"] for t in trials["trials"]].count(s) for s in ("finished", "pruned", "failed")},
        "best": {field: best[field] for field in fields},
        "seeds": rows,
        "means": {name: statistics.mean(row[name][0] for row in rows) for name in ("default", "tuned")},
    })  # fmt: skip


if __name__ == "__main__":
    main()
