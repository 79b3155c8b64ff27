"""What torch says when a function cannot be batched or differentiated, in the words of the one who wrote it."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

from fmeta.core import InputError

_HOOKS = "saved tensor hooks"
# what torch's message holds -> what is at fault, and the cure
_CURES = {
    r"calling \.item\(\)|data-dependent control flow|doesn't have storage": (
        "what is done depends on the values of a tensor (an if, a while, .item(), .tolist(), int(), bool(), a shortcut "
        "for a mask that is all ones), and each task has other values",
        "torch.where in place of the branch, or the mask applied always; or values that all tasks share, read before "
        "training",
    ),
    r"vmap: .*dynamic shape|aten::nonzero|masked_select|aten::_?unique": (
        "the shape of a result depends on the values of a tensor (a boolean mask as an index, nonzero, unique, "
        "F.one_hot without num_classes)",
        "torch.where, a product with the mask and a sum, or F.one_hot(y, num_classes)",
    ),
    r"inplace arithmetic|in-place operation.*vmap|vmap: .*in-?place": (
        "an operation in place writes what differs by task into a tensor that all tasks share, such as one made by "
        "torch.zeros",
        "x.new_zeros(…) or torch.zeros_like(x), made of a tensor that differs by task; or torch.stack of the pieces",
    ),
    r"mutate a captured Tensor": (
        "an operation in place writes into a tensor from outside the function, such as a buffer, a cache or an input",
        "a new tensor in its place (x = x + 1 for x += 1); a network's state belongs into its parameters or its input",
    ),
    r"randomness error mode|called random operation": (
        "torch's own random numbers are drawn, which are no function of a key",
        "fmeta.uniform, normal, randint or permutation with a key; in a network dropout, which from_module draws from "
        "the task's key",
    ),
    r"must be Tensor, not (tuple|list|dict|[A-Z]\w*Output)"
    r"|'(tuple|list|dict|[A-Z]\w*Output)' object has no attribute '(shape|ndim|dtype|size|device|float|log_softmax)'": (
        "a tuple, list or dict came where a tensor is wanted, such as the whole output of a network that has several",
        "the part that the loss is made for, picked at the end of forward: return output.logits, or output[0]",
    ),
    r"accessing `data` under vmap": (
        ".data is read, which hides a tensor from its derivative, and from vmap",
        "x.detach() where no derivative shall pass, else x itself",
    ),
    _HOOKS: (
        "torch.utils.checkpoint, or another hook on saved tensors, is on, and torch.func does not have them",
        "the network without gradient checkpointing; fmeta.adjoint() and fmeta.chunked(gradient, size) save the memory",
    ),
    r"override the setup_context|generate_vmap_rule|vmap staticmethod": (
        "a torch.autograd.Function is written in the old form, or has no rule for vmap",
        "forward(…) without ctx, setup_context(ctx, inputs, output), and generate_vmap_rule = True in the class",
    ),
    r"detach views in-place": (
        "torch.tensor(…) is called on a tensor",
        "x.clone(), or x.detach() where no derivative shall pass",
    ),
    r"mutating directly with `\.data`": (
        ".data is written to, which changes a tensor from outside the function, such as a parameter",
        "a new tensor in its place, such as weight = self.weight.clamp(-1, 1)",
    ),
    r"(requires_grad_|backward|autograd\.grad)\(\).*(functorch|torch\.func|transform)": (
        "autograd is called within a function that torch.func differentiates",
        "torch.func.grad inside, or none: fmeta takes the derivatives",
    ),
    r"on the same device|torch\.cuda\.\w+Tensor\).* should be the same": (
        "tensors of different devices meet",
        "all on one device: fmeta.key(0, device), which decides where the parameters are, and x.to(device)",
    ),
    r"Batching rule not implemented|batching rule for": (
        "torch cannot batch an operation over tasks",
        "the same in operations that it can; torch's words name the operation",
    ),
    r"same (scalar |d)type|type \(.*should be the same|[Ff]ound dtype|expected (scalar type|dtype)": (
        "tensors of different dtypes meet, such as NumPy's float64, or integers, and parameters in float32",
        "inputs in the dtype of the parameters, such as x.float()",
    ),
}  # fmt: skip
_LIBRARIES = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])


@dataclass(frozen=True)
class _Explained:
    """A context in which errors of torch whose cause is known become an InputError that names it, the layer and the
    caller's own line; with `located` what fmeta's operators refuse gets these names too."""

    located: bool

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, InputError):
            if self.located and layer_of(error):
                raise InputError(f"{whereabouts(error)}: {error}") from error
        elif isinstance(error, Exception):
            words = explanation(error)
            if words is not None:
                raise InputError(words) from error


explained, explained_by_layer = _Explained(False), _Explained(True)


def explanation(error: Exception) -> str | None:
    """The layer and line, what is at fault, and the cure; None where nothing is known of this error, or where the
    caller's own code raises it."""
    said = str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    if (last.line or "").startswith("raise") and not last.filename.startswith(_LIBRARIES):
        return None
    checkpointed = any(
        frame.f_code.co_filename == checkpoint.__file__ for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    for pattern, (fault, cure) in _CURES.items():
        if re.search(pattern, _HOOKS if checkpointed else said):  # which torch 2.11 says otherwise
            return f"{whereabouts(error)}: {fault}; expected {cure} (torch: {said.strip().splitlines()[0][:160]})"
    return None


def whereabouts(error: BaseException) -> str:
    """The layer and the last line outside of torch and fmeta that led to an error."""
    layer, line = layer_of(error), own_line(error.__traceback__)
    return ", ".join(part for part in (layer, line) if part) or "over tasks"


def own_line(trace: TracebackType | None) -> str:
    own = [f for f in traceback.extract_tb(trace) if not f.filename.startswith((*_LIBRARIES, "<"))]
    return f"{own[-1].line!r} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def layer_of(error: BaseException) -> str:
    """The innermost module whose forward pass raised, by its name in the outermost."""
    modules: list[nn.Module] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and frame.f_code.co_name == "forward":
            modules.append(module)
    if not modules:
        return ""
    name = next((n for n, m in modules[0].named_modules() if m is modules[-1]), "")
    return f"{name or 'the module'} ({type(modules[-1]).__name__})"
