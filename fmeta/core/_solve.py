"""Linear solvers for symmetric positive definite systems A x = b over trees, A given by its products: one task each.

A solver is `(product, b) -> x`. Write your own in the same form: tensor operations that `vmap` can batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts
from fmeta.core._types import Tree

Product = Callable[[Tree], Tree]  # u -> A u
Solver = Callable[[Product, Tree], Tree]


def cg(iterations: int = 10, tolerance: float = 1e-10) -> Solver:
    """Conjugate gradients (Hestenes & Stiefel 1952): exact after as many iterations as there are parameters.

    A task rests once ‖r‖ <= tolerance·‖b‖, or from where a direction has no positive curvature.
    """
    check_counts("cg", iterations=iterations)
    if not 0 <= tolerance < 1:
        raise InputError(f"cg(tolerance={tolerance}): expected a relative residual >= 0 and below 1")

    def solve(product: Product, b: Tree) -> Tree:
        x, r, p, rr = tree.zeros_like(b), b, b, tree.dot(b, b)
        enough, rounding = tolerance**2 * rr, torch.finfo(rr.dtype).eps
        going = rr > 0
        for _ in range(iterations):
            ap = product(p)
            curvature = tree.dot(p, ap)
            least = rounding * tree.global_norm(p) * tree.global_norm(ap)  # below it the sign is noise
            going = going & (rr > enough) & (curvature > least)
            alpha = torch.where(going, rr / torch.where(going, curvature, 1.0), 0.0)
            x, r = tree.add(x, tree.scale(p, alpha)), tree.sub(r, tree.scale(ap, alpha))
            new = tree.dot(r, r)
            p = tree.add(r, tree.scale(p, torch.where(going, new / torch.where(going, rr, 1.0), 0.0)))
            rr = torch.where(going, new, rr)
        return x

    return solve


def neumann(iterations: int, rate: float) -> Solver:
    """The truncated series x = rate·Σᵢ (I − rate·A)ⁱ b, i = 0 … iterations: converges for 0 < rate < 2/‖A‖.

    With A the Hessian it is reverse mode through gradient descent that stands at the solution
    (Lorraine et al. 2020, https://arxiv.org/abs/1911.02590).
    """
    check_counts("neumann", iterations=iterations)
    if not 0 < rate < float("inf"):
        raise InputError(f"neumann(rate={rate}): expected a finite rate > 0, below 2 over the largest curvature")

    def solve(product: Product, b: Tree) -> Tree:
        x = term = tree.scale(b, rate)
        for _ in range(iterations):
            term = tree.sub(term, tree.scale(product(term), rate))
            x = tree.add(x, term)
        return x

    return solve


def direct(limit: int = 4096) -> Solver:
    """Forms A and factorises it: exact, in memory quadratic and time cubic in the number of parameters.

    Raises InputError above `limit` parameters. Where A is singular the solution is not finite.
    """
    check_counts("direct", limit=limit)

    def solve(product: Product, b: Tree) -> Tree:
        flat = _flat(b)
        if flat.numel() > limit:
            raise InputError(
                f"direct(limit={limit}): the system has {flat.numel()} unknowns, a matrix of {flat.numel()}² for each "
                "task; expected at most the limit; use fmeta.cg(iterations), or raise the limit"
            )
        matrix = jacrev(lambda v: _flat(product(_like(v, b))))(flat)
        return _like(torch.linalg.solve_ex(matrix, flat).result, b)  # does not raise for the sake of one task

    return solve


def residual(product: Product, x: Tree, b: Tree) -> Tensor:
    """‖A x − b‖ / ‖b‖, a scalar; 0 where b is 0."""
    size = tree.global_norm(b)
    return torch.where(size == 0, 0.0, tree.global_norm(tree.sub(product(x), b)) / torch.where(size == 0, 1.0, size))


def _flat(a: Tree) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.tree_leaves(a)])


def _like(flat: Tensor, a: Tree) -> Tree:
    leaves, structure = tree.tree_flatten(a)
    pieces = flat.split([leaf.numel() for leaf in leaves])
    return tree.tree_unflatten([p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)], structure)
