"""Runs a recipe through the command line and keeps its test figures, its training time and its settings.

python benchmarks/recipes.py NAME RECIPE [--field value ...]    writes results/recipe-NAME.json
"""

import json
import sys
import tempfile
from pathlib import Path

from _report import write

from fmeta.cli import main as fmeta_command


def main():
    name, recipe, *fields = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        status = fmeta_command(["train", recipe, "--run-dir", folder, *fields])
        if status:
            sys.exit(status)
        stored = json.loads(Path(folder, "recipe.json").read_text())
        stored["fields"].pop("data_dir", None)
        evaluation = json.loads(Path(folder, "evaluation.json").read_text())
        evaluation.pop("classes", None)  # hundreds
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        # the first interval compiles; the rest is training
        steady = (lines[-1]["time/seconds"] - lines[0]["time/seconds"]) / (lines[-1]["step"] - lines[0]["step"])
        result = {
            "recipe": stored,
            "evaluation": evaluation,
            "seconds": lines[-1]["time/seconds"],
            "seconds until the first log": lines[0]["time/seconds"],
            "seconds per meta-step after it": steady,
        }
    write(f"recipe-{name}", result)


if __name__ == "__main__":
    main()
