"""What `fit` does between the steps: looks at the device, validates, tells, saves, and decides when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fmeta.core import Info, InputError
from fmeta.training._logging import Logger, Window, learned_rates
from fmeta.training._ranks import Ranks
from fmeta.training._run_files import RunFiles
from fmeta.training._trainer import State
from fmeta.training._validation import Monitor, Validate, figures_of


class NonFiniteError(RuntimeError):
    """Training stopped because a loss or gradient was not finite. The message says where, and what is kept."""


class Every(NamedTuple):
    """The end of a run, and the meta-steps between its pauses."""

    iterations: int
    log: int
    save: int
    validate: int  # 0: never

    def due(self, at: int, interval: int) -> bool:
        return interval > 0 and (at % interval == 0 or at == self.iterations)


class Progress:
    """Called after every step; `stopped` says whether that was the last one."""

    def __init__(
        self,
        name: str,
        ranks: Ranks,
        every: Every,
        judges: tuple[Validate | None, Monitor],
        files: RunFiles | None,
        loggers: Sequence[Logger],
    ) -> None:
        self.name, self.ranks, self.every, self.files, self.loggers = name, ranks, every, files, loggers
        self.validate, self.best = judges
        self.window = Window({})
        self.stopped = False

    def begin(self, state: State, history: Sequence[Mapping[str, Any]]) -> None:
        """Goes on after checkpoints with these facts, oldest first."""
        before = history[-1].get("window", {}) if history else {}
        self.window = Window({int(step): row for step, row in before.items()})
        self.stopped = self.ranks.agree(self.best.done, state.step)

    def __call__(self, at: int, state: State, info: Info, tasks: int, flops: int, *, skips: bool) -> dict[str, Any]:
        """Looks at the state after step `at`, and saves it where that is due. Returns what is to be told."""
        if self.ranks.rank == 0:
            self.window.add(at, info, tasks, flops)
        every = self.every
        validating, saving = every.due(at, every.validate), every.due(at, every.save)
        if not (validating or saving or every.due(at, every.log)):
            self.window.lap("step")
            return {}
        bad = int(state.bad)  # the one place that waits for the device
        self.window.lap("step")
        if bad >= 0:
            raise NonFiniteError(self._bad_news(bad, skips))
        if int(state.step) != at:
            raise InputError(
                f"fit({self.name}): after meta-step {at} the state's step is {int(state.step)}; expected a trainer "
                "whose step adds one to it"
            )
        self.ranks.check_same(state, at)
        line = self._kept(at, state, validating, saving) if self.ranks.rank == 0 else {}
        if validating:
            self.stopped = self.ranks.agree(self.best.done, state.step)
        return line

    def tell(self, at: int, line: dict[str, Any]) -> None:
        for log in self.loggers if line else ():
            log(at, line)

    def _kept(self, at: int, state: State, validating: bool, saving: bool) -> dict[str, Any]:
        line, facts = self.window.values() | learned_rates(state.meta), dict[str, Any]()
        if validating and self.validate is not None:
            figures = figures_of(self.validate(state.meta))
            self.best.add(figures)
            facts = {"validation": figures}
            line |= {f"validation/{name}": value for name, value in figures.items()}
            saving = saving or self.best.since == 0 or self.best.done
            self.window.lap("validation")
        line |= self.window.close(at)
        if self.files is not None:
            self.files.log({"step": at, **line})
            if saving:
                self.files.save(state, **facts, **self.best.facts())
        self.window.lap("checkpoint")
        return line

    def _bad_news(self, bad: int, skips: bool) -> str:
        folder = self.files and self.files.folder
        kept = f"the state before it is the last checkpoint in {folder}" if folder else "pass run_dir to keep states"
        what = "loss, meta-gradient or update"
        if skips:
            what, skip = f"{what} (of every task, where those were left out)", ""
        else:
            skip = "leave such tasks out (gradient=fmeta.skipping(), --skip-nonfinite), "
        return (
            f"fit({self.name}): {what} not finite at step {bad}; its update and all later ones were withheld; {kept}; "
            f"lower the inner or the outer rate, clip (fmeta.clip_by_global_norm), {skip}or look at the tasks of this "
            "step"
        )
