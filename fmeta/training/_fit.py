"""`fit`: the training loop with progress, metrics, checkpoints and resume."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fmeta.core import (
    Info,
    InputError,
    Learner,
    MetaGradient,
    Optimizer,
    Task,
    check_counts,
    check_tasks,
    choices,
    fold,
    prefer,
)
from fmeta.core._inner import over_tasks
from fmeta.execution import plan
from fmeta.gradients import meta_grad
from fmeta.training._checkpoint import best_checkpoint, checkpoints, load_checkpoint, prune, save_checkpoint
from fmeta.training._trainer import TrainState, trainer

_TASKS = 1 << 40  # a child of the run's key that no other purpose uses
_BLOCK_STEPS, _BLOCK_BYTES = 100, 1 << 25


class NonFiniteError(RuntimeError):
    """Training stopped because a loss or gradient was not finite. The message says where, and what is kept."""


class Progress(Protocol):
    """What `fit` tells about itself: the step it has reached, and the means since the last call."""

    def __call__(self, step: int, values: dict[str, float]) -> None: ...


def fit(
    learner: Learner,
    optimizer: Optimizer,
    sample: Callable[[Tensor, int], Task],
    *,
    key: Tensor,
    iterations: int,
    meta_batch: int,
    gradient: MetaGradient | Mapping[int, MetaGradient] | None = None,
    scope: str = "none",
    run_dir: str | Path | None = None,
    resume: bool = False,
    validate: Callable[[Any], float] | None = None,
    log_every: int = 100,
    save_every: int = 1000,
    progress: Progress | None = None,
) -> TrainState:
    """Meta-trains a learner and returns the final state.

    The tasks of a step depend on the run's key and the step's number alone, so a run is a function of its key: resumed
    on the same machine it ends with the same bits. The first batch is adapted to eagerly first, and every meta-gradient
    of a mapping is tried on one task, so that what does not fit is reported by name before anything is compiled.

    In `run_dir`: `metrics.jsonl` with a line of means every `log_every` steps, and `checkpoints/` with the last
    checkpoint and the best (by `validate`, lower is better), taken every `save_every` steps, at the end, on Ctrl-C and
    on a non-finite loss.

    Args:
        learner: what adapts.
        optimizer: of the outer loop.
        sample: `(key, count) -> ` a batch of tasks, in operations that `vmap` can batch.
        key: of the whole run; it decides the initialisation and every task.
        iterations: meta-steps in all, those of a resumed run included.
        meta_batch: tasks per meta-step.
        gradient: how to differentiate through the adaptation; None is the learner's own. A mapping from meta-steps to
            meta-gradients swaps them on the way: `{0: first_order(), 5000: unrolled()}` anneals from first to second
            order. The outer optimizer goes on undisturbed.
        scope: "none", "whole", "step" or "auto": what is compiled (`fmeta.compile`). What "auto" and other measurements
            chose is kept in the run's `choices.json`, so that a resumed run computes the same bits.
        run_dir: where to keep the run; None keeps nothing.
        resume: go on from the last checkpoint in `run_dir`; metrics.jsonl is cut back to it.
        validate: `meta -> ` a number to choose the best checkpoint by.
        log_every: meta-steps between looks at the device.
        save_every: meta-steps between checkpoints.
        progress: called with the step and the mean values at each log.

    Raises:
        InputError: bad tasks; a `run_dir` that already holds a run; a damaged or foreign checkpoint.
        NonFiniteError: a loss or gradient that is not finite. The last good state is in the last checkpoint.
        KeyboardInterrupt: after the state was saved.
    """
    check_counts("fit", iterations=iterations, meta_batch=meta_batch, log_every=log_every, save_every=save_every)
    if resume and run_dir is None:
        raise InputError("fit(resume=True): no run to go on with; expected run_dir, the folder of one")
    run = plan(scope)
    phases = _phases(gradient)
    trainers = {first: trainer(learner, optimizer, chosen, stage=run.stage) for first, chosen in phases.items()}
    state = trainers[0].init(fold(key, 0))
    identity = {"key": int(key), "meta_batch": meta_batch}
    keeper = _Keeper(run_dir, resume, validate, iterations, identity) if run_dir is not None else None
    if keeper is not None:
        state = keeper.restore(state)
    at, phase, window = int(state.step), -1, _Window()
    batches = _batches(sample, fold(key, _TASKS), meta_batch, at)
    try:
        while at < iterations:
            tasks = next(batches)
            if phase < 0:
                _try_once(learner, state.meta, tasks)
                if run.scope in ("whole", "auto") or len(phases) > 1:
                    # one eager task, for the warnings that a graph cannot give and what a later phase would raise
                    one = tree_map(lambda leaf: leaf[:1], tasks)
                    for chosen in phases.values():
                        meta_grad(learner, chosen)(state.meta, one)
            present = max(first for first in phases if first <= at)
            if present != phase:
                phase, step = present, run.whole(trainers[present].step)
            state, info = step(state, tasks)
            at += 1
            window.add(info)
            saving = keeper is not None and (at % save_every == 0 or at == iterations)
            if at % log_every == 0 or at == iterations or saving:
                bad = int(state.bad)  # the one place that waits for the device
                if bad >= 0:
                    raise NonFiniteError(_bad_news(learner, bad, keeper))
                values = window.close()
                if keeper is not None:
                    keeper.log({"step": at, **values, "seconds": window.seconds()})
                    if saving:
                        keeper.save(state)
                if progress is not None:
                    progress(at, values)
    except (KeyboardInterrupt, NonFiniteError):
        if keeper is not None:
            keeper.save(state._replace(bad=torch.full_like(state.bad, -1)), final=False)
        raise
    return state


def _batches(sample: Callable[[Tensor, int], Task], key: Tensor, meta_batch: int, start: int) -> Iterator[Task]:
    """The batches of step `start` and on, drawn many steps at a time, because small tensors cost more calls than work.

    Blocks begin at fixed steps, so that a resumed run computes each batch within the same block.
    """
    size = sum(t.numel() * t.element_size() for t in tree_leaves(sample(fold(key, 0), meta_batch)))
    block = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, size)))
    for first in itertools.count(start // block * block, block):
        keys = fold(key, torch.arange(first, first + block, device=key.device))
        leaves, structure = tree_flatten(over_tasks(lambda k: sample(k, meta_batch), shared=())(keys))
        for step, batch in enumerate(zip(*(leaf.unbind(0) for leaf in leaves), strict=True), first):
            if step >= start:
                yield tree_unflatten(batch, structure)


def _phases(gradient: MetaGradient | Mapping[int, MetaGradient] | None) -> dict[int, MetaGradient | None]:
    """First meta-step -> meta-gradient from there on."""
    if not isinstance(gradient, Mapping):
        return {0: gradient}
    if 0 not in gradient or not all(isinstance(first, int) and first >= 0 for first in gradient):
        raise InputError(
            f"fit(gradient=a mapping): its keys are {list(gradient)}; expected the first meta-step of each "
            "meta-gradient, integers, 0 among them"
        )
    return dict(gradient)


def _try_once(learner: Learner, meta: Any, tasks: Task) -> None:
    """Adapts to a batch eagerly, for the errors that a compiled function cannot raise."""
    check_tasks("fit", tasks)
    with torch.no_grad():
        over_tasks(lambda m, t: learner.loss(learner.adapt(m, t.support, t.key), m, t.query))(meta, tasks)


def _bad_news(learner: Learner, bad: int, keeper: _Keeper | None) -> str:
    kept = f"the state before it is the last checkpoint in {keeper.folder}" if keeper else "pass run_dir to keep states"
    return (
        f"fit({learner.name}): loss or meta-gradient not finite at step {bad}; its update and all later ones were "
        f"withheld; {kept}; lower the inner or the outer rate, clip (fmeta.clip_by_global_norm), or look at the tasks "
        "of this step"
    )


class _Window:
    """Means since the last log; the values stay on the device until then."""

    def __init__(self) -> None:
        self.infos = list[Info]()
        self.began = time.perf_counter()

    def seconds(self) -> float:
        return round(time.perf_counter() - self.began, 3)

    def add(self, info: Info) -> None:
        self.infos.append(info)

    def close(self) -> dict[str, float]:
        values = {"loss": torch.stack([i.loss for i in self.infos]).mean().item()}
        for name in dict.fromkeys(
            name for i in self.infos for name in i.metrics
        ):  # two phases may report different ones
            values[name] = torch.stack([i.metrics[name].mean() for i in self.infos if name in i.metrics]).mean().item()
        self.infos.clear()
        return values


class _Keeper:
    """The files of a run: metrics.jsonl and the checkpoints."""

    def __init__(
        self,
        run_dir: str | Path,
        resume: bool,
        validate: Callable[[Any], float] | None,
        iterations: int,
        identity: dict[str, int],
    ) -> None:
        self.folder, self.validate = Path(run_dir) / "checkpoints", validate
        self.iterations, self.identity = iterations, identity
        if resume and not Path(run_dir).is_dir():
            raise InputError(
                f"fit(run_dir={str(run_dir)!r}, resume=True): no such folder; expected the folder of a run"
            )
        self.metrics, self.choices = Path(run_dir) / "metrics.jsonl", Path(run_dir) / "choices.json"
        self.resume = resume
        if not resume and (checkpoints(self.folder) or self.metrics.exists()):
            raise InputError(
                f"fit(run_dir={str(run_dir)!r}): the folder already holds a run; expected a new one; "
                "pass resume=True (--resume) to go on with it, or another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def restore(self, state: TrainState) -> TrainState:
        found = checkpoints(self.folder)
        if self.resume and found:
            if self.choices.exists():
                prefer(json.loads(self.choices.read_text()))
            step, facts = found[-1]
            state = load_checkpoint(self.folder / f"{step:08d}", state)
            differ = {n: facts.get(n) for n, v in self.identity.items() if facts.get(n) != v}
            if differ:
                raise InputError(
                    f"fit(resume=True): the run in {self.folder} has {differ}, this call {self.identity}; expected the "
                    "same, because the rest of the run would see other tasks"
                )
            if step > self.iterations:
                raise InputError(
                    f"fit(iterations={self.iterations}): the run stands at step {step}; expected at least that"
                )
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        kept = [line for line in lines if _step_of(line) <= int(state.step)]
        _write(self.metrics, "".join(line + "\n" for line in kept))
        return state

    def log(self, line: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, state: TrainState, final: bool = True) -> None:
        step = int(state.step)
        if not final and step in dict(checkpoints(self.folder)):
            return  # it stands already, with its validation value
        value = float(self.validate(state.meta)) if self.validate is not None and final else None
        _write(self.choices, json.dumps(choices(), indent=1) + "\n")
        save_checkpoint(self.folder, state, step, validation=value, **self.identity)
        best = best_checkpoint(self.folder)
        prune(self.folder, keep={step} if best is None else {step, best})


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line that a crash left
