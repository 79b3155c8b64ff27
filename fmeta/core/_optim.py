"""Optimizers for the inner and the outer loop, as pure functions over trees.

Equal to torch.optim in float64, `adam`, `adamw` and `rmsprop` with `eps_root=0`.

A rate is a float, a scalar tensor, a tree with a tensor for each parameter, a scalar or of its shape (so it can be
learned), or a schedule: a function from the count of updates made so far, a float tensor, to any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_pattern
from fmeta.core._types import Optimizer, Tree

Schedule = Callable[[Tensor], Tree]
Rate = float | Tensor | Tree | Schedule


class MomentumState(NamedTuple):
    velocity: Tree
    step: Tensor


class RMSPropState(NamedTuple):
    square: Tree
    step: Tensor


class AdamState(NamedTuple):
    mean: Tree
    square: Tree
    step: Tensor  # float [], because vjp refuses integer state


def sgd(lr: Rate) -> Optimizer:
    """Gradient descent: Δθ = −lr·g."""
    _check_rate("sgd", lr)

    def init(params: Tree) -> Tree:
        return _count(params) if _scheduled(lr) else ()

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return _descend(lr, state, grads), (state + 1 if _scheduled(lr) else ())

    return Optimizer(init, update)


def momentum(lr: Rate, beta: float = 0.9, nesterov: bool = False) -> Optimizer:
    """v ← βv + g; Δθ = −lr·v, or −lr·(g + βv) for Nesterov's. The velocity starts at 0, as torch.optim.SGD's."""
    _check_rate("momentum", lr)
    _check_decay("momentum", beta=beta)

    def init(params: Tree) -> MomentumState:
        return MomentumState(tree.zeros_like(params), _count(params))

    def update(grads: Tree, state: MomentumState, params: Tree) -> tuple[Tree, MomentumState]:
        velocity = tree.add(tree.scale(state.velocity, beta), grads)
        direction = tree.add(grads, tree.scale(velocity, beta)) if nesterov else velocity
        return _descend(lr, state.step, direction), MomentumState(velocity, state.step + 1)

    return Optimizer(init, update)


def rmsprop(lr: Rate, decay: float = 0.99, eps: float = 1e-8, eps_root: float = 1e-16) -> Optimizer:
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5): v ← decay·v + (1−decay)g²; Δθ = −lr·g / (√(v + eps_root) + eps).

    `eps_root` is that of `adam`; 0 gives torch's numbers.
    """
    _check_rate("rmsprop", lr)
    _check_decay("rmsprop", decay=decay)
    _check_small("rmsprop", eps=eps, eps_root=eps_root)

    def init(params: Tree) -> RMSPropState:
        return RMSPropState(tree.zeros_like(params), _count(params))

    def update(grads: Tree, state: RMSPropState, params: Tree) -> tuple[Tree, RMSPropState]:
        square = tree.tree_map(lambda v, g: decay * v + (1 - decay) * g * g, state.square, grads)
        direction = tree.tree_map(lambda g, v: g / (tree.root(v + eps_root) + eps), grads, square)
        return _descend(lr, state.step, direction), RMSPropState(square, state.step + 1)

    return Optimizer(init, update)


def adam(lr: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 1e-16) -> Optimizer:
    """Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980).

        m ← b1·m + (1−b1)g,  v ← b2·v + (1−b2)g²,  Δθ = −lr · m/(1−b1ᵗ) / (√(v/(1−b2ᵗ) + eps_root) + eps)

    An update jumps from −lr to lr where a gradient passes through zero, and all that `eps` and `eps_root` leave of the
    jump is a slope of up to lr/(√eps_root + eps). A second-order meta-gradient through gradients that are exactly zero
    (behind a last layer that starts at zero) multiplies by it: 5e5 at a rate of 0.01, true for moves below 1e-8 and of
    no use to an outer step. There raise `eps_root`, to 1e-8 for slopes that hold for moves of 1e-4; gradients below
    √eps_root then make smaller steps.

    Args:
        lr: the rate.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
        eps: added to the root.
        eps_root: added inside the root. eps² changes a step by no more than `eps` does. 0 gives torch's numbers; the
            root then has slope 0 at v = 0, in place of infinity, so that second derivatives stay finite.

    Raises:
        InputError: a decay outside `0 <= b < 1`; a rate, eps or eps_root that is negative or not finite.
    """
    return adamw(lr, b1, b2, eps, weight_decay=0.0, eps_root=eps_root)


def adamw(
    lr: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    eps_root: float = 1e-16,
) -> Optimizer:
    """Adam with decoupled weight decay: Δθ = adam − lr·weight_decay·θ (Loshchilov & Hutter 2019,
    https://arxiv.org/abs/1711.05101). `eps_root` is that of `adam`."""
    _check_rate("adam", lr)
    _check_decay("adam", b1=b1, b2=b2)
    _check_small("adam", eps=eps, weight_decay=weight_decay, eps_root=eps_root)

    def init(params: Tree) -> AdamState:
        return AdamState(tree.zeros_like(params), tree.zeros_like(params), _count(params))

    def update(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        count = state.step + 1
        mean = tree.tree_map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, grads)
        square = tree.tree_map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, grads)
        left1, left2 = _remaining(b1, count), _remaining(b2, count)

        def direction(m: Tensor, v: Tensor, p: Tensor) -> Tensor:
            step = (m / left1.to(m.dtype)) / (tree.root(v / left2.to(v.dtype) + eps_root) + eps)
            return step + weight_decay * p if weight_decay else step

        return _descend(lr, state.step, tree.tree_map(direction, mean, square, params)), AdamState(mean, square, count)

    return Optimizer(init, update)


def clip_by_global_norm(max_norm: float) -> Optimizer:
    """Scales the gradient by min(1, max_norm / (‖g‖ + 1e-6)), as torch.nn.utils.clip_grad_norm_: a link for `chain`."""
    if not max_norm > 0:
        raise InputError(
            f"clip_by_global_norm(max_norm={max_norm}): expected a positive norm; leave it out not to clip"
        )

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        norm = tree.global_norm(grads)
        return tree.scale(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0)), state

    return Optimizer(lambda params: (), update, descends=False)


def chain(*links: Optimizer) -> Optimizer:
    """Feeds the output of each link to the next; the last one is the optimizer (`sgd`, `adam`, `masked`, …).

    Raises:
        InputError: no links; an optimizer before the last place, which would feed the next a step for a gradient.
    """
    if not links or not all(isinstance(link, Optimizer) for link in links):
        came = ", ".join(type(link).__name__ for link in links)
        raise InputError(f"chain({came}): expected one link or more, such as chain(clip_by_global_norm(1.0), sgd(0.1))")
    if any(link.descends for link in links[:-1]):
        raise InputError(
            "chain: a link before the last descends already, so the next would take its step for a gradient; expected "
            "that only the last does; for other rates by name give one optimizer a tree of rates; a link of your own "
            "that only transforms the gradient is Optimizer(init, update, descends=False)"
        )

    def init(params: Tree) -> Tree:
        return tuple(link.init(params) for link in links)

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        states = []
        for link, old in zip(links, state, strict=True):
            grads, new = link.update(grads, old, params)
            states.append(new)
        return grads, tuple(states)

    return Optimizer(init, update, links[-1].descends)


def masked(optimizer: Optimizer, pattern: str) -> Optimizer:
    """Moves only the parameters whose names match; the others stay, and have neither state nor a share in a norm.

    Other rates for other parameters are no case for it, but for a tree of rates: `sgd({name: rate, …})`.

    Args:
        optimizer: sees a dict of the matching parameters by name (so a tree of rates is such a dict). A link, such as
            clipping, stays one: it leaves the gradients that do not match as they are.
        pattern: shell-style patterns separated by commas (`head.*`); `!` in front means all but these.

    Raises:
        InputError: (when it first runs) a pattern that matches no parameter.
    """

    def chosen(params: Tree) -> dict[str, Tensor]:
        check_pattern("masked", params, pattern)
        return tree.select_leaves(params, pattern)

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = optimizer.update(tree.select_leaves(grads, pattern), state, chosen(params))
        return tree.replace_leaves(tree.zeros_like(grads) if optimizer.descends else grads, updates), state

    return Optimizer(lambda params: optimizer.init(chosen(params)), update, optimizer.descends)


def per_step(rates: Tree) -> Schedule:
    """A schedule that looks rates up by the count: leaves `[step, ...]` give those of the present step, and after the
    last step the last. Learned, with a leaf `[step]` for each parameter, they are LSLR (Antoniou et al. 2019,
    https://arxiv.org/abs/1810.09502)."""

    if not all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) for leaf in tree.tree_leaves(rates)):
        raise InputError("per_step(rates): expected a tree of tensors [step, ...], with one step at least")

    def rate(count: Tensor) -> Tree:
        def pick(leaf: Tensor) -> Tensor:
            # index_select, because a tensor cannot index under torch.compile here
            return leaf.index_select(0, count.clamp(max=len(leaf) - 1).to(torch.int64).reshape(1))[0]

        return tree.tree_map(pick, rates)

    return rate


def cosine_decay(lr: float, steps: int, floor: float = 0.0) -> Schedule:
    """floor + (lr − floor)·(1 + cos(π·count/steps))/2, and `floor` after `steps` updates (Loshchilov & Hutter 2017)."""
    _check_schedule("cosine_decay", lr, floor)
    if steps < 1:
        raise InputError(f"cosine_decay(steps={steps}): expected at least 1")
    return lambda count: floor + (lr - floor) * 0.5 * (1.0 + torch.cos(math.pi * (count / steps).clamp(max=1.0)))


def step_decay(lr: float, every: int, factor: float = 0.5) -> Schedule:
    """lr · factor^⌊count/every⌋, as torch's StepLR."""
    _check_schedule("step_decay", lr)
    if every < 1:
        raise InputError(f"step_decay(every={every}): expected at least 1")
    if not factor > 0:
        raise InputError(f"step_decay(factor={factor}): expected a factor > 0")
    return lambda count: lr * torch.exp(math.log(factor) * torch.div(count, every, rounding_mode="floor"))


def linear_decay(lr: float, steps: int, floor: float = 0.0) -> Schedule:
    """From lr to `floor` in a straight line over `steps` updates, then `floor`: Reptile's outer rate."""
    _check_schedule("linear_decay", lr, floor)
    if steps < 1:
        raise InputError(f"linear_decay(steps={steps}): expected at least 1")
    return lambda count: lr + (floor - lr) * (count / steps).clamp(max=1.0)


def _scheduled(lr: Rate) -> bool:
    # dynamo cannot trace callable() of a dict, so trees are told apart first
    return not isinstance(lr, float | int | Tensor | dict | list | tuple)


def _descend(lr: Rate, count: Tree, direction: Tree) -> Tree:
    rate: Any = lr(count) if _scheduled(lr) else lr  # type: ignore[operator]
    if isinstance(rate, float | int):
        return tree.scale(direction, -rate)
    if isinstance(rate, Tensor) and rate.ndim == 0:
        return tree.tree_map(lambda d: -rate.to(d.dtype) * d, direction)
    rates, parts = tree.named_leaves(rate), tree.named_leaves(direction)
    wrong = sorted(rates.keys() ^ parts.keys())
    if not wrong:
        wrong = [n for n, r in rates.items() if not (isinstance(r, Tensor) and r.shape in ((), parts[n].shape))]
    if wrong:
        raise InputError(
            f"optimizer(lr=a tree): the rates do not fit the parameters at {', '.join(wrong[:5])}; expected one for "
            "each parameter, a scalar tensor or one of its shape, nested as they are"
        )
    return tree.tree_map(lambda d, r: -r.to(d.dtype) * d, direction, rate)


def _count(params: Tree) -> Tensor:
    like = tree.scalar_like(params)
    # half precision cannot count: 256 + 1 is 256 in bfloat16
    return like.to(torch.promote_types(like.dtype, torch.float32))


def _remaining(decay: float, count: Tensor) -> Tensor:
    """1 − decayᵗ without cancellation in float32."""
    return -torch.expm1(count * math.log(decay)) if decay > 0 else torch.ones_like(count)


def _check_rate(call: str, lr: Rate) -> None:
    if isinstance(lr, float | int) and not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"{call}(lr={lr}): expected a finite rate >= 0")
    if _scheduled(lr) and not callable(lr):
        raise InputError(f"{call}(lr={lr!r}): expected a number, a tensor, a tree of tensors, or a schedule")


def _check_schedule(call: str, lr: float, floor: float = 0.0) -> None:
    for name, rate in {"lr": lr, "floor": floor}.items():
        if isinstance(rate, float | int) and not 0 <= rate < math.inf:
            raise InputError(f"{call}({name}={rate}): expected a finite rate >= 0")


def _check_decay(call: str, **decays: float) -> None:
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise InputError(f"{call}({name}={value}): expected 0 <= {name} < 1")


def _check_small(call: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{call}({name}={value}): expected a finite {name} >= 0")
