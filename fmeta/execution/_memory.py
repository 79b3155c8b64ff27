"""What work would need of memory, found without computing it; what does not fit is refused before it is begun."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeta.core import Learner, MetaGradient, Stage, Staged, Task, Tree, eager
from fmeta.core._torch import DispatchMode, fake_mode, silent_fakes
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution._interrupt import interruptible
from fmeta.gradients import adjoint, first_order, unrolled

Build = Callable[[MetaGradient, Stage], Staged]  # the training step with a meta-gradient, as `Trainer.build`
# work takes less than so many times the bytes of its tasks and of meta for each of them; where that is a small share
# of what is free, nothing is estimated
_TIMES, _SHARE = 100, 0.05
_COMPILED = 4.0  # what eager code may need for compiled code not to be given up


class OutOfMemoryError(RuntimeError):
    """Something does not fit into memory. The message says what would: for a meta-step, which meta-gradients."""


def check_room(call: str, what: str, cure: str, device: torch.device, function: Callable[..., Any], *args: Any) -> None:
    """Raises OutOfMemoryError if `function(*args)` would need more memory than is free.

    The function is run on tensors without data. One that looks at values cannot be estimated, and passes.
    """
    free = free_memory(device)
    needed = None if free is None else _estimated(function, *args)
    if free is not None and needed is not None and needed > free:
        raise OutOfMemoryError(
            f"{call}: {what} would need about {_gib(needed)}, and about {_gib(free)} are free; {cure}"
        )


def check_work(call: str, what: str, cure: str, function: Callable[[Tree, Task], Any], meta: Tree, tasks: Task) -> None:
    """`check_room` for work on tasks, at no cost where these are small."""
    device = tree_leaves(tasks)[0].device
    if _heavy(meta, tasks, free_memory(device)):
        check_room(call, what, cure, device, function, meta, tasks)


@contextlib.contextmanager
def running_out(call: str, what: str, cure: str) -> Iterator[None]:
    """Raises OutOfMemoryError where memory ended within, for what could not be estimated."""
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        if not _ran_out(error):
            raise
        raise OutOfMemoryError(f"{call}: out of memory for {what}; {cure}") from error


def peak_memory(function: Callable[..., Any], *args: Tree) -> int:
    """Bytes of all tensors alive at the worst moment of `function(*args)`, its arguments not counted, run eager.

    The function runs on tensors without data, so this takes no memory and little time, whatever the sizes. An allocator
    needs somewhat more, because it rounds up and its memory falls into pieces; compiled code as a rule needs less.
    """
    mode = fake_mode()
    fake = tree_map(lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, args)
    with mode, _Living(tree_leaves(fake)) as living:
        function(*fake)
    return living.peak


class _Living(DispatchMode):
    """Adds up the storages that operations make, for as long as they are alive."""

    def __init__(self, known: list[Any]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {id(leaf.untyped_storage()) for leaf in known if isinstance(leaf, Tensor)}
        self.known = known  # alive, so that no other storage takes its number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()
        if number in self.seen:
            return
        self.seen.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self.seen.discard(number)
        self.now -= size


class MemoryAdvice:
    """Raises an `OutOfMemoryError` that says what would fit, before the first step of each meta-gradient, and where
    memory ended in one.

    What is free is looked at before any step: after one failed, its tensors live on as long as the error does.
    """

    def __init__(
        self, name: str, learner: Learner | None, build: Build | None, device: torch.device, *, compiled: bool = False
    ) -> None:
        self.name, self.learner, self.build, self.free = name, learner, build, free_memory(device)
        self.device, self.compiled = device, compiled
        self._seen: list[MetaGradient] = []

    @contextlib.contextmanager
    def __call__(self, gradient: MetaGradient | None, state: Tree, tasks: Task) -> Iterator[None]:
        if gradient is not None and not any(gradient is seen for seen in self._seen):
            self._seen.append(gradient)
            self._look_ahead(gradient, state, tasks)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _ran_out(error):
                raise
            leaf = tree_leaves(tasks)[0]
            news = f"fit({self.name}): out of memory on {leaf.device} with {len(leaf)} tasks in a meta-step"
            if self.build is not None and gradient is not None:
                with contextlib.suppress(Exception), interruptible():  # what looks at values cannot be estimated
                    news += self._advice(self.build, gradient, state, tasks)
            raise OutOfMemoryError(news) from error

    def _look_ahead(self, gradient: MetaGradient, state: Tree, tasks: Task) -> None:
        free = free_memory(self.device)
        if free is None or self.build is None or not _heavy(state, tasks, free):
            return
        needed = _estimated(self.build(gradient, eager), state, tasks)
        if needed is None or needed <= free * (_COMPILED if self.compiled else 1.0):
            return
        self.free = free
        news = f"fit({self.name}): no room on {self.device} for {len(tree_leaves(tasks)[0])} tasks in a meta-step"
        with contextlib.suppress(Exception), interruptible():
            news += self._advice(self.build, gradient, state, tasks)
        raise OutOfMemoryError(news)

    def _advice(self, build: Build, gradient: MetaGradient, state: Tree, tasks: Task) -> str:
        count, free = len(tree_leaves(tasks)[0]), self.free
        rows = [f"this one needs {_gib(peak_memory(build(gradient, eager), state, tasks))}"]
        differentiates = self.learner is not None and self.learner.inner is not None
        ways = {"unrolled()": unrolled(), "adjoint()": adjoint(), "first_order()": first_order()}
        for name, way in ways.items() if differentiates else []:
            fixed, each = _linear(build(way, eager), state, tasks)
            row = f"{name} {_gib(fixed + each * count)}"
            if free is not None:
                fits = min(count, int((free - fixed) / max(each, 1)))
                chunk = (
                    "all at once" if fits >= count else f"chunked({name}, {fits})" if fits >= 1 else "not even one task"
                )
                row += f", fits: {chunk}"
            rows.append(row)
        known = "" if free is None else f"; about {_gib(free)} were free"
        return (
            f"{known}. Estimates, run eager: {'; '.join(rows)}. Take one that fits; fmeta.chunked(gradient, size) "
            "takes so many tasks at a time and computes the same, and a smaller meta-batch takes less"
        )


_TOO_LARGE = "can't allocate memory", "Storage size calculation overflowed", "numel: integer multiplication overflow"


def _ran_out(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OverflowError):
        return True
    return any(said in str(error) for said in _TOO_LARGE)


def _estimated(function: Callable[..., Any], *args: Any) -> int | None:
    """`peak_memory`, or None for what looks at values."""
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"), interruptible(), silent_fakes():
        return peak_memory(function, *args)
    return None


def _heavy(meta: Tree, tasks: Task, free: int | None) -> bool:
    """Whether work on these tasks could take more than a small share of what is free."""
    count = len(tree_leaves(tasks)[0])
    return free is not None and _TIMES * (count * _bytes(meta) + _bytes(tasks)) > _SHARE * free


def _bytes(values: Tree) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def _linear(step: Callable[..., Any], state: Tree, tasks: Task) -> tuple[float, float]:
    """Bytes whatever the number of tasks, and for each task, by two tasks and four."""
    two, four = (
        peak_memory(step, state, tree_map(lambda leaf, n=n: leaf[:1].expand(n, *leaf.shape[1:]), tasks)) for n in (2, 4)
    )
    return max(0, 2 * two - four), max(0, (four - two) / 2)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had: of the device, or of main memory within the limits of this process and its group.

    None where that cannot be told.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None
    group = group_memory(Path("/sys/fs/cgroup"))
    free = free if group is None else min(free, group)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            free = min(free, limit - used)
    return max(0, free)


def group_memory(group: Path) -> int | None:
    """Bytes that a group of processes may still take: what is left, and its cache of files. None without a limit."""
    try:
        names = "memory.max", "memory.current"  # the limit may be "max"
        limit, used = (int((group / name).read_text(encoding="utf-8")) for name in names)
    except (OSError, ValueError):
        return None
    cache = 0
    with contextlib.suppress(OSError, ValueError, KeyError):
        parts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        cache = int(parts["inactive_file"]) + int(parts["active_file"])
    return limit - used + cache


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
