"""What `fit` does between the steps: looks at the device, validates, tells, keeps, and decides when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fmeta.core import Info
from fmeta.training._keeper import Keeper
from fmeta.training._log import Logger, Window, learned_rates
from fmeta.training._ranks import Ranks
from fmeta.training._trainer import TrainState
from fmeta.training._validation import Monitor, Validate, figures_of


class NonFiniteError(RuntimeError):
    """Training stopped because a loss or gradient was not finite. The message says where, and what is kept."""


class Every(NamedTuple):
    """The end of a run, and the meta-steps between its pauses."""

    iterations: int
    log: int
    save: int
    validate: int

    def counts(self) -> dict[str, int]:
        return {"log_every": self.log, "save_every": self.save, "validate_every": self.validate}

    def due(self, at: int, interval: int) -> bool:
        return at % interval == 0 or at == self.iterations


class Watch:
    """Called after every step; `stopped` says whether that was the last one."""

    def __init__(
        self,
        name: str,
        ranks: Ranks,
        every: Every,
        validate: Validate | None,
        best: Monitor,
        keeper: Keeper | None,
        loggers: Sequence[Logger],
        state: TrainState,
        history: Sequence[Mapping[str, Any]],
        skips: bool,
    ) -> None:
        self.name, self.ranks, self.every, self.validate, self.best = name, ranks, every, validate, best
        self.keeper, self.loggers, self.skips = keeper, loggers, skips
        before = history[-1].get("window", {}) if history else {}
        self.window = Window({int(step): row for step, row in before.items()})
        self.validates = ranks.agree(validate is not None, state.step)
        self.stopped = ranks.agree(best.done, state.step)

    def __call__(self, at: int, state: TrainState, info: Info, tasks: int, flops: int) -> dict[str, Any]:
        """Looks at the state after step `at`, and keeps it where that is due. Returns what is to be told."""
        if self.ranks.rank == 0:
            self.window.add(at, info, tasks, tasks * flops)
        every = self.every
        validating, saving = self.validates and every.due(at, every.validate), every.due(at, every.save)
        if not (validating or saving or every.due(at, every.log)):
            self.window.lap("step")
            return {}
        bad = int(state.bad)  # the one place that waits for the device
        self.window.lap("step")
        if bad >= 0:
            raise NonFiniteError(self._bad_news(bad))
        self.ranks.check_same(state, at)
        line = self._kept(at, state, validating, saving) if self.ranks.rank == 0 else {}
        if validating:
            self.stopped = self.ranks.agree(self.best.done, state.step)
        return line

    def tell(self, at: int, line: dict[str, Any]) -> None:
        for log in self.loggers if line else ():
            log(at, line)

    def _kept(self, at: int, state: TrainState, validating: bool, saving: bool) -> dict[str, Any]:
        line, facts = self.window.values() | learned_rates(state.meta), dict[str, Any]()
        if validating and self.validate is not None:
            figures = figures_of(self.validate(state.meta))
            self.best.add(figures)
            facts = {"validation": figures}
            line |= {f"validation/{name}": value for name, value in figures.items()}
            saving = saving or self.best.since == 0 or self.best.done
            self.window.lap("validation")
        line |= self.window.close(at)
        if self.keeper is not None:
            self.keeper.log({"step": at, **line})
            if saving:
                self.keeper.save(state, **facts, **self.best.facts())
        self.window.lap("checkpoint")
        return line

    def _bad_news(self, bad: int) -> str:
        folder = self.keeper and self.keeper.folder
        kept = f"the state before it is the last checkpoint in {folder}" if folder else "pass run_dir to keep states"
        what = "loss, meta-gradient or update"
        if self.skips:
            what, skip = f"{what} (of every task, where those were left out)", ""
        else:
            skip = "leave such tasks out (skip_nonfinite=True), "
        return (
            f"fit({self.name}): {what} not finite at step {bad}; its update and all later ones were withheld; {kept}; "
            f"lower the inner or the outer rate, clip (fmeta.clip_by_global_norm), {skip}or look at the tasks of this "
            "step"
        )
