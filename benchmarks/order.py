"""First against second order: every meta-gradient on the same tasks, by direction, time, memory and what it learns.

sinusoid: 25 tasks, 10-shot with 10 query points, MLP 1-40-40-1, inner sgd at 0.01. omniglot: Finn's characters, split
and rotations, 5-way 1-shot with 1 query image per class, conv4 with stride 2 and batch statistics, inner sgd at 0.4.

first_order, unrolled, adjoint, truncated(1) and difference differentiate MAML. implicit needs a proximal inner problem,
so it trains imaml, with the same rate and number of inner steps, and its exact reference is unrolled on that imaml; its
solver's residual and the inner gradient where descent ended are in the result. Blind to the path, it does not keep the
curvature in reach of the inner rate: on sinusoid some runs of more than 1,000 meta-steps diverge. The outer optimizer
is Adam; difference is no gradient of the query loss, so there it is Reptile's sgd, from 1 down to 0.1.

- Cosine: to the exact meta-gradient in float64, at the initialisation and where unrolled has trained to.
- Time of a meta-step: medians with quartiles, measured in turn; over first_order's, measured and as arithmetic owes.
- Memory: peak of two eager meta-steps in a fresh process, over what was resident before.
- Learning: query error or accuracy on a fixed list of new tasks, after the training's number of inner steps, at equal
  iterations and at equal wall clock. All train at once, taking turns on the same tasks; a faster one goes on until it
  has had the time of the slowest (or --seconds). Time is that of the meta-steps: no compiling, no drawing of tasks.
  The interval is over tasks, each a mean over seeds; sd is over seeds. Where a run was not finite, or the interval is
  wider than the mean, the median over tasks stands for it.

python benchmarks/order.py [--problems sinusoid omniglot] [--data-dir PATH]

--data-dir PATH   the images of Omniglot; without it that problem is left out
--iterations N    meta-steps of every meta-gradient (200; omniglot 80)
--seconds S       the equal wall clock, for each seed (the time of the slowest for its iterations)
--seeds N         runs, each with its own initialisation and training tasks (2)
--inner-steps K   in training and in test (5)
--meta-batch T    tasks of a meta-step (25; omniglot 8)
--outer-lr R      of Adam (1e-3)
--width W         channels of conv4 (16)
--damping D       of imaml (2; omniglot 0.5: of a few tried, those with which implicit learned most)
--cg N            iterations of implicit's solver (5)
--scope S         none (eager) or whole: each meta-step one graph (none; memory is always eager). Eager steps of nets
                  this small are calls more than arithmetic, so that their time follows what is owed only from afar.
                  There is no "step" here: unrolled, which has no stages, would be one graph and the others many
--test-tasks N    new tasks (600)
--repeats N       rounds of the timing (15)
--threads N       processor threads (1: more only wait for each other on steps this small)
"""

import argparse
import itertools
import json
import sys
import time
from typing import Any, NamedTuple

import _report
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution._compile import plan as plan_of

NAMES = ("first_order", "unrolled", "adjoint", "truncated", "difference", "implicit")
LEARNED = ("equal iterations", "equal wall clock")


class Problem(NamedTuple):
    model: fmeta.Model
    loss: Any
    metric: str  # "loss" or "accuracy"
    lr: float
    train: Any  # samplers of tasks
    test: Any
    layers: list[int]  # FLOPs of each layer on one example
    support: int  # examples of a task
    query: int
    meta_batch: int
    iterations: int
    damping: float


class Case(NamedTuple):
    learner: fmeta.Learner
    gradient: fmeta.MetaGradient
    optimizer: fmeta.Optimizer


def sinusoid(options):
    sizes = [1, 40, 40, 1]
    layers = [2 * a * b for a, b in itertools.pairwise(sizes)]
    train, test = fmeta.tasks.sinusoid(shots=10, query=10), fmeta.tasks.sinusoid(shots=10, query=100)
    return Problem(fmeta.models.mlp(sizes), fmeta.mse, "loss", 0.01, train, test, layers, 10, 10, 25, 200, 2.0)


def omniglot(options):
    def sampler(split):
        data = fmeta.tasks.omniglot(split, protocol="finn", data_dir=options.data_dir).to(options.device)
        return fmeta.tasks.episodes(data, ways=5, shots=1, query=1, rotate=True)

    channels, sides = [1] + 4 * [options.width], (14, 7, 4, 2)
    layers = [2 * 9 * a * b * s * s for (a, b), s in zip(itertools.pairwise(channels), sides, strict=True)]
    layers.append(2 * 5 * options.width)
    model, train, test = fmeta.models.conv4(5, width=options.width), sampler("train"), sampler("test")
    return Problem(model, fmeta.cross_entropy, "accuracy", 0.4, train, test, layers, 5, 5, 8, 80, 0.5)


PROBLEMS = {"sinusoid": sinusoid, "omniglot": omniglot}


def prepared(name, options):
    """The problem with the options put in, and its cases."""
    problem = PROBLEMS[name](options)
    given = {f: getattr(options, f) for f in ("iterations", "meta_batch", "damping") if getattr(options, f) is not None}
    problem = problem._replace(**given)
    metrics = {"accuracy": fmeta.accuracy} if problem.metric == "accuracy" else None
    inner = {"optimizer": fmeta.sgd(problem.lr), "steps": options.inner_steps, "metrics": metrics}
    maml = fmeta.maml(problem.model, problem.loss, **inner)
    imaml = fmeta.imaml(problem.model, problem.loss, damping=problem.damping, **inner)
    adam, reptile = fmeta.adam(options.outer_lr), fmeta.sgd(fmeta.linear_decay(1.0, problem.iterations, 0.1))
    return problem, {
        "first_order": Case(maml, fmeta.first_order(), adam),
        "unrolled": Case(maml, fmeta.unrolled(), adam),
        "adjoint": Case(maml, fmeta.adjoint(), adam),
        "truncated": Case(maml, fmeta.truncated(1), adam),
        "difference": Case(maml, fmeta.difference(), reptile),
        # its residual is in the result, so nothing to warn about
        "implicit": Case(imaml, fmeta.implicit(fmeta.cg(options.cg), tolerance=float("inf")), adam),
    }


def owed(problem, options):
    """FLOPs of one task's meta-gradient, in matrix products and convolutions.

    With F those of one example forward and F₁ its first layer, an inner gradient is 3F − F₁: forward, and backward at
    twice that, less the gradient of the input. Reverse mode through it passes two products back for each of its own, or
    one where the input is an operand: 9F − 5F₁ together. The adjoint takes every step, then pulls back through each.

    implicit descends, then forms a Hessian product, as dear as an inner gradient and reverse mode through it, for each
    iteration of its solver and one more for the residual. Two more inner gradients give the norm that it reports and
    the way back to meta, which is short because meta enters in the proximal term. An estimate: torch counts the same,
    but the solver's own vector products are left out, as are everyone's element-wise operations.
    """
    forward, first = sum(problem.layers), problem.layers[0]
    slope, through = 3 * forward - first, 9 * forward - 5 * first
    steps = options.inner_steps
    inner = {
        "first_order": steps * slope,
        "unrolled": steps * through,
        "adjoint": steps * (slope + through),
        "truncated": steps * slope + through,
        "difference": steps * slope,
        "implicit": (steps + 2) * slope + (options.cg + 1) * through,
    }
    outer = {name: forward if name == "difference" else slope for name in NAMES}
    return {name: problem.support * inner[name] + problem.query * outer[name] for name in NAMES}


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def arithmetic(problem, cases, options):
    """FLOPs by formula and as torch counts them, for one task: torch's counter misjudges convolutions of several."""
    key = fmeta.key(0, options.device)
    meta, task = problem.model.init(key), problem.train(key, 1)
    forward = counted(lambda: problem.model.apply(meta, task.query.x[0, :1]))
    if forward != sum(problem.layers):
        raise AssertionError(f"forward FLOPs: {forward} counted, {sum(problem.layers)} by formula")
    formula = owed(problem, options)
    return {
        name: {"owed": formula[name], "counted": counted(lambda c=case: fmeta.meta_grad(*c[:2])(meta, task))}
        for name, case in cases.items()
    }


def cosines(cases, meta, tasks):
    """To the exact meta-gradient of the same learner, in float64; for implicit also how far it is from the solution."""

    def grads(case, gradient):
        found, info = fmeta.meta_grad(case.learner, gradient)(meta, tasks)
        return torch.cat([leaf.flatten() for leaf in tree_leaves(found)]), info

    meta, tasks = tree_map(lambda t: t.double() if t.is_floating_point() else t, (meta, tasks))
    exact = {case.learner.name: grads(case, fmeta.unrolled())[0] for case in cases.values()}
    rows = {}
    for name, case in cases.items():
        found, info = grads(case, case.gradient)
        far = {n: info.metrics[n].mean().item() for n in ("residual", "inner_gradient") if n in info.metrics}
        rows[name] = {"cosine": torch.cosine_similarity(found, exact[case.learner.name], 0).item(), **far}
    return rows


class Runner:
    """One meta-gradient in training: where it is, and the time that its meta-steps took."""

    def __init__(self, init, step, key, tasks):
        self.step, self.state, self.seconds, self.reached = step, init(key), 0.0, {}
        self.step(self.state, tasks)  # compiles, and loads what is loaded at the first call

    def advance(self, tasks):
        _report.synchronize()
        start = time.perf_counter()
        self.state, _ = self.step(self.state, tasks)
        _report.synchronize()
        self.seconds += time.perf_counter() - start

    def note(self, when):
        bad = int(self.state.bad)
        facts = {"iterations": int(self.state.step), "seconds": self.seconds, "not finite at": None if bad < 0 else bad}
        self.reached[when] = self.state.meta, facts


def race(problem, trainers, seed, options):
    """Trains all of them in turns, and notes each at the given iterations and at the given time."""
    key = fmeta.key(seed, options.device)
    tasks = problem.train(fold(key, 0), problem.meta_batch)
    runners = {name: Runner(*trainer, key, tasks) for name, trainer in trainers.items()}
    budget = options.seconds
    k = 0
    while any(len(runner.reached) < 2 for runner in runners.values()):
        if k == problem.iterations:
            for runner in runners.values():
                runner.note(LEARNED[0])
            budget = budget or max(runner.seconds for runner in runners.values())
            print(f"seed {seed}: {k} meta-steps of each; on to {budget:.1f} s", flush=True)
        for runner in runners.values():
            if budget is not None and runner.seconds >= budget and LEARNED[1] not in runner.reached:
                runner.note(LEARNED[1])
        tasks = problem.train(fold(key, k), problem.meta_batch)
        for runner in runners.values():
            if len(runner.reached) < 2:
                runner.advance(tasks)
        k += 1
    return runners


def judged(problem, case, reached, test, options):
    """What runs of several seeds have learned, from (meta, facts) of each."""
    found = [fmeta.evaluate(case.learner, meta, test, chunk=50).values[problem.metric][:, 0] for meta, _ in reached]
    values, means = torch.stack(found), torch.stack(found).mean(1)
    over_seeds = values.mean(0)  # [task]
    runs = [{**facts, "mean": m.item()} for (_, facts), m in zip(reached, means, strict=True)]
    return {
        "mean": values.mean().item(),
        "interval95": 1.96 * over_seeds.std().item() / len(over_seeds) ** 0.5,
        "median": over_seeds.median().item(),
        "sd over seeds": means.std().item() if len(means) > 1 else None,
        "iterations": sum(run["iterations"] for run in runs) / len(runs),
        "seconds": sum(run["seconds"] for run in runs) / len(runs),
        "runs": runs,
    }


def peak(name, gradient, options):
    """In a fresh process: the memory of one meta-gradient's meta-step."""
    problem, cases = prepared(name, options)
    case, key = cases[gradient], fmeta.key(0, options.device)
    trainer = fmeta.trainer(case.learner, case.optimizer, case.gradient)
    state, small, full = trainer.init(key), problem.train(key, 1), problem.train(key, problem.meta_batch)
    return _report.peak_bytes(lambda: trainer.step(state, full), lambda: trainer.step(state, small), options.device)


def measure(name, options):
    problem, cases = prepared(name, options)
    key, plan = fmeta.key(999, options.device), plan_of(options.scope)
    flops = arithmetic(problem, cases, options)
    peaks = {n: _report.fresh(__file__, *sys.argv[1:], "--one", name, n) for n in cases}
    trainers = {}
    for n, case in cases.items():
        init, step = fmeta.trainer(case.learner, case.optimizer, case.gradient, stage=plan.stage)
        trainers[n] = init, plan.whole(step)
    tasks = problem.train(fold(key, 0), problem.meta_batch)
    state = {n: init(key) for n, (init, _) in trainers.items()}
    functions = {n: lambda n=n: trainers[n][1](state[n], tasks) for n in cases}
    times = _report.interleaved(functions, options.repeats, 2 if plan.scope == "none" else 20)

    drawn, test = problem.train(fold(key, 1), 2 * problem.meta_batch), problem.test(fold(key, 2), options.test_tasks)
    races = [race(problem, trainers, seed, options) for seed in range(options.seeds)]
    starts = [cosines(cases, problem.model.init(fmeta.key(s, options.device)), drawn) for s in range(options.seeds)]
    trained = [cosines(cases, runners["unrolled"].reached[LEARNED[0]][0], drawn) for runners in races]
    rows = {}
    for n, case in cases.items():
        ratio = {"measured": times[n]["median"] / times["first_order"]["median"]}
        ratio |= {k: flops[n][k] / flops["first_order"][k] for k in ("owed", "counted")}
        rows[n] = {
            "at initialisation": mean_of([s[n] for s in starts]),
            "after training": mean_of([s[n] for s in trained]),
            "seconds per meta-step": times[n],
            "time over first order": ratio,
            "FLOPs per task": flops[n],
            "peak bytes": peaks[n][0],
            **{w: judged(problem, case, [r[n].reached[w] for r in races], test, options) for w in LEARNED},
        }
        if peaks[n][1]:
            rows[n]["memory not measured"] = peaks[n][1]
    facts = {k: v for k, v in vars(options).items() if k not in ("data_dir", "problems", "one", "seconds")}
    facts |= {
        f: getattr(problem, f) for f in ("iterations", "meta_batch", "damping", "metric", "lr", "support", "query")
    }
    example = {"forward": sum(problem.layers), "first layer": problem.layers[0]}
    protocol = {"text": __doc__.split("\n\n")[1], "seconds of equal wall clock": options.seconds or "slowest", **facts}
    return {"protocol": protocol, "FLOPs of one example": example, "gradients": rows}


def mean_of(dicts):
    return {name: sum(d[name] for d in dicts) / len(dicts) for name in dicts[0]}


def not_finite(row):
    """How many runs left for infinity."""
    return sum(run["not finite at"] is not None for run in row["runs"])


def diverged(row):
    """Whether the mean says nothing."""
    return not_finite(row) or not row["interval95"] <= row["mean"]


def learned(row, accuracy):
    """One figure of a row, as the table and README print it."""
    unit = 100 if accuracy else 1
    if diverged(row):
        means = ", ".join(f"{unit * run['mean']:.4g}" for run in row["runs"])
        return f"median {unit * row['median']:.{2 - accuracy}f} (runs {means})"
    text = f"{unit * row['mean']:.{2 - accuracy}f} ±{unit * row['interval95']:.{2 - accuracy}f}"
    return text if row["sd over seeds"] is None else f"{text} (sd {unit * row['sd over seeds']:.{2 - accuracy}f})"


def show(name, result):
    accuracy = result["protocol"]["metric"] == "accuracy"
    table = Table(title=f"{name}: {'query accuracy, %' if accuracy else 'query error'}")
    titles = ["meta-gradient", "cosine at start", "trained", "ms per meta-step", "over first order", "owed", "peak MiB"]
    for title in (*titles, "at equal iterations", "at equal wall clock", "meta-steps"):
        table.add_column(title, justify="left" if title == "meta-gradient" else "right")
    for n, row in result["gradients"].items():
        seconds, ratio = row["seconds per meta-step"], row["time over first order"]
        low, high = seconds["quartiles"]
        table.add_row(
            n,
            f"{row['at initialisation']['cosine']:.4f}",
            f"{row['after training']['cosine']:.4f}",
            f"{1e3 * seconds['median']:.1f} ({1e3 * low:.1f}–{1e3 * high:.1f})",
            f"{ratio['measured']:.2f}",
            f"{ratio['owed']:.2f}",
            "–" if row["peak bytes"] is None else f"{row['peak bytes'] / 2**20:.1f}",
            *(learned(row[when], accuracy) for when in LEARNED),
            f"{row[LEARNED[1]]['iterations']:.0f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table)


def plot(name, result):
    """What is learned, and the time it takes."""
    rows, accuracy = result["gradients"], result["protocol"]["metric"] == "accuracy"
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    for when, offset, color in zip(LEARNED, (-0.12, 0.12), ("tab:blue", "tab:orange"), strict=True):
        unit = 100 if accuracy else 1
        values = [unit * row[when]["median" if diverged(row[when]) else "mean"] for row in rows.values()]
        halves = [0 if diverged(row[when]) else unit * row[when]["interval95"] for row in rows.values()]
        left.errorbar([p + offset for p in places], values, yerr=halves, fmt="o", capsize=3, color=color, label=when)
    left.set_ylabel("query accuracy, %" if accuracy else "query error (the median where a run diverged)")
    for kind, offset, color in (("measured", -0.2, "tab:blue"), ("owed", 0.2, "lightgrey")):
        values = [row["time over first order"][kind] for row in rows.values()]
        label = kind if kind == "measured" else "owed by the arithmetic"
        right.bar([p + offset for p in places], values, 0.4, color=color, label=label)
    right.set_ylabel("time of a meta-step over first order")
    for axes in (left, right):
        axes.set_xticks(list(places), list(rows), rotation=20, ha="right")
        axes.grid(alpha=0.3, axis="y")
        axes.legend()
    facts = result["protocol"]
    figure.suptitle(
        f"{name}: {facts['inner_steps']} inner steps, {facts['iterations']} meta-steps of {facts['meta_batch']} tasks, "
        f"{facts['seeds']} seeds, {facts['test_tasks']} new tasks"
    )
    figure.savefig(_report.RESULTS / f"order-{name}.png", dpi=110)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--data-dir")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--inner-steps", type=int, default=5)
    parser.add_argument("--meta-batch", type=int)
    parser.add_argument("--outer-lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--damping", type=float)
    parser.add_argument("--cg", type=int, default=5)
    parser.add_argument("--scope", choices=("none", "whole"), default="none")
    parser.add_argument("--test-tasks", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(peak(*options.one, options)))
        return
    for name in options.problems:
        if name == "omniglot" and options.data_dir is None:
            print("omniglot is left out: it needs --data-dir, a folder with images_background and images_evaluation")
            continue
        result = measure(name, options)
        show(name, result)
        _report.write(f"order-{name}", result)
        plot(name, result)


if __name__ == "__main__":
    main()
