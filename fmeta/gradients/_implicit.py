"""`implicit`: differentiate the solution of the inner problem, not the path to it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from fmeta.core import _inner, tree
from fmeta.core._checks import InputError
from fmeta.core._inner import at_step
from fmeta.core._solve import Solver, cg, direct, neumann, residual
from fmeta.core._types import Examples, GradFn, Info, Inner, Learner, MetaGradient, Stage, Task, Tree, WeighingSteps
from fmeta.gradients._batched import batched, indices, inner_of, made, plain, pull_back, seeing
from fmeta.operators._over_tasks import over_tasks


def implicit(solve: Solver | None = None, *, tolerance: float = 1e-2) -> MetaGradient:
    """The meta-gradient at the solution of a strongly convex inner problem, by the implicit function theorem.

        ∂fast*/∂meta = −(∂²L/∂fast²)⁻¹ ∂²L/∂fast∂meta,
        d/dmeta = ∂loss/∂meta − (∂²L/∂fast∂meta)ᵀ v,    (∂²L/∂fast²) v = ∂loss/∂fast

    with L the inner loss at the step after the last. It is right where descent has converged, whatever the optimizer
    and the number of steps, in the memory of one step. Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630.

    `Info.metrics` gains, per task, `residual` ‖Av − b‖/‖b‖ of the linear system and `inner_gradient`, the norm of the
    inner gradient where descent ended: 0 at the solution, and far from it the formula is that of another point. Every
    fast weight must move, so no `masked` inner optimizer.

    Args:
        solve: `cg(iterations)` (the default, 10), `neumann(iterations, rate)` or `direct()`.
        tolerance: a residual above it is warned about, once (eager only: a compiled function cannot warn, but `fit`
            tries the first batch eagerly).

    Raises:
        InputError: a learner whose inner problem is not declared `strongly_convex`: the formula would be wrong without
            a sign of it (for MAML it is zero).
    """
    factories: dict[str, Any] = {"cg": cg, "neumann": neumann, "direct": direct}
    for name, factory in factories.items():
        if solve is factory:
            raise InputError(f"implicit({name}): got the factory; expected a solver; call it: {name}(…)")
    if not (solve is None or callable(solve)):
        raise InputError(f"implicit(solve={solve!r}): expected a solver: cg(iterations), neumann(…) or direct()")
    if not tolerance > 0:
        raise InputError(f"implicit(tolerance={tolerance}): expected a positive relative residual")
    return _Implicit(solve or cg(), tolerance)


@dataclass(frozen=True)
class _Implicit(WeighingSteps):
    solve: Solver
    tolerance: float
    order = "neither"  # where descent has not converged

    def __call__(self, learner: Learner, stage: Stage) -> GradFn:
        inner = inner_of(learner, "implicit(solve)")
        if not inner.strongly_convex:
            raise InputError(
                f"meta_grad({learner.name}, implicit(solve)): it needs the solution of a strongly convex inner problem "
                f"that holds on to meta, and that of {learner.name} is not declared so; expected imaml (or an Inner "
                "with strongly_convex=True); for this learner use unrolled() or adjoint()"
            )
        return _implicit(learner, inner, stage, self.solve, self.tolerance)


def _implicit(learner: Learner, inner: Inner, stage: Stage, solve: Solver, tolerance: float) -> GradFn:
    prepare, begin, slope, move, judge = batched(learner, inner)
    warned, calls = False, 0

    @stage
    def start(meta: Tree, support: Examples, key: Tree) -> tuple[Tree, Tree, Tree]:
        support = prepare(meta, support, key)
        return plain((*begin(meta, support, key), made(inner, support)))

    @stage
    def advance(fast: Tree, state: Tree, meta: Tree, tasks: Task, index: Tensor) -> tuple[Tree, Tree]:
        return plain(move(slope(fast, meta, tasks, index), fast, state, meta))

    @stage
    def finish(fast: Tree, meta: Tree, query: Examples) -> tuple[Tree, Tree, Info]:
        (d_fast, d_meta), (_, info) = grad_and_value(judge, argnums=(0, 1), has_aux=True)(fast, meta, query)
        return plain(d_fast), d_meta, info

    @stage
    def invert(fast: Tree, meta: Tree, tasks: Task, index: Tensor, d_fast: Tree) -> tuple[Tree, Tensor, Tensor]:
        def one(f: Tree, m: Tree, task: Task, i: Tensor, b: Tree) -> tuple[Tree, Tensor, Tensor]:
            def gradient(at: Tree) -> Tree:
                return _inner.slope(inner, at, m, task.support, at_step(i, task.key))

            def product(u: Tree) -> Tree:
                return grad(lambda at: tree.dot(gradient(at), u))(f)

            v = solve(product, b)
            return v, residual(product, v, b), tree.global_norm(gradient(f))

        return plain(over_tasks(one, shared=(1, 3))(fast, meta, tasks, index, d_fast))

    @stage
    def cross(fast: Tree, meta: Tree, tasks: Task, index: Tensor, v: Tree) -> Tree:
        def gradient(m: Tree) -> Tree:
            support = prepare(m, tasks.support, tasks.key)
            return slope(fast, m, tasks._replace(support=support), index)

        return pull_back(gradient, v, meta)[0]

    def implicit_grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
        *steps, end = indices(inner.steps + 1, tasks)
        fast, state, x = start(meta, tasks.support, tasks.key)
        seen = seeing(tasks, x)
        for index in steps:
            fast, state = advance(fast, state, meta, seen, index)
        d_fast, d_meta, info = finish(fast, meta, tasks.query)
        v, residuals, slopes = invert(fast, meta, seen, end, d_fast)
        warn(residuals)
        d_meta = tree.sub(d_meta, cross(fast, meta, tasks, end, v))
        found = {"residual": residuals, "inner_gradient": slopes}
        if found.keys() & info.metrics.keys():
            raise InputError(
                f"meta_grad({learner.name}, implicit(solve)): it reports {list(found)}; rename your metric"
            )
        # built anew, because torch 2.11 cannot hand a `_replace`d tuple out of a graph
        return d_meta, Info(info.loss, info.losses, info.metrics | found)

    def warn(residuals: Tensor) -> None:
        nonlocal warned, calls
        if warned or torch.compiler.is_compiling():
            return
        calls += 1
        if calls & (calls - 1):
            return  # a look waits for the device: at the calls 1, 2, 4, 8, …
        worst = float(residuals.max())
        if not worst <= tolerance:
            warned = True
            warnings.warn(
                f"meta_grad({learner.name}, implicit(solve)): the solver left a relative residual of {worst:.1e}, "
                f"above {tolerance:g}, so the meta-gradient is inexact; give it more iterations, damp the inner "
                "problem more, lower neumann's rate, use direct(), or raise implicit's tolerance",
                stacklevel=5,
            )

    return implicit_grads
