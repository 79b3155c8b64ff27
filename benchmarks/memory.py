"""Peak memory of one meta-gradient by meta-gradient and number of inner steps, a fresh process each.

Conv4-64 with max pooling, 28x28, 8 tasks, 5-way 1-shot with 15 query images per class, eager, float32. The figure is
the peak resident size during two steps less the resident size before them, after a small network has loaded the code,
with an allocator that hands freed memory back at once.

The slope is that of a least-squares line over the inner steps. Beside it stands what the trajectory of parameters
alone owes: tasks x parameters x 4 bytes per step, and as much again where the inner gradient is kept. A case that fails
or that would not fit is null in the result, with the reason under "not measured".

python benchmarks/memory.py [--steps 1 2 5 10 20 50] [--gradients adjoint unrolled first_order truncated]

--repeats N   the median of N fresh processes for each case (1)
--max-gib G   leave out cases that the two before them, continued in a line, put above G (the memory that is free)
--threads N   processor threads (1)
"""

import argparse
import json
import statistics

import psutil
import torch
from _report import fresh, peak_bytes, write
from rich.console import Console
from rich.table import Table

import fmeta
from fmeta.core import fold, randint, uniform

KEY = fmeta.key(0)
TASKS, MIB, GIB = 8, 2**20, 2**30
GRADIENTS = {
    "adjoint": fmeta.adjoint(),
    "unrolled": fmeta.unrolled(),
    "first_order": fmeta.first_order(),
    "truncated": fmeta.truncated(1),
}
COPIES = {"adjoint": 1, "unrolled": 1, "first_order": 2, "truncated": 2}  # of the parameters, kept for each step


def conv4(width=64):
    return fmeta.models.conv4(5, form="pool", width=width)


def measure(gradient, steps):
    def examples(number, count):
        x = uniform(fold(KEY, number), (TASKS, count, 1, 28, 28))
        return fmeta.Examples(x, randint(fold(KEY, number + 10), 5, (TASKS, count)))

    def meta_gradient(model, steps, tasks):
        learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.4), steps=steps)
        meta, grads = learner.init(KEY), fmeta.meta_grad(learner, GRADIENTS[gradient])
        return lambda: grads(meta, tasks)

    full, small = (fmeta.Task(examples(1, 5), examples(2, count)) for count in (75, 5))
    return peak_bytes(meta_gradient(conv4(), steps, full), meta_gradient(conv4(2), 2, small))


def expected(row, steps):
    """Bytes at `steps` on the line through the last two cases measured, or None."""
    known = [(s, b) for s, b in row.items() if b is not None][-2:]
    if len(known) < 2:
        return None
    (s, b), (t, c) = known
    return c + (c - b) / (t - s) * (steps - t)


def case(gradient, steps, row, options):
    """(bytes, None), or (None, why there are none)."""
    limit = psutil.virtual_memory().available if options.max_gib is None else options.max_gib * GIB
    estimate = expected(row, steps)
    if estimate is not None and estimate > limit:
        return None, f"skipped: about {estimate / GIB:.1f} GiB expected, above {limit / GIB:.1f} GiB"
    found = []
    for _ in range(options.repeats):
        value, problem = fresh(__file__, "--threads", options.threads, "--one", gradient, steps)
        if problem:
            return None, problem
        found.append(value)
    return statistics.median(found), None


def slope(row):
    known = {s: b / MIB for s, b in row.items() if b is not None}
    return statistics.linear_regression(list(known), list(known.values())).slope if len(known) > 1 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=list(GRADIENTS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--max-gib", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    table, missing, slopes = {}, {}, {}
    trajectory = TASKS * sum(p.numel() * p.element_size() for p in conv4().init(KEY).values()) / MIB
    for gradient in options.gradients:
        row, missing[gradient] = {}, {}
        for steps in sorted(set(options.steps)):
            row[steps], problem = case(gradient, steps, row, options)
            if problem:
                missing[gradient][steps] = problem
            print(f"{gradient}, {steps} steps: {problem or f'{row[steps] / MIB:.0f} MiB'}", flush=True)
        table[gradient] = row
        slopes[gradient] = {"measured": slope(row), "trajectory": COPIES[gradient] * trajectory}
    show(table, slopes)
    result = {"bytes": table, "not measured": missing, "MiB per inner step": slopes}
    write("memory", {"protocol": __doc__.split("\n\n")[1], "repeats": options.repeats, **result})


def show(table, slopes):
    shown = Table(title="peak memory, MiB, by inner steps")
    for column in ("meta-gradient", *map(str, next(iter(table.values()))), "MiB per step", "trajectory alone"):
        shown.add_column(column, justify="left" if column == "meta-gradient" else "right")
    for gradient, row in table.items():
        measured, owed = slopes[gradient].values()
        cells = ["–" if b is None else f"{b / MIB:.0f}" for b in row.values()]
        shown.add_row(gradient, *cells, "–" if measured is None else f"{measured:.1f}", f"{owed:.1f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
