"""One and two processes at the same work: weak and strong scaling, and a model of many.

python benchmarks/distributed.py [--steps 60]     writes results/distributed.json

Each process has one thread; one process is timed beside an idle core, two have a core each (gloo over loopback).
Strong: the same meta-batch. Weak: the same tasks for each process. The runs are timed by turns, with a warm-up, and the
median of their steps is kept. Before that, five steps in float64 show that two processes end where one does.

The model: a step takes n/N tasks' share of the computation, and an all-reduce of b bytes,
    t(N) = tasks/N · c  +  2 (N − 1)/N · b / B  +  2 (N − 1) · L
(a ring; Patarasuk & Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002) with c, the time of a task, measured; B,
the bandwidth of a link, and L, the time a message takes, as stated. It assumes equal processes, no fixed cost, nothing
overlapped, and sampling split like the rest.
"""

import argparse
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
from fmeta.core import fold, key, uniform
from fmeta.execution._compile import plan
from fmeta.models import conv4
from fmeta.tasks import class_data, episodes
from fmeta.training._batches import Batches
from fmeta.training._ranks import Ranks
from fmeta.training._steps import Steps

TASKS = 8
LINKS = {"10 Gbit/s Ethernet": (1.25e9, 5e-5), "InfiniBand HDR": (2.5e10, 5e-6), "NVLink 4": (4.5e11, 5e-6)}


def work(dtype):
    """Finn's Omniglot net, 5-way 1-shot, one inner step, second order; pictures are noise."""
    learner = fmeta.maml(conv4(5, width=64, dtype=dtype), fmeta.cross_entropy, optimizer=fmeta.sgd(0.4), steps=1)
    pictures = class_data({str(i): uniform(key(i), (20, 1, 28, 28), dtype=dtype) for i in range(40)})
    return learner, episodes(pictures, ways=5, shots=1, query=1)


def measure(tasks, steps, dtype):
    """Seconds of each step of this process, those of the all-reduce alone, and the parameters it ends with."""
    torch.set_num_threads(1)
    learner, sample = work(dtype)
    ranks, run = Ranks.present(), plan("none")
    batches = Batches({0: sample}, fold(key(0), 1), tasks, 0, ranks.part(tasks))
    trainer = fmeta.trainer(learner, fmeta.adam(1e-3))
    made, state = Steps(trainer, run, ranks, tasks, batches), trainer.init(key(0))
    times = []
    for at in range(steps + 3):
        begun = time.perf_counter()
        batch = batches.draw()
        state, _ = made.at(at, state, batch)(state, batch)
        times.append(time.perf_counter() - begun)
    parameters = torch.cat([leaf.reshape(-1) for leaf in fmeta.tree.tree_leaves(state.meta)])
    return times[3:], _all_reduces(len(parameters)), parameters


def _all_reduces(size):
    if not dist.is_initialized():
        return []
    times, buffer = [], torch.zeros(size)
    for _ in range(20):
        begun = time.perf_counter()
        dist.all_reduce(buffer)
        times.append(time.perf_counter() - begun)
    return times


def timed(count, tasks, steps, dtype="float32"):
    """Rank 0's figures of a run of `count` processes."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable]
        if count > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        words = [__file__, "--worker", str(Path(folder, "out.pt")), "--tasks", str(tasks), "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *words, "--dtype", dtype], check=True, env=environment)
        return torch.load(Path(folder, "out.pt"))


def difference(steps=5):
    """Largest difference of two processes' parameters from one's, over the largest parameter, in float64."""
    one, two = (timed(count, TASKS, steps, "float64")["parameters"] for count in (1, 2))
    return float((one - two).abs().max() / one.abs().max())


def scaling(steps, rounds=3):
    cells = {"one": (1, TASKS), "strong": (2, TASKS), "weak": (2, 2 * TASKS)}
    found = {name: [] for name in cells}
    for _ in range(rounds):
        for name, cell in cells.items():
            found[name].append(timed(*cell, steps))
    medians = {name: statistics.median(t for run in runs for t in run["steps"]) for name, runs in found.items()}
    reduce = statistics.median(t for run in found["strong"] for t in run["all-reduce"])
    return medians, reduce, 4 * len(found["one"][0]["parameters"])


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
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        if "RANK" in os.environ:
            dist.init_process_group()
        times, reduces, parameters = measure(options.tasks, options.steps, getattr(torch, options.dtype))
        if Ranks.present().rank == 0:
            torch.save({"steps": times, "all-reduce": reduces, "parameters": parameters}, options.worker)
        return
    apart = difference()
    assert apart < 1e-10, apart
    medians, reduce, size = scaling(options.steps)
    result = {
        "work": f"Omniglot net of 64 channels, 5-way 1-shot, 1 inner step, second order, eager; {TASKS} tasks",
        "parameters of two from those of one, float64, relative": apart,
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
