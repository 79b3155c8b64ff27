"""`fit`: the loop around a `Trainer`, on one process or many."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeta._objects import find_object
from fmeta.core import InputError, Learner, MetaGradient, fold
from fmeta.core._checks import check_counts
from fmeta.core._random import check_key
from fmeta.execution._compile import plan
from fmeta.execution._interrupt import interruptible
from fmeta.execution._memory import MemoryAdvice
from fmeta.training._batches import Batches, Sample, sources_of
from fmeta.training._brief import grouped
from fmeta.training._logging import Logging
from fmeta.training._progress import Every, NonFiniteError, Progress
from fmeta.training._ranks import Ranks, RanksDifferError
from fmeta.training._room import check_batches, drawing, initial_state
from fmeta.training._run_files import RunFiles, SaveError, Saving, claimed
from fmeta.training._steps import Steps, check_bare, check_state
from fmeta.training._trainer import Trainer, trainer
from fmeta.training._validation import Monitor, Validate, Validation

_KEYWORDS = (
    "key",
    "iterations",
    "meta_batch",
    "gradient",
    "scope",
    "run_dir",
    "resume",
    "validate",
    "saving",
    "logging",
)


@interruptible()
def fit(
    *what: Any,
    key: Tensor,
    iterations: int,
    meta_batch: int,
    gradient: MetaGradient | Mapping[int, MetaGradient | None] | None = None,
    scope: str = "none",
    run_dir: str | Path | None = None,
    resume: bool = False,
    validate: Validation | Validate | None = None,
    saving: Saving = Saving(),  # noqa: B008  # a value
    logging: Logging = Logging(),  # noqa: B008  # a value
    **brief: Any,
) -> Any:
    """Meta-trains and returns the final state: `fit(trainer, sample, …)`, or `fit(learner, optimizer, sample, …)`.

        trainer = fmeta.trainer(learner, fmeta.adam(1e-3))
        state = fmeta.fit(trainer, sample, key=fmeta.key(0), iterations=60_000, meta_batch=25, run_dir="runs/a",
                          validate=fmeta.Validation(figures, every=500, monitor="accuracy", patience=5))

    The tasks of a step depend on the run's key and the step's number alone, so a run is a function of its key: resumed
    on the same machine it ends with the same bits. The first batch is adapted to eagerly first, and every meta-gradient
    of the trainer is tried on one task, so that what does not fit is reported by name before anything is compiled.

    In `run_dir`, which one process at a time may use: `metrics.jsonl` with a line every `logging.every` steps, and
    `checkpoints/` with the last checkpoint and the best, taken every `saving.every` steps, at a validation better than
    all before, at the end, on Ctrl-C and on an error. A line holds the means since the one before it, the
    norm of the meta-gradient, what validation found, learned inner rates, and under `time/` what differs from run to
    run: seconds, tasks and floating-point operations (of matrix products and convolutions) per second of sampling and
    step, and the shares of sampling, step, validation and checkpoint.

    In a process group of torch.distributed (`torchrun`) every process takes its part of each meta-batch, and all hold
    the same state, which is checked at every log; the process of rank 0 validates, logs and keeps the run. With as many
    processes it too resumes to the same bits; where something was measured, as long as the cache folders of its
    machines are kept.

    Args:
        what: a `Trainer` and a sampler, `(key, count) -> ` a batch of tasks, in operations that `vmap` can batch. A
            mapping from meta-steps to samplers swaps them on the way, `{0: easy, 5000: hard}`. In short: a learner, an
            outer optimizer and a sampler, of which `fmeta.trainer` makes the trainer.
        key: of the whole run; it decides the initialisation and every task.
        iterations: meta-steps in all, those of a resumed run included.
        meta_batch: tasks per meta-step, over all processes.
        gradient: of the short form: how to differentiate through the adaptation, or a mapping of phases, as in
            `fmeta.trainer`. `fmeta.skipping()` leaves tasks out whose loss or gradient is not finite, and counts them
            as "skipped"; otherwise one stops training.
        scope: "none", "whole", "step" or "auto": what is compiled (`fmeta.compile`). What "auto" and other measurements
            chose is kept in the run's choices.json, by which it goes on when resumed.
        run_dir: a new folder, or with `resume` the folder of a run; None keeps nothing.
        resume: go on from the last checkpoint in `run_dir`, where there is one.
        validate: what judges the meta-parameters, and how often; or only a function of them, of which the loss decides.
        saving: how often to save, and where the run's recipe stands.
        logging: how often to tell, and whom.
        brief: fields of these three groups by themselves: `log_every`, `loggers`, `save_every`, `recipe`,
            `validate_every`, `monitor`, `mode`, `patience`.

    Raises:
        InputError: bad tasks; a trainer that cannot do what is asked; a keyword that there is not; a `run_dir` that
            already holds a run, or that another process trains in; a damaged or foreign checkpoint; a recipe that
            cannot be imported.
        NonFiniteError: a loss or gradient that is not finite. The last good state is in the last checkpoint.
        OtherRankError: another process could not begin, for the reason given.
        SaveError: the run could not be written, as on a full disk. The last checkpoint is whole.
        OutOfMemoryError: the network, the tasks or a meta-step do not fit, before they are begun where that can be
            estimated; the message says what would.
        KeyboardInterrupt: after the state was saved (several processes on CUDA: where the others still answer).
    """
    chosen, sources = _chosen(what, gradient)
    check_key("fit", key)
    check_counts("fit", iterations=iterations, meta_batch=meta_batch)
    judged, saving, logging = grouped(brief, validate, saving, logging, _KEYWORDS)
    check_counts("Logging", every=logging.every)
    saving.check()
    if run_dir is None:
        _check_needs_no_folder(resume, saving.recipe)
    ranks, run, best = Ranks.present(), plan(scope), Monitor.of(judged)
    check_bare(chosen, ranks)
    part = range(meta_batch) if chosen.whole_batch else ranks.part(meta_batch)
    place = None if saving.recipe is None else find_object("fit(recipe=…)", saving.recipe)[0]
    state = initial_state(chosen, fold(key, "initialisation"))
    check_state(chosen.name, state)
    check_batches(sources.values(), fold(key, "tasks"), meta_batch, part)
    with contextlib.ExitStack() as stack:
        files, history = None, list[dict[str, Any]]()
        with ranks.together(key.device):
            if run_dir is not None and ranks.rank == 0:
                stack.enter_context(claimed(run_dir, resume))
                identity = {"key": int(key), "meta_batch": meta_batch}
                files = RunFiles(run_dir, resume, iterations, identity, saving.facts)
                if place is not None:
                    files.point_to_recipe(place)
                state, history = files.restore(state)
                best.restore(history)
        ranks.check_plan([iterations, logging.every, saving.every, meta_batch, int(key)], state.step)
        state = ranks.share(state)
        interval = 0 if judged is None else judged.every or saving.every
        every = Every(iterations, logging.every, saving.every, ranks.number(interval, state.step))
        figures = None if judged is None else judged.figures
        progress = Progress(chosen.name, ranks, every, (figures, best), files, logging.loggers)
        progress.begin(state, history)
        at, kept = int(state.step), best.facts()
        start = at
        batches = Batches(sources, fold(key, "tasks"), meta_batch, at, part)
        steps = Steps(chosen, run, ranks, meta_batch, batches)
        advice = MemoryAdvice(chosen.name, chosen.learner, chosen.build, key.device, compiled=scope != "none")
        try:
            with interruptible():
                while at < iterations and not progress.stopped:
                    with drawing(meta_batch):
                        drawn = batches.draw()
                    tasks = drawn if chosen.host is None else chosen.host(state, drawn)
                    progress.window.lap("sampling")
                    with advice(steps.gradient(at), state, tasks):
                        new, info = steps.at(at, state, tasks)(state, tasks)
                    flops = steps.flops(at, meta_batch)
                    line = progress(at + 1, new, info, meta_batch, flops, skips=steps.skips(at))
                    state, at, kept = new, at + 1, best.facts()  # from here on the step is done, its validation too
                    progress.tell(at, line)
        except BaseException as error:
            worth = at > start or isinstance(error, NonFiniteError)  # whose message speaks of a checkpoint
            if files is not None and worth and not isinstance(error, SaveError | RanksDifferError):
                kept["window"] = progress.window.left(int(state.step))
                files.save(state._replace(bad=torch.full_like(state.bad, -1)), again=False, **kept)
            raise
    return state


def _check_needs_no_folder(resume: bool, recipe: str | None) -> None:
    if resume:
        raise InputError("fit(resume=True): no run to go on with; expected run_dir, the folder of one")
    if recipe is not None:
        raise InputError(f"fit(recipe={recipe!r}): nowhere to keep it; expected run_dir, the folder of the run")


def _chosen(what: tuple[Any, ...], gradient: Any) -> tuple[Trainer, dict[int, Sample]]:
    """The trainer and the sources of tasks of a call, in either form."""
    match what:
        case (Trainer() as given, sample):
            if gradient is not None:
                raise InputError(
                    f"fit({given.name}, gradient=…): a Trainer has its own meta-gradient; expected it there: "
                    "fmeta.trainer(learner, optimizer, gradient)"
                )
        case (Learner() as learner, optimizer, sample):
            given = trainer(learner, optimizer, gradient)
        case _:
            came = ", ".join(type(value).__name__ for value in what)
            raise InputError(
                f"fit({came}): expected fit(trainer, sample, …), or in short fit(learner, optimizer, sample, …)"
            )
    sources = sources_of(sample)
    odd = [source for source in sources.values() if not callable(source)]
    if odd:
        came = type(odd[0]).__name__
        cure = (
            "; draw them from it by fmeta.tasks.episodes(data, ways=…, shots=…, query=…)" if came == "ClassData" else ""
        )
        raise InputError(f"fit: sample is a {came}; expected a function (key, count) -> tasks{cure}")
    return given, sources
