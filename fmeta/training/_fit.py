"""`fit`: the training loop, on one process or many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fmeta.core import InputError, Learner, MetaGradient, Optimizer, Task, fold
from fmeta.core._checks import check_counts
from fmeta.execution._compile import plan
from fmeta.execution._interrupt import interruptible
from fmeta.execution._memory import MemoryAdvice
from fmeta.training._draw import Batches
from fmeta.training._keeper import Keeper, SaveError, claimed
from fmeta.training._log import Logger
from fmeta.training._ranks import Ranks, RanksDifferError
from fmeta.training._steps import Steps, phases_of
from fmeta.training._trainer import TrainState, trainer
from fmeta.training._validation import Monitor, Validate
from fmeta.training._watch import Every, NonFiniteError, Watch


@interruptible()
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
    all before, at the end, on Ctrl-C and on an error. A line holds the means since the one before it, the
    norm of the meta-gradient, what `validate` found, learned inner rates, and under `time/` what differs from run to
    run: seconds, tasks and floating-point operations (of matrix products and convolutions) per second of sampling and
    step, and the shares of sampling, step, validation and checkpoint.

    In a process group of torch.distributed (`torchrun`) every process takes its part of each meta-batch, and all hold
    the same state, which is checked at every log; the process of rank 0 validates, logs and keeps the run. With as many
    processes it too resumes to the same bits; where something was measured, as long as the cache folders of its
    machines are kept.

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
        OtherRankError: another process could not begin, for the reason given.
        SaveError: the run could not be written, as on a full disk. The last checkpoint is whole.
        OutOfMemoryError: the tasks do not fit; the message says what would.
        KeyboardInterrupt: after the state was saved (several processes on CUDA: where the others still answer).
    """
    every = Every(iterations, log_every, save_every, save_every if validate_every is None else validate_every)
    check_counts("fit", iterations=iterations, meta_batch=meta_batch, **every.counts())
    if resume and run_dir is None:
        raise InputError("fit(resume=True): no run to go on with; expected run_dir, the folder of one")
    ranks, run, phases, best = Ranks.present(), plan(scope), phases_of(gradient), Monitor(monitor, mode, patience)
    part = ranks.part(meta_batch)
    trainers = [trainer(learner, optimizer, chosen) for chosen in phases.values()]  # what does not fit is refused now
    state = trainers[0].init(fold(key, "initialisation"))
    with contextlib.ExitStack() as stack:
        keeper, history = None, list[dict[str, Any]]()
        with ranks.together(key.device):
            if run_dir is not None and ranks.rank == 0:
                stack.enter_context(claimed(run_dir, resume))
                keeper = Keeper(run_dir, resume, iterations, {"key": int(key), "meta_batch": meta_batch})
                state, history = keeper.restore(state)
                best.restore(history)
        ranks.check_plan([*every, meta_batch, int(key)], state.step)
        state, kept = ranks.share(state), best.facts()
        at = start = int(state.step)
        batches = Batches(sample, fold(key, "tasks"), meta_batch, at, part)
        steps = Steps(learner, optimizer, phases, run, skip_nonfinite, ranks, meta_batch, batches.ahead)
        watch = Watch(learner.name, ranks, every, validate, best, keeper, loggers, state, history, skip_nonfinite)
        advice = MemoryAdvice(learner, key.device)
        try:
            with interruptible():
                while at < iterations and not watch.stopped:
                    tasks = batches.draw()
                    watch.window.lap("sampling")
                    with advice(steps.gradient(at), state.meta, tasks):
                        new, info = steps.at(at, state.meta, tasks)(state, tasks)
                    line = watch(at + 1, new, info, meta_batch, steps.flops(at))
                    state, at, kept = new, at + 1, best.facts()  # from here on the step is done, its validation too
                    watch.tell(at, line)
        except BaseException as error:
            worth = at > start or isinstance(error, NonFiniteError)  # whose message speaks of a checkpoint
            if keeper is not None and worth and not isinstance(error, SaveError | RanksDifferError):
                kept["window"] = watch.window.left(int(state.step))
                keeper.save(state._replace(bad=torch.full_like(state.bad, -1)), again=False, **kept)
            raise
    return state
