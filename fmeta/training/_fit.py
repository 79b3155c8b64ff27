"""`fit`: the training loop with progress, metrics, validation, checkpoints and resume, on one process or many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fmeta.core import (
    GradFn,
    InputError,
    Learner,
    MetaGradient,
    Optimizer,
    Stage,
    Task,
    check_counts,
    check_tasks,
    eager,
    fold,
)
from fmeta.core._inner import over_tasks
from fmeta.execution import Execution, compile, memory_advice, plan
from fmeta.gradients import meta_grad, skipping
from fmeta.training._draw import Batches
from fmeta.training._keeper import Keeper, claimed
from fmeta.training._log import Logger, Window, learned_rates
from fmeta.training._ranks import Ranks, across_ranks
from fmeta.training._trainer import TrainState, trainer
from fmeta.training._validation import Monitor, Validate, figures_of

_TASKS = 1 << 40  # a child of the run's key that no other purpose uses


class NonFiniteError(RuntimeError):
    """Training stopped because a loss or gradient was not finite. The message says where, and what is kept."""


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
    validate: Validate | None = None,
    validate_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    patience: int = 0,
    skip_nonfinite: bool = False,
    log_every: int = 100,
    save_every: int = 1000,
    loggers: Sequence[Logger] = (),
) -> TrainState:
    """Meta-trains a learner and returns the final state.

    The tasks of a step depend on the run's key and the step's number alone, so a run is a function of its key: resumed
    on the same machine it ends with the same bits. The first batch is adapted to eagerly first, and every meta-gradient
    of a mapping is tried on one task, so that what does not fit is reported by name before anything is compiled.

    In `run_dir`, which one process at a time may use: `metrics.jsonl` with a line every `log_every` steps, and
    `checkpoints/` with the last checkpoint and the best, taken every `save_every` steps, at a validation better than
    all before, at the end, on Ctrl-C and on a non-finite loss. A line holds the means since the one before it, the
    norm of the meta-gradient, what `validate` found, learned inner rates, and under `time/` what differs from run to
    run: seconds, tasks and floating-point operations (of matrix products and convolutions) per second, and the shares
    of sampling, step, validation and checkpoint.

    In a process group of torch.distributed (`torchrun`) every process takes its part of each meta-batch, and all hold
    the same state, which is checked at every log; the process of rank 0 validates, logs and keeps the run.

    Args:
        learner: what adapts.
        optimizer: of the outer loop.
        sample: `(key, count) -> ` a batch of tasks, in operations that `vmap` can batch.
        key: of the whole run; it decides the initialisation and every task.
        iterations: meta-steps in all, those of a resumed run included.
        meta_batch: tasks per meta-step, over all processes.
        gradient: how to differentiate through the adaptation; None is the learner's own. A mapping from meta-steps to
            meta-gradients swaps them on the way: `{0: first_order(), 5000: unrolled()}` anneals from first to second
            order. The outer optimizer goes on undisturbed.
        scope: "none", "whole", "step" or "auto": what is compiled (`fmeta.compile`). What "auto" and other measurements
            chose is kept in the run's `choices.json`, so that a resumed run computes the same bits.
        run_dir: where to keep the run; None keeps nothing.
        resume: go on from the last checkpoint in `run_dir`; metrics.jsonl is cut back to it.
        validate: `meta -> ` the loss on tasks for validation, or several figures by name.
        validate_every: meta-steps between validations; None is `save_every`.
        monitor: the figure that decides which checkpoint is the best.
        mode: whether that is the one with the "min" or the "max" figure.
        patience: validations in a row that may be no better than the best before training stops; 0 never stops.
        skip_nonfinite: leave tasks out whose loss or gradient is not finite, and count them as "skipped"
            (`fmeta.skipping`); otherwise one stops training.
        log_every: meta-steps between looks at the device.
        save_every: meta-steps between checkpoints.
        loggers: called with the step and the values of each line.

    Raises:
        InputError: bad tasks; a `run_dir` that already holds a run, or that another process trains in; a damaged or
            foreign checkpoint.
        NonFiniteError: a loss or gradient that is not finite. The last good state is in the last checkpoint.
        SaveError: the run could not be written, as on a full disk. The last checkpoint is whole.
        OutOfMemoryError: the tasks do not fit; the message says what would.
        KeyboardInterrupt: after the state was saved.
    """
    validate_every = save_every if validate_every is None else validate_every
    counts = {"iterations": iterations, "meta_batch": meta_batch, "log_every": log_every, "save_every": save_every}
    check_counts("fit", **counts, validate_every=validate_every)
    if resume and run_dir is None:
        raise InputError("fit(resume=True): no run to go on with; expected run_dir, the folder of one")
    watch, ranks, run, phases = Monitor(monitor, mode, patience), Ranks.present(), plan(scope), _phases(gradient)
    part, identity = ranks.part(meta_batch), {"key": int(key), "meta_batch": meta_batch}
    trainers = [trainer(learner, optimizer, chosen) for chosen in phases.values()]  # what does not fit is refused now
    state = trainers[0].init(fold(key, 0))
    with contextlib.ExitStack() as stack:
        keeper = None
        if run_dir is not None and ranks.rank == 0:
            stack.enter_context(claimed(run_dir, resume))
            keeper = Keeper(run_dir, resume, iterations, identity)
            state, lines = keeper.restore(state)
            watch.replay(lines)
        state = ranks.share(state)
        at = int(state.step)
        batches = Batches(sample, fold(key, _TASKS), meta_batch, at, part)

        def stepping(chosen: MetaGradient | None) -> Callable[..., Any]:
            if ranks.count == 1 and not skip_nonfinite:
                return run.whole(trainer(learner, optimizer, chosen, stage=run.stage).step)
            outside: MetaGradient = _Inside(chosen or learner.gradient, run)  # Python decides around the graph
            if skip_nonfinite:
                outside = skipping(outside)
            if ranks.count > 1:
                outside = across_ranks(outside, ranks, meta_batch, batches.ahead)
            return trainer(learner, optimizer, outside, stage=eager if run.scope == "none" else compile).step

        phase, window, flops = -1, Window(), dict[int, int]()
        stopped = ranks.agree(watch.done, state.step)
        try:
            while at < iterations and not stopped:
                tasks = batches.draw()
                window.lap("sampling")
                present = max(first for first in phases if first <= at)
                with memory_advice(learner, phases[present], state.meta, tasks):
                    if phase < 0:
                        _try_once(learner, state.meta, tasks)
                        flops = _try_phases(learner, phases, state.meta, tasks)
                    if present != phase:
                        phase, step = present, stepping(phases[present])
                    state, info = step(state, tasks)
                at += 1
                window.add(info, meta_batch, flops[phase] * meta_batch)
                last, saving = at == iterations, at % save_every == 0 or at == iterations
                validating = validate is not None and (at % validate_every == 0 or last)
                if not (at % log_every == 0 or saving or validating):
                    window.lap("step")
                    continue
                bad = int(state.bad)  # the one place that waits for the device
                window.lap("step")
                if bad >= 0:
                    raise NonFiniteError(_bad_news(learner, bad, keeper))
                ranks.check_same(state, at)
                line, facts = window.values() | learned_rates(state.meta), dict[str, Any]()
                if validating and ranks.rank == 0:
                    assert validate is not None
                    figures = figures_of(validate(state.meta))
                    facts = {"validation": figures, "score": watch.add(figures)}
                    line |= {f"validation/{name}": value for name, value in figures.items()}
                    saving = saving or watch.since == 0 or watch.done
                    window.lap("validation")
                stopped = validating and ranks.agree(watch.done, state.step)
                if ranks.rank == 0:
                    line |= window.close()
                    if keeper is not None:
                        keeper.log({"step": at, **line})
                    for log in loggers:
                        log(at, line)
                if keeper is not None and saving:
                    keeper.save(state, **facts)
                window.lap("checkpoint")
        except (KeyboardInterrupt, NonFiniteError):
            if keeper is not None:
                keeper.save(state._replace(bad=torch.full_like(state.bad, -1)), again=False)
            raise
    return state


@dataclass(frozen=True)
class _Inside:
    """A meta-gradient that is compiled by itself, whatever is around it."""

    gradient: MetaGradient
    run: Execution

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        return self.run.whole(meta_grad(learner, self.gradient, self.run.stage))


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


def _try_phases(learner: Learner, phases: dict[int, MetaGradient | None], meta: Any, tasks: Task) -> dict[int, int]:
    """The meta-gradient of one task, eager: floating-point operations by phase.

    For them, for the warnings that a graph cannot give, and for what a later phase would raise.
    """
    one = tree_map(lambda leaf: leaf[:1], tasks)
    return {first: _flops(lambda: meta_grad(learner, chosen)(meta, one)) for first, chosen in phases.items()}  # noqa: B023


def _try_once(learner: Learner, meta: Any, tasks: Task) -> None:
    """Adapts to a batch eagerly, for the errors that a compiled function cannot raise."""
    check_tasks("fit", tasks)
    with torch.no_grad():
        over_tasks(lambda m, t: learner.loss(learner.adapt(m, t.support, t.key), m, t.query))(meta, tasks)


def _flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products and convolutions of a call, two for a multiplication and its addition."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _bad_news(learner: Learner, bad: int, keeper: Keeper | None) -> str:
    kept = f"the state before it is the last checkpoint in {keeper.folder}" if keeper else "pass run_dir to keep states"
    return (
        f"fit({learner.name}): loss or meta-gradient not finite at step {bad}; its update and all later ones were "
        f"withheld; {kept}; lower the inner or the outer rate, clip (fmeta.clip_by_global_norm), leave such tasks out "
        "(skip_nonfinite=True), or look at the tasks of this step"
    )
