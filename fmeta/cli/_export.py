"""`fmeta export`: the weights of a run in one file, for use without fmeta."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from safetensors.torch import save
from torch import Tensor

import fmeta
from fmeta.cli import _show as show
from fmeta.cli._run import open_run
from fmeta.cli._trained import read_chosen
from fmeta.core import InputError
from fmeta.training._checkpoint import read_checkpoint

_META = "meta."  # what the names of the meta-parameters begin with in a checkpoint


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The weights of a run in one file for use without fmeta: tensors on the CPU, by name.

    The name of a tensor is its path in the meta-parameters of the learner, joined by dots. Where these are the
    parameters of a network, as for maml and protonet, it is the parameter's own name (conv1.weight), so that
    load_state_dict of the same network in plain PyTorch takes them all. Where they have parts, the part comes first:
    params.conv1.weight and lr.conv1.weight for meta_sgd, encoder.conv1.weight for matching.
    """

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    to: Literal["torch", "safetensors"]
    """a dict of tensors for torch.load, or safetensors with the recipe as metadata"""
    out: Path | None = None
    """a new file; weights.pt or weights.safetensors in the folder of the run if left out, where it replaces the old"""
    checkpoint: str = "last"
    """last, best (on the validation tasks), or the number of a step"""


class Format(NamedTuple):
    suffix: str
    content: Callable[[dict[str, Tensor], dict[str, str]], bytes]  # weights, metadata -> the file
    python: tuple[str, str]  # lines that load it


def export_command(arguments: list[str]) -> None:
    """Writes the file."""
    options = tyro.cli(ExportOptions, args=arguments, prog="fmeta export")
    recipe = open_run(options.run).recipe
    state = read_chosen(options.run, options.checkpoint, read_checkpoint)
    weights = {name.removeprefix(_META): tensor for name, tensor in sorted(state.items()) if name.startswith(_META)}
    metadata = {
        "fmeta": fmeta.__version__,
        "recipe": recipe.name,
        "learner": recipe.learner,
        "step": str(int(state["step"])),
        "fields": json.dumps(dataclasses.asdict(recipe)),
    }
    form = _FORMATS[options.to]
    usual = options.run / f"weights{form.suffix}"
    out = options.out or usual
    _write(out, form.content(weights, metadata), replacing=out.resolve() == usual.resolve())
    numbers = sum(t.numel() for t in weights.values())
    show.say(f"{out}: {len(weights)} tensors, {numbers:,} numbers, of meta-step {metadata['step']}")
    show.say("\n".join(form.python).format(str(out)))


def _torch(weights: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def _write(file: Path, content: bytes, *, replacing: bool) -> None:
    """All of it or nothing."""
    try:
        if file.exists() and not replacing:
            raise InputError(f"export(out={str(file)!r}): the file is there already; expected a new one")
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder:
            fresh = Path(folder, file.name)
            fresh.write_bytes(content)
            fresh.replace(file)
    except OSError as error:
        raise InputError(f"export(out={str(file)!r}): {error}; expected a file that can be written") from error


_FORMATS = {
    "torch": Format(".pt", _torch, ("import torch", "weights = torch.load({!r}, weights_only=True)")),
    "safetensors": Format(
        ".safetensors", save, ("from safetensors.torch import load_file", "weights = load_file({!r})")
    ),
}
