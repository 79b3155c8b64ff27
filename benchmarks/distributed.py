"""One and two processes at the same work: weak and strong scaling, and a model of many.

python benchmarks/distributed.py [--steps 60]     writes results/distributed.json

Each process has one thread; one process is timed beside an idle core, two have a core each (gloo over loopback).
Strong: the same meta-batch. Weak: the same tasks for each process. The runs are timed by turns, with a warm-up, and the
median of their steps is kept.

The model: a step takes n/N tasks' share of the computation, and an all-reduce of b bytes,
    t(N) = tasks/N · c  +  2 (N − 1)/N · b / B  +  2 (N − 1) · L
(a ring; Patarasuk & Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002) with c, the time of a task, measured; B,
the bandwidth of a link, and L, the time a message takes, as stated. It assumes equal processes, no fixed cost, nothing
overlapped, and sampling split like the rest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from _report import write

import fmeta
from fmeta.core import fold, key
from fmeta.models import conv4
from fmeta.tasks import class_data, episodes
from fmeta.training import Ranks
from fmeta.training._draw import Batches
from fmeta.training._steps import Steps

TASKS = 8
LINKS = {"10 Gbit/s Ethernet": (1.25e9, 5e-5), "InfiniBand HDR": (2.5e10, 5e-6), "NVLink 4": (4.5e11, 5e-6)}


def work():
    """Finn's Omniglot net, 5-way 1-shot, one inner step, second order; pictures are noise."""
    learner = fmeta.maml(conv4(5, width=64), fmeta.cross_entropy, optimizer=fmeta.sgd(0.4), steps=1)
    pictures = class_data({str(i): torch.rand(20, 1, 28, 28) for i in range(40)})
    return learner, episodes(pictures, ways=5, shots=1, query=1)


def measure(tasks, steps):
    """Seconds of each step of this process, and those of the all-reduce alone."""
    torch.set_num_threads(1)
    learner, sample = work()
    ranks, run = Ranks.present(), fmeta.execution.plan("none")
    batches = Batches(sample, fold(key(0), 1), tasks, 0, ranks.part(tasks))
    made = Steps(learner, fmeta.adam(1e-3), {0: None}, run, False, ranks, tasks, batches.ahead)
    state = fmeta.trainer(learner, fmeta.adam(1e-3)).init(key(0))
    times = []
    for at in range(steps + 3):
        begun = time.perf_counter()
        batch = batches.draw()
        state, _ = made.at(at, state.meta, batch)(state, batch)
        times.append(time.perf_counter() - begun)
    size = sum(leaf.numel() for leaf in torch.utils._pytree.tree_leaves(state.meta))
    return times[3:], 4 * size, _all_reduces(size)


def _all_reduces(size):
    if not dist.is_initialized():
        return []
    times, buffer = [], torch.zeros(size)
    for _ in range(20):
        begun = time.perf_counter()
        dist.all_reduce(buffer)
        times.append(time.perf_counter() - begun)
    return times


def timed(count, tasks, steps):
    """Rank 0's figures of a run of `count` processes."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable]
        if count > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        words = [__file__, "--worker", str(Path(folder, "out.json")), "--tasks", str(tasks), "--steps", str(steps)]
        subprocess.run([*launch, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return json.loads(Path(folder, "out.json").read_text())


def scaling(steps, rounds=3):
    cells = {"one": (1, TASKS), "strong": (2, TASKS), "weak": (2, 2 * TASKS)}
    found = {name: [] for name in cells}
    for _ in range(rounds):
        for name, cell in cells.items():
            found[name].append(timed(*cell, steps))
    medians = {name: statistics.median(t for run in runs for t in run["steps"]) for name, runs in found.items()}
    reduce = statistics.median(t for run in found["strong"] for t in run["all-reduce"])
    return medians, reduce, found["one"][0]["bytes"]


def modelled(task, size):
    rows = []
    for link, (bandwidth, latency) in LINKS.items():
        for count in (2, 8, 64, 512):
            compute = TASKS * task
            reduce = 2 * (count - 1) / count * size / bandwidth + 2 * (count - 1) * latency
            rows.append({"link": link, "processes": count, "weak efficiency": compute / (compute + reduce)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        if "RANK" in os.environ:
            dist.init_process_group()
        steps, size, reduces = measure(options.tasks, options.steps)
        if Ranks.present().rank == 0:
            options.worker.write_text(json.dumps({"steps": steps, "bytes": size, "all-reduce": reduces}))
        return
    medians, reduce, size = scaling(options.steps)
    result = {
        "work": f"Omniglot net of 64 channels, 5-way 1-shot, 1 inner step, second order, eager; {TASKS} tasks",
        "seconds of a step": medians,
        "bytes of the meta-gradient": size,
        "seconds of an all-reduce": reduce,
        "strong speed-up on 2": medians["one"] / medians["strong"],
        "weak efficiency on 2": medians["one"] / medians["weak"],
        "model": modelled(medians["one"] / TASKS, size),
        "assumptions": "ring all-reduce, nothing overlapped, equal processes; bandwidth in bytes/s and seconds per "
        f"message: {LINKS}",
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    write("distributed", result)


if __name__ == "__main__":
    main()
