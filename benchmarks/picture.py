"""README's picture: sine curves that a trained network never saw, from ten points each.

Trains MAML on sine waves by the loop of README (15,000 meta-steps, under a minute on one core) and draws what its
network says of two new tasks before adaptation, after one and after five gradient steps.

python benchmarks/picture.py [--iterations 15000]    writes results/picture.svg
"""

import argparse

import matplotlib as mpl
import torch
from _report import RESULTS
from matplotlib import pyplot as plt
from sinusoid import SIZES

import fmeta

SHOTS = 10
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "none", "svg.hashsalt": "fmeta",  # small, and the same bytes each time
}  # fmt: skip
LINES = {  # inner steps: colour, line style
    0: ("#9aa0a6", (0, (1, 1.5))),
    1: ("#e08a1e", (0, (5, 2))),
    5: ("#1f6fb4", "-"),
}


def learner(steps):
    return fmeta.maml(fmeta.models.mlp(SIZES), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=steps)


def trained(iterations):
    """The meta-parameters after training with one inner step."""
    trainer, sample, key = fmeta.trainer(learner(1), fmeta.adam(1e-3)), fmeta.tasks.sinusoid(shots=SHOTS), fmeta.key(0)
    step, state = fmeta.compile(trainer.step), trainer.init(key)
    for k in range(iterations):
        state, _ = step(state, sample(fmeta.fold(key, k), 25))
    return state.meta


def predicted(meta, task, x, steps):
    """What the network says at x [point, 1] after so many gradient steps on the support set: [point]."""
    adapting = learner(max(steps, 1))
    fast = adapting.adapt(meta, task.support, task.key) if steps else meta
    return adapting.predict(fast, meta, x)[:, 0].detach()


def draw(meta, tasks):
    """One panel for each task."""
    mpl.rcParams.update(STYLE)
    count = len(tasks.support.x)
    figure, panels = plt.subplots(1, count, figsize=(8, 2.6), sharey=True, layout="constrained")
    x = torch.linspace(-5, 5, 81)[:, None]
    for i, panel in enumerate(panels):
        task = fmeta.tree.tree_map(lambda leaf, i=i: leaf[i], tasks)
        amplitude, phase = curve(task.query)
        panel.plot(x[:, 0], amplitude * torch.sin(x[:, 0] - phase), color="#d7d9dc", linewidth=5, label="true curve")
        for steps, (colour, line) in LINES.items():
            name = f"after {steps} step{'s' * (steps > 1)}" if steps else "before adaptation"
            panel.plot(x[:, 0], predicted(meta, task, x, steps), color=colour, linestyle=line, label=name)
        panel.plot(task.support.x[:, 0], task.support.y[:, 0], "o", color="#202124", markersize=4, label="support set")
        panel.set_xlabel("x")
    panels[0].set_ylabel("y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "picture.svg", metadata={"Date": None})


def curve(examples):
    """Amplitude and phase of the sine through the examples, by least squares: the task itself does not tell them."""
    x, y = examples.x[:, 0].double(), examples.y[:, 0].double()
    a, b = torch.linalg.lstsq(torch.stack([x.sin(), x.cos()], -1), y).solution
    return torch.hypot(a, b), torch.atan2(-b, a)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=15000)
    parser.add_argument("--seed", type=int, default=1, help="of the two new tasks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw(trained(options.iterations), fmeta.tasks.sinusoid(shots=SHOTS)(fmeta.key(options.seed), 2))
    print("wrote benchmarks/results/picture.svg")


if __name__ == "__main__":
    main()
