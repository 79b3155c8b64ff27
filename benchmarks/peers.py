"""fmeta against its peers on the same second-order meta-gradients: time, memory, time to the first step.

autograd loop: clone and adapt with torch.autograd, one task after another, as learn2learn does. higher and TorchOpt:
from their released packages. JAX: jit(grad(vmap)). fmeta: compiled (unrolled as one graph; Conv4 by the adjoint in
stages) and eager. First all are shown to compute the same meta-gradient in float64, to 1e-8 of its largest entry; then
float32 is timed, the peers in turn within one process held to one core (sinusoid) or two, after a warm-up. Memory and
the time to the first step are of fresh processes: cold without any compiler cache, warm with that of the run before.

pip install '.[bench]' first.   python benchmarks/peers.py [--works sinusoid-1 sinusoid-5 conv4 omniglot] [--repeats 9]

--peers ...   some of them
--no-fresh    leave out memory and the time to the first step
--tiny        small sizes, to see that all of it runs
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from _report import fresh, interleaved, peak_bytes, write
from _work import PEERS, TINY, WORKS, fmeta_compiled
from rich.console import Console
from rich.table import Table

from fmeta.operators import _lowerings

LIMIT = 1e-8


def hold(work):
    """This process to the cores that the work is timed on: JAX takes all that it sees."""
    torch.set_num_threads(work.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work.threads])


def largest_difference(a, b):
    """Of all entries, over the largest entry of `b`."""
    a = {n: v if isinstance(v, torch.Tensor) else torch.as_tensor(np.array(v)) for n, v in a.items()}
    scale = max(float(v.abs().max()) for v in b.values())
    return max(float((a[n] - b[n]).abs().max()) for n in b) / scale


def agreement(work, peers):
    """Float64: how far each peer is from the autograd loop. Raises where one computes something else."""
    meta, tasks = work.meta(torch.float64), work.data(torch.float64, tasks=2)
    expected = PEERS["autograd loop"](work, meta, tasks)()
    expected = {n: g.clone() for n, g in expected.items()}
    far = {}
    for name in peers:
        # the graphs are the same with any backend, and inductor would compile float64 for minutes
        options = {"backend": "aot_eager"} if name == "fmeta" else {}
        far[name] = largest_difference(PEERS[name](work, meta, tasks, **options)(), expected)
        if not far[name] < LIMIT:
            raise SystemExit(
                f"{work.name}: {name} is {far[name]:.1e} from the autograd loop; they differ in their work"
            )
    return far


def of_convolutions(run):
    """The share of `run` that passes within convolutions."""
    taken, real = [0.0], dict(_lowerings.LOWERINGS)

    def timed(lowering):
        def call(*args):
            start = time.perf_counter()
            result = lowering(*args)
            taken[0] += time.perf_counter() - start
            return result

        return call

    run()
    _lowerings.LOWERINGS.update({name: timed(f) for name, f in real.items()})
    start = time.perf_counter()
    run()
    total = time.perf_counter() - start
    _lowerings.LOWERINGS.update(real)
    return (
        {"seconds": total, "convolutions": taken[0], "step over convolutions": total / taken[0]} if taken[0] else None
    )


def first_step(work, peer):
    """In a process of its own: seconds from weights and tasks to the first result."""
    meta, tasks = work.meta(), work.data()
    start = time.perf_counter()
    PEERS[peer](work, meta, tasks)()
    return time.perf_counter() - start


def memory(work, peer):
    """In a process of its own: the peak of two results after the first."""
    run = PEERS[peer](work, work.meta(), work.data())
    return peak_bytes(run, run)


def fresh_figures(key, peer, tiny):
    """Cold, then warm: one cache folder for both, and for the process whose memory is measured."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "FMETA_CACHE": f"{folder}/fmeta"}
        caches["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        for name, what in (("cold seconds", "first"), ("warm seconds", "first"), ("peak bytes", "memory")):
            arguments = ["--one", key, peer, what, *["--tiny"] * tiny]
            value, problem = fresh(__file__, *arguments, timed=what == "first", **caches)
            if problem:
                return {**found, "not measured": problem}
            found[name] = value
    return found


def lower_precision(work, repeats):
    """Conv4 in bfloat16 against its own float32, or why not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work.learner(precision="bfloat16")
    if caught:
        return {"not measured": str(caught[0].message)}
    meta, tasks = work.meta(), work.data()
    runs = {p: fmeta_compiled(work, meta, tasks, precision=p) for p in ("float32", "bfloat16")}
    times = interleaved(runs, repeats, 1)
    return {**times, "speed-up": times["float32"]["median"] / times["bfloat16"]["median"]}


def one_work(key, options):
    work = (TINY if options.tiny else WORKS)[key]
    hold(work)
    print(f"{work.name}: float64 …", flush=True)
    far = agreement(work, options.peers)
    meta, tasks = work.meta(), work.data()
    runs = {name: PEERS[name](work, meta, tasks) for name in options.peers}
    calls = 20 if not work.images and not options.tiny else 1
    print(f"{work.name}: float32 …", flush=True)
    times = interleaved(runs, options.repeats, calls)
    reference = times["fmeta"]["median"]
    rows = {}
    for name, t in times.items():
        facts = {"seconds": t, "tasks per second": work.tasks / t["median"], "times fmeta": t["median"] / reference}
        rows[name] = {"float64 difference": far[name], **facts}
    extra = {}
    if work.images:
        extra["convolutions"] = of_convolutions(runs["fmeta"])
    if key == "conv4":
        extra["bfloat16"] = lower_precision(work, options.repeats)
    if not options.no_fresh:
        for name in rows:
            print(f"{work.name}: {name}, fresh processes …", flush=True)
            rows[name] |= fresh_figures(key, name, options.tiny)
    protocol = {f: getattr(work, f) for f in ("tasks", "support", "query", "steps", "scope", "threads")}
    return {"work": work.name, "protocol": protocol | {"repeats": options.repeats}, "peers": rows, **extra}


def show(result):
    table = Table(title=result["work"])
    heads = ("peer", "ms", "quartiles", "tasks/s", "times fmeta", "float64", "peak MiB", "cold s", "warm s")
    for head in heads:
        table.add_column(head, justify="left" if head == "peer" else "right")
    for name, row in result["peers"].items():
        t = row["seconds"]
        figures = [f"{row['peak bytes'] / 2**20:.0f}" if "peak bytes" in row else "–"]
        figures += [f"{row[n]:.1f}" if n in row else "–" for n in ("cold seconds", "warm seconds")]
        table.add_row(
            name, f"{1e3 * t['median']:.2f}", "–".join(f"{1e3 * q:.2f}" for q in t["quartiles"]),
            f"{row['tasks per second']:.0f}", f"{row['times fmeta']:.2f}", f"{row['float64 difference']:.0e}", *figures,
        )  # fmt: skip
    Console(width=130).print(table)
    for name in ("convolutions", "bfloat16"):
        if result.get(name):
            print(f"{name}: {result[name]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-fresh", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        key, peer, what = options.one
        work = (TINY if options.tiny else WORKS)[key]
        hold(work)
        print(json.dumps({"first": first_step, "memory": memory}[what](work, peer)))
        return
    if len(options.works) > 1:  # each in a process of its own: a thread pool keeps the size it began with
        for key in options.works:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--works", key], check=True)
        return
    options.peers = list(dict.fromkeys(["fmeta", *options.peers]))
    (key,) = options.works
    result = one_work(key, options)
    show(result)
    if not options.tiny:
        write(f"peers-{key}", result)


if __name__ == "__main__":
    main()
