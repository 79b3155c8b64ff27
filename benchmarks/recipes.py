"""Runs a recipe through the command line and keeps its test figures, its training time and its settings.

python benchmarks/recipes.py NAME RECIPE [--option value ...]    writes results/recipe-NAME.json
"""

import json
import sys
import tempfile
from pathlib import Path

from _report import write

from fmeta.cli import main as fmeta_command
from fmeta.runs import open_run


def main():
    name, recipe, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        status = fmeta_command(["train", recipe, "--run-dir", folder, *options])
        if status:
            sys.exit(status)
        run = open_run(folder)
        options = {name: value for name, value in run.experiment.options().items() if name not in ("data", "data_dir")}
        evaluation = json.loads(Path(folder, "evaluation.json").read_text(encoding="utf-8"))
        evaluation.pop("classes", None)  # hundreds
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        # the first interval compiles; the rest is training
        steady = (lines[-1]["time/seconds"] - lines[0]["time/seconds"]) / (lines[-1]["step"] - lines[0]["step"])
        result = {
            "recipe": {"recipe": run.experiment.recipe.name, "scope": run.scope, "fields": options},
            "evaluation": evaluation,
            "seconds": lines[-1]["time/seconds"],
            "seconds until the first log": lines[0]["time/seconds"],
            "seconds per meta-step after it": steady,
        }
    write(f"recipe-{name}", result)


if __name__ == "__main__":
    main()
