"""What a test found, kept in the folder of a run: in words and whole, so that a report need not test again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from fmeta.evaluation import Calibration, ClassCounts, Evaluation
from fmeta.runs._load import Trained
from fmeta.training._run_files import write_whole

_WORDS, _WHOLE = "evaluation.json", "evaluation.safetensors"


def write_evaluation(folder: Path, trained: Trained, result: Evaluation) -> None:
    """evaluation.json with the figures, and evaluation.safetensors with the values of each task. Raises OSError."""
    tensors = {f"values.{name}": values for name, values in result.values.items()}
    if result.calibration is not None:
        tensors |= {"calibration.gap": result.calibration.gap, "calibration.examples": result.calibration.examples}
    if result.classes is not None:
        tensors |= {"classes.pairs": result.classes.pairs, "classes.counts": result.classes.counts}
    facts = {"steps": result.steps, "protocol": result.protocol, "names": result.classes and result.classes.names}
    content = save(
        {name: t.cpu().contiguous() for name, t in tensors.items()}, {"facts": json.dumps({**facts, **_of(trained)})}
    )
    fresh = folder / f"{_WHOLE}.tmp"
    fresh.write_bytes(content)
    fresh.replace(folder / _WHOLE)
    text = json.dumps({"step": trained.step, **result.summary()}, indent=1, ensure_ascii=False)
    write_whole(folder / _WORDS, text + "\n")


def read_evaluation(folder: Path, trained: Trained, tasks: int) -> Evaluation | None:
    """What the test of this very checkpoint found on so many tasks; None where there is none, or a damaged one."""
    try:
        content = (folder / _WHOLE).read_bytes()
        tensors, facts = load(content), json.loads(_metadata(content)["facts"])
        protocol = facts["protocol"]
        if any(facts[name] != value for name, value in _of(trained).items()) or protocol["tasks"] != tasks:
            return None
        gap, counts = tensors.get("calibration.gap"), tensors.get("classes.counts")
        return Evaluation(
            tuple(facts["steps"]),
            {name.removeprefix("values."): t for name, t in tensors.items() if name.startswith("values.")},
            protocol,
            None if gap is None else Calibration(gap, tensors["calibration.examples"]),
            None if counts is None else ClassCounts(tuple(facts["names"]), tensors["classes.pairs"], counts),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _of(trained: Trained) -> dict[str, Any]:
    """What an evaluation belongs to."""
    asked = trained.experiment
    steps = list(asked.run.eval_steps) if trained.learner.inner is not None else [0]
    return {"step": trained.step, "experiment": asked.digest(), "asked steps": steps}


def _metadata(content: bytes) -> dict[str, str]:
    """The header of a safetensors file is JSON behind its length, 8 bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})
