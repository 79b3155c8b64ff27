"""Trainers that are not fmeta's own, as a domain would bring them: one with a memory, one that collects its tasks."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmeta
from fmeta.core import Staged, fold, tree, uniform
from fmeta.core.tree import global_norm, tree_leaves, tree_map

F64 = torch.float64
CAPACITY, RECALLED = 6, 2
WAVES = fmeta.tasks.sinusoid(shots=4, query=4, dtype=F64)
LEARNER = fmeta.maml(fmeta.models.mlp([1, 6, 1], torch.tanh, F64), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=2)
OUTER = fmeta.adam(0.01)


class Remembering(NamedTuple):
    meta: Any
    opt_state: Any
    step: Tensor
    bad: Tensor
    memory: Any  # tasks, leaves [slot, ...]
    seen: Tensor  # int64 [], tasks that ever came


def remembering(gradient=None, capacity=CAPACITY, learner=LEARNER, optimizer=OUTER, sample=WAVES):
    """Keeps a reservoir of tasks, and takes two updates on each batch with some of them."""
    plain, slots = fmeta.trainer(learner, optimizer, gradient), fmeta.key(17)

    def init(key):
        memory = tree_map(lambda t: t.new_zeros((capacity, *t.shape[1:])), sample(key, 1))
        return Remembering(*plain.init(key), memory, torch.zeros((), dtype=torch.int64))

    def recalled(state, tasks):
        """The batch and some tasks held; before any are, the batch's own once more."""
        held = state.seen.clamp(max=capacity)
        chosen = (uniform(fold(slots, 2 * state.step), (RECALLED,), dtype=F64) * held).to(torch.int64)
        own = torch.arange(RECALLED) % len(tree_leaves(tasks)[0])

        def both(old, new):
            return torch.cat([new, torch.where(held > 0, old[chosen], new[own])])

        return tree_map(both, state.memory, tasks)

    def remembered(state, tasks):
        count = len(tree_leaves(tasks)[0])
        number = state.seen + torch.arange(count)
        drawn = uniform(fold(slots, 2 * state.step + 1), (count,), dtype=F64) * (number + 1)
        slot = torch.where(number < capacity, number, drawn.to(torch.int64))
        at = torch.where(slot[:, None] == torch.arange(capacity), torch.arange(count)[:, None], -1).amax(0)  # [slot]

        def put(old, new):
            here = (at >= 0).reshape(-1, *[1] * (new.ndim - 1))
            return torch.where(here, new[at.clamp(min=0)], old)

        return tree_map(put, state.memory, tasks), state.seen + count

    def build(gradient, stage):
        grads_of = fmeta.meta_grad(learner, gradient, stage)
        recall = stage(recalled)

        @stage
        def update(meta, opt_state, grads):
            updates, opt_state = optimizer.update(grads, opt_state, meta)
            return tree.add(meta, updates), opt_state, global_norm(grads)

        @stage
        def finish(state, meta, opt_state, tasks, seen):
            memory, count = remembered(state, tasks)
            moved = Remembering(meta, opt_state, state.step + 1, state.bad, memory, count)
            return fmeta.withhold(state, moved, (meta, opt_state, seen))

        def step(state, tasks):
            with torch.no_grad():
                both = recall(state, tasks)
                grads, info = grads_of(state.meta, both)
                meta, opt_state, norm = update(state.meta, state.opt_state, grads)
                again, _ = grads_of(meta, both)
                meta, opt_state, _ = update(meta, opt_state, again)
                new = finish(state, meta, opt_state, tasks, (info.losses, grads, again))
                return new, info._replace(gradient_norm=norm)

        return Staged(step, lambda state, tasks: grads_of.check(state.meta, tasks), functools.partial(build, gradient))

    phases = plain.phases
    first = build(phases[0], fmeta.core.eager)
    return fmeta.Trainer(init, first, "remembering", phases, build, learner, whole_batch=True)


def collecting(gradient=None):
    """Its tasks depend on the present weights: what a simulator would give back."""

    def collect(state, tasks):
        shift = float(sum(leaf.sum() for leaf in tree_leaves(state.meta)))  # on the host: no trace could hold it
        noise = torch.stack([uniform(k, dtype=F64) for k in fold(tasks.key, 5)])
        y = tasks.query.y + shift + 0.1 * noise[:, None, None]
        return tasks._replace(query=tasks.query._replace(y=y))

    return fmeta.trainer(LEARNER, OUTER, gradient)._replace(host=collect, name="collecting")
