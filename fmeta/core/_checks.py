"""Checks at the boundary. An error says the call, what came, what was expected, and the cure."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from fmeta._errors import InputError, nearest
from fmeta.core._torch import compiled_by_torch, is_fake
from fmeta.core._types import Examples, Optimizer, Task, Tree
from fmeta.core.tree import leaf_names, matching, named_leaves, tree_leaves


def check_counts(call: str, *, least: int = 1, **counts: object) -> None:
    """Whole numbers, at least 1 or `least`, by the names of the call's arguments."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < least:
            raise InputError(f"{call}({name}={count!r}): expected a whole number, at least {least}")


def check_labels(call: str, y: Tensor, ways: int, length: int | None = None) -> None:
    """Integer labels `[example]` in `0 .. ways-1`. Values are looked at in eager mode only: a graph cannot."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        came = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"{call}: labels are {came}; expected an integer tensor; convert them with y.long()")
    if y.ndim != 1 or length not in (None, y.shape[0]):
        raise InputError(
            f"{call}: labels of shape {list(y.shape)} for {length} predictions; expected one integer label per "
            f"example, [{length}]; use y.squeeze(-1) or argmax(-1) on one-hot labels"
        )
    if hidden(y):
        return
    values = torch.func.debug_unwrap(y)
    if values.numel():
        low, high = (int(v) for v in torch.aminmax(values))
        if low < 0 or high >= ways:
            raise InputError(
                f"{call}: labels run from {low} to {high}; expected 0 to {ways - 1}, because the predictions have "
                f"{ways} classes; relabel the classes of each task from 0, or give the model as many outputs as ways"
            )


def hidden(t: Tensor) -> bool:
    """Whether values cannot be looked at now: a graph is being traced or captured, or there are none."""
    if torch.compiler.is_compiling() or (t.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    return t.is_meta or is_fake(t)


def check_tasks(call: str, tasks: Task) -> int:
    """A batch of tasks with one leading task axis everywhere, x and y of one length. Returns the number of tasks."""
    if not isinstance(tasks, Task):
        raise InputError(f"{call}: tasks is a {type(tasks).__name__}; expected fmeta.Task(support, query, key)")
    counts: dict[str, int] = {}
    for leaf in tree_leaves(tasks.key):
        if not isinstance(leaf, Tensor) or leaf.dtype != torch.int64 or leaf.ndim != 1:
            came = f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise InputError(
                f"{call}: tasks.key is {came}; expected int64 [task], a key per task; "
                "use fmeta.split(key, number_of_tasks)"
            )
        counts["key"] = leaf.shape[0]
    for name, examples in (("support", tasks.support), ("query", tasks.query)):
        if not isinstance(examples, Examples):
            raise InputError(f"{call}: tasks.{name} is a {type(examples).__name__}; expected fmeta.Examples(x, y)")
        lengths: dict[str, int] = {}
        for path, leaf in named_leaves(examples).items():
            where = f"{name}.{path.partition('.')[0]}"
            if not isinstance(leaf, Tensor) or leaf.ndim < 2:
                came = str(list(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise InputError(
                    f"{call}: tasks.{where} is {came}; expected a tensor [task, example, ...] with a leading task "
                    "axis; for a single task add one with fmeta.tree.tree_map(lambda t: t[None], task)"
                )
            counts[where], lengths[where] = leaf.shape[0], leaf.shape[1]
        if name == "support" and not lengths:
            continue  # a stream: the learner that needs a support set says so
        if f"{name}.x" not in lengths or f"{name}.y" not in lengths:
            raise InputError(f"{call}: tasks.{name} lacks x or y; expected fmeta.Examples(x, y) of tensors")
        if 0 in lengths.values():
            raise InputError(f"{call}: tasks.{name} has no examples; expected at least 1 in every task")
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"{call}: tasks.{name} has {_listed(lengths, 'examples')}; expected x, y and weight of one length; "
                "check how the task was cut into support and query"
            )
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(
            f"{call}: {_listed(counts, 'tasks')}; expected the same leading task axis, at least 1, on every leaf; "
            "stack whole tasks along a new first axis"
        )
    return counts["query.x"]


def check_support(call: str, support: Examples) -> None:
    """A support set, which the tasks of a stream do not have."""
    if not tree_leaves(support):
        raise InputError(f"{call}: the task has no support set; expected one to adapt to")


def check_prepared(support: Examples, prepared: Any) -> None:
    """What `Inner.prepare` gives differs from the support set in what its `x` is, and in nothing else."""
    if not isinstance(prepared, Examples):
        raise InputError(
            f"Inner.prepare: gave a {type(prepared).__name__}; expected Examples; use support._replace(x=…)"
        )
    for name, *both in (("y", support.y, prepared.y), ("weight", support.weight, prepared.weight)):
        before, after = map(tree_leaves, both)
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise InputError(
                f"Inner.prepare: gave another {name}; expected the support set's own, because only x is prepared; use "
                "support._replace(x=…)"
            )
    count = tree_leaves(support.x)[0].shape[0]
    for name, leaf in named_leaves(prepared.x).items():
        if not isinstance(leaf, Tensor) or leaf.ndim < 1 or leaf.shape[0] != count:
            came = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise InputError(
                f"Inner.prepare: gave x{'.' if name else ''}{name} {came} for {count} support examples; expected "
                f"[{count}, …], the example axis first"
            )


def check_meta(call: str, meta: Tree) -> None:
    """Meta-parameters are floating tensors that do not require grad. There may be none: all frozen."""
    for path, leaf in named_leaves(meta).items():
        name = f"meta.{path}" if path else "meta"
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            came = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise InputError(
                f"{call}: {name} is {came}; expected a floating-point tensor, because meta is what gets a gradient; "
                "keep counters and masks in the model's closure"
            )
        if leaf.requires_grad:
            raise InputError(
                f"{call}: {name} requires grad; expected a plain tensor, because fmeta differentiates with torch.func "
                "and autograd would keep a second graph alive; pass it as .detach()"
            )


def check_pattern(call: str, params: Tree, patterns: str) -> None:
    """Every pattern matches a parameter; after a `!`, something is left over."""
    names = tuple(leaf_names(params))
    if "!" in patterns[1:]:
        raise InputError(f"{call}({patterns!r}): expected at most one '!', in front of all patterns")
    for pattern in patterns.removeprefix("!").split(","):
        if not matching(names, pattern):
            raise InputError(
                f"{call}({patterns!r}): {pattern.strip()!r} matches no parameter; {nearest(pattern.strip(), names)}"
            )
    if not matching(names, patterns):
        raise InputError(f"{call}({patterns!r}): leaves no parameter; known: {', '.join(names)}")


def check_model(call: str, model: Any) -> None:
    """A `Model`, not a module and nothing that torch.compile has wrapped."""
    refuse_compiled(call, model)
    if isinstance(model, nn.Module):
        raise InputError(f"{call}: model is the module {type(model).__name__}; expected fmeta.from_module(module)")
    if not (callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))):
        raise InputError(f"{call}: model is a {type(model).__name__}; expected fmeta.Model(init, apply)")


def check_optimizer(call: str, optimizer: Any) -> None:
    """An `Optimizer` that descends, not a rate and nothing of torch.optim's."""
    if not isinstance(optimizer, Optimizer):
        came = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else f"a {type(optimizer).__name__}"
        raise InputError(f"{call}: optimizer is {came}; expected fmeta.sgd(rate), fmeta.adam(rate), …")
    if not optimizer.descends:
        raise InputError(
            f"{call}: optimizer only transforms the gradient, so its updates would climb; expected one that descends; "
            "put it into fmeta.chain(…, fmeta.sgd(rate))"
        )


def refuse_compiled(call: str, *values: Any) -> None:
    """Raises InputError if a value is, or closes over, something that torch.compile has wrapped.

    torch.func cannot differentiate a compiled function: it runs it eagerly without a word, and plain autograd through a
    compiled region can return a first-order gradient for a second-order one.
    """
    todo, seen = list(values), set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if compiled_by_torch(value):
            raise InputError(
                f"{call}: the model is wrapped by torch.compile; expected a plain one, because torch.func "
                "differentiates only what it can see into; pass the original, and compile the outside: "
                "fmeta.compile(trainer.step)"
            )
        if isinstance(value, tuple | list):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, nn.Module):
            todo += value.children()
        else:
            todo += [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _filled(cell)]
            todo += [getattr(value, f) for f in ("__wrapped__", "__self__", "func", "args") if hasattr(value, f)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _listed(counts: dict[str, int], of: str) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) + f" {of}"
