"""Time and memory of a compiled meta-gradient against theory, over tasks, inner steps and width.

tasks: sinusoid, 5 inner steps, unrolled as one graph, 25 tasks being the paper's. steps and width: Finn's Omniglot net
(stride 2), 8 tasks, 5 support and 5 query images, adjoint in stages. Theory is the arithmetic that the meta-gradient
owes, at the rate of a large matrix product measured in the same run, and for memory the trajectory of parameters, which
is all that grows with the inner steps. Memory is that of an eager step in a fresh process. cold: seconds that the first
step of Conv4 (max-pool, 8 tasks) takes beyond the second, without any compiler cache, over the inner steps.

python benchmarks/scaling.py [--repeats 7] [--axes tasks steps width cold] [--tiny]
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from _report import fresh, interleaved, peak_bytes, write
from _work import WORKS, Conv4, arithmetic, matmul_rate
from rich.console import Console
from rich.table import Table

import fmeta

NET = WORKS["omniglot"]._replace(tasks=8, gradient=fmeta.adjoint(), scope="step")
AXES = {
    "tasks": [1, 2, 8, 32, 128, 512],
    "steps": [1, 2, 5, 10, 20, 50],
    "width": [8, 16, 32, 64],
    "cold": [5, 50],
}
TINY = {"tasks": [1, 3], "steps": [1, 2], "width": [4, 8], "cold": [1, 2]}


def widened(width):
    return NET._replace(
        model=lambda: fmeta.models.conv4(5, form="stride", width=width), module=lambda: Conv4("stride", width)
    )


def point(axis, value):
    """The work at one place of an axis, and the name of its meta-gradient."""
    if axis == "tasks":
        return WORKS["sinusoid-5"]._replace(tasks=value), "unrolled"
    return (NET._replace(steps=value) if axis == "steps" else widened(value)), "adjoint"


def run_of(work, compiled=True):
    grads = fmeta.meta_grad(work.learner(), work.gradient)
    meta, tasks = work.meta(), work.data()
    grads = fmeta.compile(grads, scope=work.scope) if compiled else grads
    return lambda: grads(meta, tasks)


def memory(steps):
    """Peak bytes of an eager adjoint step; in a process of its own."""
    return peak_bytes(run_of(NET._replace(steps=steps), False), run_of(NET._replace(steps=1), False))


def compile_seconds(steps):
    """In a process of its own, with empty caches."""
    run, taken = run_of(WORKS["conv4"]._replace(steps=steps)), []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[0] - taken[1]


def cold(options):
    found = {}
    for steps in (TINY if options.tiny else AXES)["cold"]:
        with tempfile.TemporaryDirectory() as folder:
            caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "FMETA_CACHE": f"{folder}/fmeta"}
            found[steps], problem = fresh(__file__, "--cold", steps, timed=True, **caches)
        print(f"cold, {steps} steps: {problem or f'{found[steps]:.1f} s'}", flush=True)
    return found


def one_axis(axis, options):
    values = (TINY if options.tiny else AXES)[axis]
    torch.set_num_threads(point(axis, values[0])[0].threads)
    rate = matmul_rate(size=256 if options.tiny else None)
    rows = []
    for value in values:
        work, gradient = point(axis, value)
        run = run_of(work)
        calls = 20 if axis == "tasks" else 1
        seconds = interleaved({"step": run}, options.repeats, calls)["step"]
        flops = work.tasks * arithmetic(work, gradient)
        row = {
            axis: value,
            "seconds": seconds,
            "FLOPs owed": flops,
            "share of the matmul rate": flops / seconds["median"] / rate,
        }
        if axis == "steps" and not options.tiny:
            row["bytes"], row["not measured"] = fresh(__file__, "--memory", value)
        rows.append(row)
        print(f"{axis} {value}: {1e3 * seconds['median']:.2f} ms", flush=True)
    return {"matmul FLOP/s": rate, "threads": torch.get_num_threads(), "rows": rows}


def slopes(rows):
    """Bytes for each inner step: measured, and of the trajectory of parameters alone."""
    known = [(row["steps"], row["bytes"]) for row in rows if row.get("bytes")]
    parameters = sum(p.numel() * p.element_size() for p in NET.meta().values())
    measured = statistics.linear_regression(*zip(*known, strict=True)).slope if len(known) > 1 else None
    return {"measured": measured, "trajectory": NET.tasks * parameters}


def show(axis, result):
    table = Table(title=f"{axis} (matmul {result['matmul FLOP/s'] / 1e9:.0f} GFLOP/s)")
    for head in (axis, "ms", f"ms per {axis}", "GFLOP/s", "of the matmul rate", "peak MiB"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        ms = 1e3 * row["seconds"]["median"]
        table.add_row(
            str(row[axis]), f"{ms:.2f}", f"{ms / row[axis]:.3f}", f"{row['FLOPs owed'] / ms / 1e6:.1f}",
            f"{row['share of the matmul rate']:.2f}", f"{row['bytes'] / 2**20:.0f}" if row.get("bytes") else "–",
        )  # fmt: skip
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cold", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory or options.cold:
        torch.set_num_threads(NET.threads)
        print(json.dumps(memory(options.memory) if options.memory else compile_seconds(options.cold)))
        return
    result = {}
    for axis in options.axes:
        if axis == "cold":
            result["cold seconds by inner steps"] = cold(options)
            continue
        result[axis] = one_axis(axis, options)
        show(axis, result[axis])
    if "steps" in result:
        result["bytes per inner step"] = slopes(result["steps"]["rows"])
        print("bytes per inner step:", result["bytes per inner step"])
    if not options.tiny:
        write("scaling", {"protocol": __doc__.split("\n\n")[1], **result})


if __name__ == "__main__":
    main()
