"""Time of one sinusoid meta-step (25 tasks, K=10, MLP 1-40-40-1, Adam), eager and compiled in each scope, in one run.

python benchmarks/sinusoid.py [--steps 1] [--repeats 30]
"""

import argparse

from _report import interleaved, write

import fmeta
from fmeta.execution._compile import plan

SIZES = [1, 40, 40, 1]  # Finn et al., 2017


def step_functions(steps):
    model = fmeta.models.mlp(SIZES)
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=steps)
    tasks = fmeta.tasks.sinusoid()(fmeta.key(0), 25)
    cases = {
        "unrolled, eager": ("none", fmeta.unrolled()),
        "unrolled, whole": ("whole", fmeta.unrolled()),
        "adjoint, step": ("step", fmeta.adjoint()),
        "first order, eager": ("none", fmeta.first_order()),
        "first order, whole": ("whole", fmeta.first_order()),
    }
    functions = {}
    for name, (scope, gradient) in cases.items():
        run = plan(scope)
        trainer = fmeta.trainer(learner, fmeta.adam(1e-3), gradient, stage=run.stage)
        functions[name] = (lambda step, state: lambda: step(state, tasks))(
            run.whole(trainer.step), trainer.init(fmeta.key(0))
        )
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    times = interleaved(step_functions(options.steps), options.repeats, 50)
    fastest = times["unrolled, whole"]["median"]
    for name, t in times.items():
        t["ratio to unrolled, whole"] = t["median"] / fastest
        print(f"{name:20s} {1e3 * t['median']:8.3f} ms (min {1e3 * t['min']:.3f})  {t['median'] / fastest:6.2f}x")
    protocol = {"tasks": 25, "shots": 10, "query": 10, "inner steps": options.steps, "repeats": options.repeats}
    write("sinusoid", {"protocol": protocol, "seconds per meta-step": times})


if __name__ == "__main__":
    main()
