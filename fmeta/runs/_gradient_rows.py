"""The meta-gradients that the command line knows: a row each, with the options of it alone. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmeta.runs._options import GradientRow, OptionError, registered

if TYPE_CHECKING:
    from fmeta.core import MetaGradient

GRADIENTS: dict[str, type[GradientRow]] = {}


@dataclass(frozen=True, kw_only=True)
class Weighing(GradientRow):
    """Those that can weigh the losses after all inner steps."""

    multi_step: bool = False
    """minimise the loss after every inner step, weighed alike"""

    def weights(self, steps: int) -> tuple[float, ...] | None:
        from fmeta.gradients import multi_step

        return multi_step(steps) if self.multi_step else None


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Weighing):
    """Those that may begin with first order."""

    first_order_until: int = 0
    """meta-steps trained with first_order before the meta-gradient takes over"""

    def phases(self, steps: int) -> dict[int, MetaGradient]:
        from fmeta.gradients import first_order

        if self.first_order_until < 0:
            raise OptionError("first_order_until", self.first_order_until, "expected 0 or more")
        if not self.first_order_until:
            return {0: self.build(steps)}
        return {0: first_order(self.weights(steps)), self.first_order_until: self.build(steps)}


@registered(GRADIENTS, "unrolled")
@dataclass(frozen=True, kw_only=True)
class Unrolled(SecondOrder):
    """Exact, by reverse mode through everything."""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import unrolled

        return unrolled(self.weights(steps))


@registered(GRADIENTS, "adjoint")
@dataclass(frozen=True, kw_only=True)
class Adjoint(SecondOrder):
    """Exact, replaying one inner step at a time."""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import adjoint

        return adjoint(self.weights(steps))


@registered(GRADIENTS, "truncated")
@dataclass(frozen=True, kw_only=True)
class Truncated(SecondOrder):
    """The second-order term of the last inner steps only."""

    last: int = 1
    """inner steps whose second-order term it keeps"""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import truncated

        return truncated(self.last, self.weights(steps))


@registered(GRADIENTS, "first_order")
@dataclass(frozen=True, kw_only=True)
class FirstOrder(Weighing):
    """No second-order term."""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import first_order

        return first_order(self.weights(steps))


@registered(GRADIENTS, "difference")
@dataclass(frozen=True, kw_only=True)
class Difference(GradientRow):
    """Reptile's direction, meta − fast."""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import difference

        return difference()


@registered(GRADIENTS, "implicit")
@dataclass(frozen=True, kw_only=True)
class Implicit(GradientRow):
    """Exact at the solution of a strongly convex inner problem."""

    solver_iterations: int = 5
    """conjugate-gradient iterations"""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.core import cg
        from fmeta.gradients import implicit

        if self.solver_iterations < 1:
            raise OptionError("solver_iterations", self.solver_iterations, "expected at least 1")
        return implicit(cg(self.solver_iterations))


@registered(GRADIENTS, "evolution")
@dataclass(frozen=True, kw_only=True)
class Evolution(GradientRow):
    """An antithetic estimate from losses alone."""

    sigma: float = 0.01
    """standard deviation of the perturbations"""
    pairs: int = 16
    """antithetic pairs for each task"""

    def build(self, steps: int) -> MetaGradient:
        from fmeta.gradients import evolution

        return evolution(self.sigma, self.pairs)
