"""A long run: is memory flat, do files stay closed?

python benchmarks/soak.py [--steps 100000]     writes results/soak.json

Meta-steps of the sinusoid recipe's kind by `fit`, compiled, with a run folder, a log every 100 steps, TensorBoard's
events, and a validation and a checkpoint every 1,000. Memory is the resident set after a collection, file handles are
those of the process, both looked at twenty times; growth is from the first fifth to the last.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
from _report import write

import fmeta


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    process, seen = psutil.Process(os.getpid()), []

    def look(step, values):
        if step % (steps // 20) == 0:
            gc.collect()
            seen.append({"step": step, "MiB": process.memory_info().rss / 2**20, "handles": process.num_fds()})
            print(
                f"{step}: {seen[-1]['MiB']:.1f} MiB, {seen[-1]['handles']} handles, loss {values['loss']:.3f}",
                flush=True,
            )

    learner = fmeta.maml(fmeta.models.mlp([1, 40, 40, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    sample = fmeta.tasks.sinusoid()
    held_out = sample(fmeta.key(7), 100)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        fmeta.fit(
            learner,
            fmeta.adam(fmeta.cosine_decay(3e-3, steps)),
            sample,
            key=fmeta.key(0),
            iterations=steps,
            meta_batch=25,
            scope="whole",
            run_dir=run,
            validate=lambda meta: fmeta.evaluate(learner, meta, held_out).mean("loss")[0],
            logging=fmeta.Logging(loggers=[fmeta.tensorboard(run / "tensorboard"), look]),
        )
    seconds = time.perf_counter() - begun
    early, late = ([row for row in seen if low < row["step"] <= high] for low, high in
                   ((0, steps // 5), (4 * steps // 5, steps)))  # fmt: skip
    growth = statistics.mean(r["MiB"] for r in late) / statistics.mean(r["MiB"] for r in early) - 1
    handles = [min(row["handles"] for row in seen), max(row["handles"] for row in seen)]
    print(f"{steps} meta-steps in {seconds:.0f} s: memory grew by {100 * growth:.2f}%, handles {handles}")
    write("soak", {"steps": steps, "seconds": seconds, "growth": growth, "handles": handles, "seen": seen})


if __name__ == "__main__":
    main()
