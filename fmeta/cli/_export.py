"""`fmeta export`: the weights of a run in one file, for use without fmeta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from fmeta.cli._options import options, positional, writing
from fmeta.runs._options import OptionError

_FORMATS = {  # suffix, and lines that load it
    "torch": (".pt", "import torch\nweights = torch.load({!r}, weights_only=True)"),
    "safetensors": (".safetensors", "from safetensors.torch import load_file\nweights = load_file({!r})"),
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The weights of a run in one file for use without fmeta: tensors on the CPU, by name.

    The name of a tensor is its path in the meta-parameters of the learner, joined by dots. Where these are the
    parameters of a network, as for maml and protonet, it is the parameter's own name (conv1.weight), so that
    load_state_dict of the same network in plain PyTorch takes them all. Where they have parts, the part comes first:
    params.conv1.weight and lr.conv1.weight for meta_sgd, encoder.conv1.weight for matching.
    """

    run: tyro.conf.Positional[Path] = positional("the folder of a run")
    """folder of the run"""
    to: Literal["torch", "safetensors"]
    """a dict of tensors for torch.load, or safetensors with the recipe as metadata"""
    out: Path | None = None
    """a new file; weights.pt or weights.safetensors in the folder of the run if left out, where it replaces the old"""
    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""


def export_command(arguments: list[str]) -> Callable[[], Any]:
    """Writes the file."""
    given = options("export", ExportOptions, arguments)
    return lambda: _export(given)


def _export(given: ExportOptions) -> None:
    from fmeta.cli import _printing as printing
    from fmeta.runs._load import read_chosen
    from fmeta.training._checkpoint import is_meta, meta_name, read_checkpoint

    metadata = _recipe_facts(given.run)
    state = read_chosen(given.run, given.checkpoint, read_checkpoint)
    weights = {meta_name(name) or "meta": tensor for name, tensor in sorted(state.items()) if is_meta(name)}
    metadata["step"] = str(int(state["step"]))
    suffix, python = _FORMATS[given.to]
    usual = given.run / f"weights{suffix}"
    out = given.out or usual
    _write(out, _content(given.to, weights, metadata), replacing=out.resolve() == usual.resolve())
    numbers = sum(t.numel() for t in weights.values())
    printing.say(f"{out}: {len(weights)} tensors, {numbers:,} numbers, of meta-step {metadata['step']}")
    printing.say(python.format(str(out)))


def _recipe_facts(run: Path) -> dict[str, str]:
    """What stands beside the weights; nothing of a run whose recipe is not known, which has weights all the same."""
    import json

    from fmeta._version import __version__
    from fmeta.runs._folder import open_run

    facts = {"fmeta": __version__}
    if not (run / "recipe.json").exists() and (run / "checkpoints").is_dir():
        return facts
    of = open_run(run).experiment
    learner = of.learner.name if of.learner is not None else "own"
    return facts | {"recipe": of.recipe.name, "learner": learner, "options": json.dumps(of.options())}


def _content(form: str, weights: dict[str, Any], metadata: dict[str, str]) -> bytes:
    if form == "safetensors":
        from safetensors.torch import save

        return save(weights, metadata)
    import io

    import torch

    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def _write(file: Path, content: bytes, *, replacing: bool) -> None:
    """All of it or nothing."""
    import tempfile

    with writing("out", file):
        if file.exists() and not replacing:
            raise OptionError("out", file, "the file is there already; expected a new one")
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".fmeta-") as folder:
            fresh = Path(folder, "weights")
            fresh.write_bytes(content)
            fresh.replace(file)
