"""MAML++ against MAML: 20-way 1-shot Omniglot, equal iterations, several seeds.

Finn's characters, split and rotations, 1 query image per class; conv4 of the given width with stride 2 and batch
statistics; 5 inner steps in training and in test; meta-batch 4; Adam. MAML++ has LSLR, norms for each step, the
multi-step loss (equal weights for a tenth of the iterations, then multi_step(5, 1)) and a cosine outer schedule from
2e-3 to 0 over these iterations. MAML's outer rate is constant, as Finn's, at that schedule's mean of 1e-3; its inner
rate is `--lr`, where MAML++'s learned rates start too.

python benchmarks/maml_plus_plus.py --data-dir PATH [--width 16] [--iterations 1000] [--seeds 3] [--lr 0.4]

--algorithms NAME ...  "maml with cosine" and "maml_plus_plus without cosine" tell the schedule's share from the
                       rest; their results are in maml_plus_plus-schedules (--name)
"""

import argparse
import time

import torch
from _report import write

import fmeta
from fmeta.core import fold
from fmeta.execution._compile import plan as plan_of
from fmeta.tasks import episodes, omniglot

WAYS, STEPS, META_BATCH = 20, 5, 4
METRICS = {"accuracy": fmeta.accuracy}


def maml(model, lr, iterations):
    learner = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(lr), steps=STEPS, metrics=METRICS)
    return learner, {0: fmeta.adjoint()}


def maml_plus_plus(model, lr, iterations):
    learner = fmeta.maml_plus_plus(model, fmeta.cross_entropy, lr=lr, steps=STEPS, metrics=METRICS)
    equal, last = fmeta.adjoint(fmeta.multi_step(STEPS)), fmeta.adjoint(fmeta.multi_step(STEPS, 1.0))
    return learner, {0: equal, iterations // 10: last}


def constant(iterations):
    return fmeta.adam(1e-3)


def cosine(iterations):
    return fmeta.adam(fmeta.cosine_decay(2e-3, iterations))


ALGORITHMS = {
    "maml": (maml, constant),
    "maml_plus_plus": (maml_plus_plus, cosine),
    "maml with cosine": (maml, cosine),
    "maml_plus_plus without cosine": (maml_plus_plus, constant),
}


def samplers(data_dir, device):
    def sampler(split):
        data = omniglot(split, protocol="finn", data_dir=data_dir).to(device)
        return episodes(data, ways=WAYS, shots=1, query=1, rotate=True)

    return sampler("train"), sampler("test")


def runs(name, options):
    """One algorithm, all seeds: compiled once."""
    train, test = samplers(options.data_dir, options.device)
    model = fmeta.models.conv4(WAYS, width=options.width)
    algorithm, schedule = ALGORITHMS[name]
    (learner, phases), optimizer = algorithm(model, options.lr, options.iterations), schedule(options.iterations)
    plan = plan_of(options.scope)
    trainers = {at: fmeta.trainer(learner, optimizer, g, stage=plan.stage) for at, g in phases.items()}
    steps = {at: plan.whole(t.step) for at, t in trainers.items()}
    tasks = test(fold(fmeta.key(999, options.device), 1), options.test_tasks)
    for seed in range(options.seeds):
        start, key = time.perf_counter(), fmeta.key(seed, options.device)
        state, step, losses = trainers[0].init(fold(key, 0)), steps[0], []
        for i in range(options.iterations):
            step = steps.get(i, step)
            state, info = step(state, train(fold(key, 1 + i), META_BATCH))
            losses.append(info.loss)
            if (i + 1) % 100 == 0:
                mean = torch.stack(losses[-100:]).mean().item()
                print(
                    f"{name} seed {seed} step {i + 1} loss {mean:.3f} {time.perf_counter() - start:.0f} s", flush=True
                )
        if int(state.bad) >= 0:
            raise SystemExit(f"{name}, seed {seed}: not finite at step {int(state.bad)}")
        seconds = time.perf_counter() - start
        result = fmeta.evaluate(learner, state.meta, tasks, steps=range(STEPS + 1), chunk=20).summary()
        yield {"seed": seed, "seconds": seconds, "evaluation": result}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.4)
    parser.add_argument("--test-tasks", type=int, default=600)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["maml", "maml_plus_plus"])
    parser.add_argument("--scope", default="step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", default="maml_plus_plus", help="of the result file")
    options = parser.parse_args()
    found = {name: list(runs(name, options)) for name in options.algorithms}
    summary = {}
    for name, each in found.items():
        final = torch.tensor([r["evaluation"]["accuracy"]["mean"][-1] for r in each], dtype=torch.float64)
        spread = final.std().item() if len(each) > 1 else None
        summary[name] = {"accuracy": final.mean().item(), "sd over seeds": spread}
        print(f"{name:15s} {100 * final.mean():.2f}% over {len(each)} seeds: {[f'{100 * a:.2f}' for a in final]}")
    facts = {k: v for k, v in vars(options).items() if k not in ("data_dir", "name")}
    protocol = {"text": __doc__.split("\n\n")[1], "inner steps": STEPS, "meta batch": META_BATCH, **facts}
    write(options.name, {"protocol": protocol, "summary": summary, "runs": found})


if __name__ == "__main__":
    main()
