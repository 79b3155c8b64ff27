"""Data-parallel meta-training: the tasks of a meta-batch over the ranks of torch.distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmeta.core import GradFn, Info, InputError, Learner, MetaGradient, Stage, Task, Tree, fold
from fmeta.core.tree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class OtherRankError(RuntimeError):
    """Another rank could not go on, for the reason in the message, which it has told itself."""


class RanksDifferError(RuntimeError):
    """The ranks of a run no longer hold the same state. The message says which, and since when at most."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this is. One process needs no torch.distributed."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def present() -> Ranks:
        """Those of the default process group, where there is one."""
        there = dist.is_available() and dist.is_initialized()
        return Ranks(dist.get_rank(), dist.get_world_size()) if there else Ranks()

    def part(self, meta_batch: int) -> range:
        """The numbers of this rank's tasks."""
        if meta_batch < self.count:
            raise InputError(
                f"fit(meta_batch={meta_batch}): {self.count} processes; expected at least one task for each"
            )
        return range(self.rank * meta_batch // self.count, (self.rank + 1) * meta_batch // self.count)

    def share(self, values: Tree) -> Tree:
        """The values of rank 0, everywhere: one broadcast for each dtype."""
        if self.count == 1:
            return values
        leaves, structure = tree_flatten(values)
        sent: list[Tensor] = list(leaves)
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            flat = torch.cat([leaves[i].detach().reshape(-1) for i in places])
            dist.broadcast(flat, 0)
            for i, piece in zip(places, flat.split([leaves[i].numel() for i in places]), strict=True):
                sent[i] = piece.view(leaves[i].shape).clone()
        return tree_unflatten(sent, structure)

    def one(self, value: Any, rank: int = 0, device: torch.device | None = None) -> Any:
        """What one of the ranks has, anything that can be pickled. `device`: that they talk through, or its own."""
        if self.count == 1:
            return value
        sent = [value]
        dist.broadcast_object_list(sent, rank, device=device)
        return sent[0]

    @contextlib.contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Where one rank fails inside, all do, so that none waits for it in vain: it with its error, the others with an
        OtherRankError."""
        problem = None
        try:
            yield
        except Exception as error:
            problem = error
        failed = self._of_each(torch.tensor(problem is not None, device=device))
        culprit = next((rank for rank, bad in enumerate(failed) if bad), None)
        told = None if culprit is None else self.one(str(problem), culprit, device)
        if problem is not None:
            raise problem
        if culprit is not None:
            raise OtherRankError(f"rank {culprit}: {told}")

    def check_plan(self, plan: Sequence[int], like: Tensor) -> None:
        """Raises InputError unless every rank was called with these numbers, so that none waits for another in vain."""
        differ = self._unlike_first(torch.tensor(plan, dtype=torch.int64, device=like.device))
        if differ:
            raise InputError(
                f"fit: rank {differ[0]} was called with other iterations, intervals, meta_batch or key than rank 0; "
                "expected the same call in every process"
            )

    def agree(self, yes: bool, like: Tensor) -> bool:
        """What rank 0 says. `like` is on the device that the ranks talk through."""
        return bool(self.share(torch.full_like(like, yes))) if self.count > 1 else yes

    def number(self, value: int, like: Tensor) -> int:
        """That of rank 0, everywhere."""
        return int(self.share(torch.full_like(like, value))) if self.count > 1 else value

    def check_same(self, state: Tree, step: int) -> None:
        """Raises RanksDifferError unless the bits of the state are the same on every rank."""
        differ = self._unlike_first(fingerprint(state)) if self.count > 1 else []
        if differ:
            raise RanksDifferError(
                f"fit: at step {step} the state of rank {differ[0]} differs from that of rank 0 ({len(differ)} of "
                f"{self.count} ranks differ); expected the same bits; go on from the last checkpoint with resume=True, "
                "and look for hardware or library versions that differ"
            )

    def _of_each(self, own: Tensor) -> list[Tensor]:
        if self.count == 1:
            return [own]
        every = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(every, own)
        return every

    def _unlike_first(self, own: Tensor) -> list[int]:
        """The ranks whose tensor is not that of rank 0; every rank finds the same."""
        every = self._of_each(own)
        return [rank for rank, other in enumerate(every) if not torch.equal(other, every[0])]


def fingerprint(values: Tree) -> Tensor:
    """A hash of every bit, int64 []: Σᵢ mix(bitsᵢ folded with i), on the device."""
    leaves = tree_leaves(values)
    total = torch.zeros((), dtype=torch.int64, device=leaves[0].device)
    for number, leaf in enumerate(leaves):
        flat = leaf.detach().contiguous().reshape(-1).view(torch.uint8)
        words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
        places = torch.arange(len(words), device=leaf.device)
        total = total + fold(fold(words, places), number).sum()
    return total


def across_ranks(
    gradient: MetaGradient, ranks: Ranks, meta_batch: int | None, meanwhile: Callable[[], Any]
) -> MetaGradient:
    """`gradient` of this rank's tasks, then the mean over the tasks of all ranks, by ONE all-reduce.

        g = Σᵣ nᵣ gᵣ / Σᵣ nᵣ        nᵣ: tasks of rank r that were not skipped

    Gradient, losses, metrics and skipped tasks travel in one buffer, and `meanwhile()` runs while they do. The result
    and the Info are those of the whole meta-batch, with the same bits on every rank. `meta_batch` is its size where
    each rank is given its part; None where each is given all, and takes its part here.
    """

    def on_ranks(learner: Learner, stage: Stage) -> GradFn:
        grads_of = gradient(learner, stage)

        def grads(meta: Tree, tasks: Task) -> tuple[Tree, Info]:
            total = meta_batch or len(tree_leaves(tasks)[0])
            mine = ranks.part(total)
            if meta_batch is None:
                tasks = tree_map(lambda leaf: leaf[mine.start : mine.stop].clone(), tasks)
            own, info = grads_of(meta, tasks)
            leaves, structure = tree_flatten(own)
            told = _told(info)
            good = (~told["skipped"].bool()).sum()
            weighed = [torch.where(good > 0, leaf * good, torch.zeros_like(leaf)) for leaf in leaves]
            slots = torch.zeros(len(told), total, dtype=info.losses.dtype, device=info.losses.device)
            slots[:, mine.start : mine.stop] = torch.stack([values.to(slots.dtype) for values in told.values()])
            parts = [*weighed, slots]
            dtype = parts[0].dtype
            for part in parts:
                dtype = torch.promote_types(dtype, part.dtype)
            buffer = torch.cat([part.reshape(-1).to(dtype) for part in parts])
            work = dist.all_reduce(buffer, async_op=True)
            meanwhile()
            work.wait()
            pieces = buffer.split([part.numel() for part in parts])
            *sums, slots = [p.view(part.shape).to(part.dtype) for p, part in zip(pieces, parts, strict=True)]
            every = dict(zip(told, slots, strict=True))
            skipped = every.pop("skipped") > 0
            count = (~skipped).sum()
            every = {name: torch.where(skipped, values.sum() / count, values) for name, values in every.items()}
            losses = every.pop("losses")
            found = Info(losses.mean(), losses, every, skipped if isinstance(info.skipped, Tensor) else ())
            return tree_unflatten([each / count for each in sums], structure), found

        return grads

    return on_ranks


def _told(info: Info) -> dict[str, Tensor]:
    """What the ranks tell each other of each task, 0 where it was skipped."""
    values = {"losses": info.losses, **info.metrics}
    if not isinstance(info.skipped, Tensor):
        return {"skipped": torch.zeros_like(info.losses), **values}
    return {"skipped": info.skipped} | {name: torch.where(info.skipped, 0.0, v) for name, v in values.items()}
