"""The training step on a CUDA device: launches, capture, precision, sampling, and a full Omniglot run.

steps: one meta-training step (sampling from the key, inner loops, meta-gradient, Adam) of Finn's Omniglot net on 32
tasks, in his protocol (1 inner step, 1 query image per class) and with 5 inner steps and 15 query images per class,
eager and compiled, captured as one CUDA graph and not, in float32, tf32 and bfloat16. Beside the time: launches, the
arithmetic owed, and its time at the rate of a large matrix product ("floor"). First the compiled meta-gradient is shown
to be the eager one, to 1e-8 in float64. sampling: its share of the step.
run: 60,000 iterations, 5-way 1-shot, Finn's protocol: wall clock and the accuracy on 600 test tasks after 3 steps.

python benchmarks/gpu.py [--data-dir PATH] [--iterations 60000] [--parts steps sampling run]

--device cpu --tiny   small sizes, on any machine; writes no result
"""

import argparse
import time
import warnings

import torch
from _report import interleaved, synchronize, write
from _work import WORKS, Conv4, arithmetic, matmul_rate
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fmeta
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.execution._auto import _Counter
from fmeta.tasks import class_data, episodes, omniglot


def protocols(tiny):
    finn = WORKS["omniglot"]
    if tiny:
        small = {"model": lambda: fmeta.models.conv4(5, width=4), "module": lambda: Conv4("stride", 4), "tasks": 2}
        finn = finn._replace(**small)
    return {
        "Finn's": finn,
        "5 steps, 15 query": finn._replace(steps=2 if tiny else 5, query=75, gradient=fmeta.adjoint()),
    }


def sampler_of(work, options, device):
    data = omniglot("train", data_dir=options.data_dir) if options.data_dir else noise()
    return episodes(data.to(device), ways=5, shots=1, query=work.query // 5, rotate=True)


def noise():
    """Classes of random images, for times alone."""
    images = torch.randint(0, 256, (50, 20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return class_data({str(i): pictures for i, pictures in enumerate(images)}, pictures=True)


def training_step(work, sample, key, options, precision="float32", scope="none"):
    """state -> state, info: all of a step in one pure function."""
    trainer = fmeta.trainer(work.learner(precision, key.device), fmeta.adam(1e-3), work.gradient)
    inner = fmeta.compile(trainer.step, scope=scope, backend="eager" if options.tiny else "inductor")

    def step(state):
        return inner(state, sample(fold(key, state.step), work.tasks))

    return step, trainer.init(key)


def agreement(work, device, backend):
    """Float64: the largest difference of a compiled meta-gradient from the eager one, over its largest entry."""
    meta, tasks = (tree_map(lambda t: t.to(device), v) for v in (work.meta(torch.float64), work.data(torch.float64)))
    expected = fmeta.meta_grad(work.learner())(meta, tasks)[0]
    found = fmeta.compile(fmeta.meta_grad(work.learner(), work.gradient), scope="step", backend=backend)(meta, tasks)[0]
    scale = max(float(g.abs().max()) for g in expected.values())
    far = max(float((found[n] - g).abs().max()) for n, g in expected.items()) / scale
    if not far < 1e-8:
        raise SystemExit(f"{work.name}: the compiled meta-gradient is {far:.1e} from the eager one")
    return far


def variants(device):
    for precision in ("float32", "tf32", "bfloat16"):
        for scope in ("none", "step"):
            for captured in (False, True):
                if device.type == "cuda" or (precision == "float32" and not captured):
                    yield precision, scope, captured


def one_protocol(name, work, options, device):
    key = fmeta.key(0, device)
    sample = sampler_of(work, options, device)
    far = agreement(work, device, "eager" if options.tiny else "aot_eager")
    gradient = "unrolled" if work.steps == 1 else "adjoint"
    flops = work.tasks * arithmetic(work, gradient)
    rows, lacking = {}, {}
    for precision, scope, captured in variants(device):
        label = f"{precision}, {'compiled' if scope == 'step' else 'eager'}{', captured' if captured else ''}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, state = training_step(work, sample, key, options, precision, scope)
            step = fmeta.capture(step) if captured else step
            step(state)
        said = [str(w.message) for w in caught if "fmeta stays" in str(w.message) or "capture(" in str(w.message)]
        if said:
            lacking[label] = said[0]
            continue
        times = interleaved(
            {label: lambda step=step, state=state: step(state)}, options.repeats, 1 if options.tiny else 5
        )[label]
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        floor = flops / matmul_rate(device, dtype, 256 if options.tiny else None)
        rows[label] = {
            "seconds": times, "floor seconds": floor,
            "launches": launches(lambda step=step, state=state: step(state), device, scope),
            "times the floor": times["median"] / floor,
        }  # fmt: skip
        if precision == "tf32":
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        print(f"{name}: {label} {1e3 * times['median']:.2f} ms", flush=True)
    return {"float64 difference": far, "FLOPs owed": flops, "variants": rows, "not available": lacking}


def launches(run, device, scope):
    """Kernels and copies that one call starts on the device; on a CPU the operations of eager code."""
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            run()
            synchronize()
        return sum(event.device_type == DeviceType.CUDA for event in profiled.events())
    if scope != "none":
        return None
    with _Counter() as operations:
        run()
    return operations.count


def sampling(work, options, device):
    """What drawing the tasks takes of a step."""
    key = fmeta.key(0, device)
    sample = sampler_of(work, options, device)
    step, state = training_step(work, sample, key, options, scope="step")
    runs = {"sampling": lambda: sample(fold(key, state.step), work.tasks), "step": lambda: step(state)}
    times = interleaved(runs, options.repeats, 1 if options.tiny else 5)
    return {**times, "share": times["sampling"]["median"] / times["step"]["median"]}


def full_run(work, options, device):
    key = fmeta.key(0, device)
    sample = sampler_of(work, options, device)
    step, state = training_step(work, sample, key, options, scope="step")
    step = fmeta.capture(step) if device.type == "cuda" else step
    start = time.perf_counter()
    state, _ = step(state)
    synchronize()
    first = time.perf_counter() - start
    for _ in range(options.iterations - 1):
        state, info = step(state)
    synchronize()
    seconds = time.perf_counter() - start
    if int(state.bad) >= 0 or not all(bool(t.isfinite().all()) for t in tree_leaves(state.meta)):
        raise SystemExit(f"not finite at step {int(state.bad)}")
    test = omniglot("test", data_dir=options.data_dir).to(device) if options.data_dir else None
    draw = episodes(test, ways=5, shots=1, query=1, rotate=True) if test is not None else sample
    learner = fmeta.maml(
        work.model(), fmeta.cross_entropy, optimizer=fmeta.sgd(work.rate), steps=1, metrics={"accuracy": fmeta.accuracy}
    )
    result = fmeta.evaluate(
        learner, state.meta, draw(fmeta.key(1, device), 10 if options.tiny else 600), steps=(0, 1, 3)
    )
    return {
        "iterations": options.iterations, "seconds": seconds, "first step seconds": first, "loss": float(info.loss),
        "data": "Omniglot" if options.data_dir else "noise", "evaluation": result.summary(),
    }  # fmt: skip


def show(name, result):
    table = Table(title=f"{name}: {result['FLOPs owed'] / 1e9:.1f} GFLOP owed")
    for head in ("variant", "ms", "launches", "floor ms", "times the floor"):
        table.add_column(head, justify="left" if head == "variant" else "right")
    for label, row in result["variants"].items():
        table.add_row(
            label, f"{1e3 * row['seconds']['median']:.2f}", str(row["launches"] or "–"),
            f"{1e3 * row['floor seconds']:.2f}", f"{row['times the floor']:.1f}",
        )  # fmt: skip
    Console().print(table)
    for label, why in result["not available"].items():
        print(f"{label}: {why}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir")
    parser.add_argument("--iterations", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--parts", nargs="+", choices=("steps", "sampling", "run"), default=["steps", "sampling", "run"]
    )
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --tiny shows that all of it runs")
    works, result = protocols(options.tiny), {}
    if "steps" in options.parts:
        for name, work in works.items():
            result[name] = one_protocol(name, work, options, device)
            show(name, result[name])
    if "sampling" in options.parts:
        result["sampling"] = sampling(works["Finn's"], options, device)
        print(f"sampling: {100 * result['sampling']['share']:.1f}% of a step")
    if "run" in options.parts:
        result["run"] = full_run(works["Finn's"], options, device)
        print("run:", {k: v for k, v in result["run"].items() if k != "evaluation"})
    if not options.tiny:
        write(f"gpu-{device.type}", {"protocol": __doc__.split("\n\n")[1], **result})


if __name__ == "__main__":
    main()
