"""What the eager first look of `fit` costs, as a share of one eager meta-step: the median of pairs measured in turn.

A network of one's own is looked at twice more, on the inputs of one task, for what it keeps between calls: its model is
made anew for each look, so that nothing is known of it.

python benchmarks/first_look.py [--repeats 30]
"""

import argparse
import statistics
import time

import torch
from _report import write
from torch import nn

import fmeta
from fmeta.gradients._first_look import first_look

KEY = fmeta.key(0)


class Reader(nn.Module):
    """Words in, classes out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.read = nn.Embedding(500, 32, padding_idx=0), nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.read(self.words(x))[0].mean(1))


def labels(count, examples):
    return (torch.arange(examples) % 5).expand(count, -1).contiguous()


def pictures(key, count):
    support, query = (fmeta.normal(fmeta.fold(key, i), (count, n, 1, 28, 28)) for i, n in enumerate((5, 15)))
    return fmeta.Task(
        fmeta.Examples(support, labels(count, 5)), fmeta.Examples(query, labels(count, 15)), fmeta.split(key, count)
    )


def sentences(key, count):
    support, query = (fmeta.randint(fmeta.fold(key, i), 500, (count, n, 12)) for i, n in enumerate((5, 15)))
    return fmeta.Task(
        fmeta.Examples(support, labels(count, 5)), fmeta.Examples(query, labels(count, 15)), fmeta.split(key, count)
    )


def sinusoid():
    model = fmeta.models.mlp([1, 40, 40, 1])
    return fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1), fmeta.tasks.sinusoid(shots=10)(KEY, 25)


def conv4():
    model = fmeta.models.conv4(5)
    return fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1), pictures(KEY, 8)


def lstm():
    model = fmeta.from_module(Reader())
    return fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1), sentences(KEY, 8)


def share(make, repeats):
    learner, tasks = make()
    trainer = fmeta.trainer(learner, fmeta.adam(1e-3))
    state = trainer.init(KEY)
    trainer.step(state, tasks)
    shares, looks, steps = [], [], []
    for _ in range(repeats):
        fresh, _ = make()
        start = time.perf_counter()
        first_look("fit", fresh, state.meta, tasks)
        between = time.perf_counter()
        trainer.step(state, tasks)
        looks.append(between - start)
        steps.append(time.perf_counter() - between)
        shares.append(looks[-1] / steps[-1])
    low, high = statistics.quantiles(shares, n=20)[0], statistics.quantiles(shares, n=20)[-1]
    return {
        "share of a step": statistics.median(shares),
        "5 to 95% of pairs": [low, high],
        "milliseconds": {"look": 1e3 * statistics.median(looks), "step": 1e3 * statistics.median(steps)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = {"sinusoid, MLP-40, 25 tasks": sinusoid, "Conv4-64, 5-way 1-shot, 8 tasks": conv4, "LSTM, 8 tasks": lstm}
    found = {name: share(make, options.repeats) for name, make in problems.items()}
    for name, row in found.items():
        print(f"{name}: {row['share of a step']:.2f} of a step")
    write("first_look", {"pairs": options.repeats, "problems": found})


if __name__ == "__main__":
    main()
