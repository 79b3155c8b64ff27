"""Peak memory of one meta-gradient by meta-gradient and number of inner steps, a fresh process each.

Conv4-64 with max pooling, 28x28, 8 tasks, 5-way 1-shot with 15 query images per class, eager, float32. The figure is
the peak resident size after two steps less the resident size before the first.

python benchmarks/memory.py [--steps 2 20] [--gradients adjoint unrolled first_order]
"""

import argparse
import json
import resource
import subprocess
import sys

import psutil
from _report import write

import fmeta
from fmeta.core import fold, randint, uniform

KEY = fmeta.key(0)


def measure(gradient, steps):
    model = fmeta.models.conv4(5, form="pool")
    learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.4), steps=steps)
    meta, grads = learner.init(KEY), fmeta.meta_grad(learner, getattr(fmeta, gradient)())

    def examples(number, count):
        x = uniform(fold(KEY, number), (8, count, 1, 28, 28))
        return fmeta.Examples(x, randint(fold(KEY, number + 10), 5, (8, count)))

    tasks = fmeta.Task(examples(1, 5), examples(2, 75))
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        grads(meta, tasks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return max(0, peak - before)


def fresh(gradient, steps):
    command = [sys.executable, __file__, "--one", gradient, str(steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--gradients", nargs="+", default=["adjoint", "unrolled", "first_order"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    table = {}
    for gradient in options.gradients:
        row = {steps: fresh(gradient, steps) for steps in options.steps}
        table[gradient] = row | {"last over first": row[options.steps[-1]] / row[options.steps[0]]}
        print(
            gradient,
            *(f"{s} steps {b / 2**20:.0f} MiB" for s, b in row.items()),
            f"ratio {table[gradient]['last over first']:.2f}",
        )
    write("memory", {"protocol": __doc__.split("\n\n")[1], "bytes": table})


if __name__ == "__main__":
    main()
