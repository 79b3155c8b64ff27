"""The meta-learning problems that the speed benchmarks time: the same weights and tasks for every peer."""

from typing import Any, NamedTuple

import torch
from _report import interleaved
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fmeta
from fmeta.core import fold, randint, uniform
from fmeta.core.tree import tree_map

KEY = fmeta.key(0)


class Work(NamedTuple):
    """One problem: a network as fmeta's model and as a module with the same parameters by name."""

    name: str
    tasks: int
    support: int
    query: int
    steps: int
    rate: float
    model: Any  # dtype -> Model
    module: Any  # () -> nn.Module
    images: bool
    gradient: Any  # the meta-gradient and scope in which fmeta is timed
    scope: str
    threads: int

    def meta(self, dtype=torch.float32):
        return tree_map(lambda p: p.to(dtype), self.model().init(KEY))

    def data(self, dtype=torch.float32, tasks=None):
        def examples(number, count):
            shape = (tasks or self.tasks, count)
            if not self.images:
                x = uniform(fold(KEY, number), (*shape, 1), -5.0, 5.0, torch.float64)
                return fmeta.Examples(x.to(dtype), torch.sin(x + 1.0).to(dtype))
            # noise: on flat images the maximum of a pooling window is not unique, and peers choose differently
            x = uniform(fold(KEY, number), (*shape, 1, 28, 28), dtype=torch.float64)
            return fmeta.Examples(x.to(dtype), randint(fold(KEY, number + 10), 5, shape))

        return fmeta.Task(examples(1, self.support), examples(2, self.query))

    def loss(self, prediction, y):
        return F.cross_entropy(prediction, y) if self.images else F.mse_loss(prediction, y)

    def learner(self, precision="float32", device="cpu", steps=None):
        model = fmeta.with_precision(self.model(), precision, device)
        loss = fmeta.cross_entropy if self.images else fmeta.mse
        return fmeta.maml(model, loss, optimizer=fmeta.sgd(self.rate), steps=steps or self.steps)

    def filled(self, meta):
        """The module with these weights."""
        module = self.module().to(next(iter(meta.values())).dtype)
        module.load_state_dict(meta)
        return module


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden1, self.hidden2, self.head = nn.Linear(1, 40), nn.Linear(40, 40), nn.Linear(40, 1)

    def forward(self, x):
        return self.head(F.relu(self.hidden2(F.relu(self.hidden1(x)))))


class Conv4(nn.Module):
    def __init__(self, form, width=64):
        super().__init__()
        self.form = form
        for i in range(1, 5):
            stride = 2 if form == "stride" else 1
            setattr(self, f"conv{i}", nn.Conv2d(1 if i == 1 else width, width, 3, stride=stride, padding=1))
            setattr(self, f"norm{i}", nn.BatchNorm2d(width, track_running_stats=False))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        for i in range(1, 5):
            x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
            if self.form == "pool":
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((-2, -1)) if self.form == "stride" else x.flatten(1))


def _sinusoid(steps):
    return Work(
        f"sinusoid, {steps} step{'s' * (steps > 1)}", 25, 10, 10, steps, 0.01,
        lambda: fmeta.models.mlp([1, 40, 40, 1]), Perceptron, False, fmeta.unrolled(), "whole", 1,
    )  # fmt: skip


def _images(name, form, tasks, query, steps, rate, gradient, scope, width=64):
    return Work(
        name, tasks, 5, query, steps, rate, lambda: fmeta.models.conv4(5, form=form, width=width),
        lambda: Conv4(form, width), True, gradient, scope, 2,
    )  # fmt: skip


WORKS = {
    "sinusoid-1": _sinusoid(1),
    "sinusoid-5": _sinusoid(5),
    "conv4": _images("Conv4-64 max-pool, 8 tasks, 5 steps", "pool", 8, 75, 5, 0.4, fmeta.adjoint(), "step"),
    "omniglot": _images("Omniglot stride-2, 32 tasks, 1 step", "stride", 32, 5, 1, 2.0, fmeta.unrolled(), "whole"),
}
TINY = {  # the same, small enough for a test
    **{name: work._replace(tasks=3) for name, work in WORKS.items() if name.startswith("sinusoid")},
    "conv4": _images("Conv4-4, 2 tasks", "pool", 2, 5, 2, 0.4, fmeta.adjoint(), "step", width=4),
    "omniglot": _images("stride-2, 2 tasks", "stride", 2, 5, 1, 2.0, fmeta.unrolled(), "whole", width=4),
}


def autograd_loop(work, meta, tasks):
    """Clone and adapt, one task after another, as learn2learn does: torch.autograd with create_graph."""
    module = work.filled(meta)
    leaves = dict(module.named_parameters())
    count = len(tasks.support.x)

    def step():
        for p in leaves.values():
            p.grad = None
        for i in range(count):
            fast = leaves
            for _ in range(work.steps):
                loss = work.loss(functional_call(module, fast, (tasks.support.x[i],)), tasks.support.y[i])
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {n: w - work.rate * g for (n, w), g in zip(fast.items(), grads, strict=True)}
            (work.loss(functional_call(module, fast, (tasks.query.x[i],)), tasks.query.y[i]) / count).backward()
        return {n: p.grad for n, p in leaves.items()}

    return step


def with_higher(work, meta, tasks):
    import higher

    module = work.filled(meta)
    optimizer, count = torch.optim.SGD(module.parameters(), lr=work.rate), len(tasks.support.x)

    def step():
        for p in module.parameters():
            p.grad = None
        for i in range(count):
            with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (net, inner):
                for _ in range(work.steps):
                    inner.step(work.loss(net(tasks.support.x[i]), tasks.support.y[i]))
                (work.loss(net(tasks.query.x[i]), tasks.query.y[i]) / count).backward()
        return {n: p.grad for n, p in module.named_parameters()}

    return step


def with_torchopt(work, meta, tasks):
    import torchopt

    module = work.filled(meta)
    inner, count = torchopt.MetaSGD(module, lr=work.rate), len(tasks.support.x)
    leaves = dict(module.named_parameters())

    def step():
        for p in leaves.values():
            p.grad = None
        start = torchopt.extract_state_dict(module, by="reference")
        state = torchopt.extract_state_dict(inner, by="reference")
        for i in range(count):
            for _ in range(work.steps):
                inner.step(work.loss(module(tasks.support.x[i]), tasks.support.y[i]))
            (work.loss(module(tasks.query.x[i]), tasks.query.y[i]) / count).backward()
            torchopt.recover_state_dict(module, start)
            torchopt.recover_state_dict(inner, state)
        return {n: p.grad for n, p in leaves.items()}

    return step


def with_jax(work, meta, tasks):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", next(iter(meta.values())).dtype == torch.float64)
    to_jax = lambda tree: tree_map(lambda t: jnp.asarray(t.numpy()), tree)  # noqa: E731
    pool = isinstance(work.module(), Conv4) and work.module().form == "pool"

    def dense(p, name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def apply(p, x):
        if not work.images:
            for name in ("hidden1", "hidden2"):
                x = jax.nn.relu(dense(p, name, x))
            return dense(p, "head", x)
        x = x.transpose(0, 2, 3, 1)
        for i in range(1, 5):
            weight, stride = p[f"conv{i}.weight"].transpose(2, 3, 1, 0), (1, 1) if pool else (2, 2)
            x = jax.lax.conv_general_dilated(
                x, weight, stride, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = x + p[f"conv{i}.bias"]
            x = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
            x = jax.nn.relu(x * p[f"norm{i}.weight"] + p[f"norm{i}.bias"])
            if pool:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.transpose(0, 3, 1, 2)
        return dense(p, "head", x.reshape(len(x), -1) if pool else x.mean((2, 3)))

    def loss(p, x, y):
        out = apply(p, x)
        return (
            -jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1).mean()
            if work.images
            else ((out - y) ** 2).mean()
        )

    def task_loss(p, sx, sy, qx, qy):
        fast = p
        for _ in range(work.steps):
            fast = jax.tree.map(lambda w, g: w - work.rate * g, fast, jax.grad(loss)(fast, sx, sy))
        return loss(fast, qx, qy)

    mean = lambda p, *data: jax.vmap(task_loss, in_axes=(None, 0, 0, 0, 0))(p, *data).mean()  # noqa: E731
    compiled = jax.jit(jax.grad(mean))
    params, data = to_jax(meta), to_jax((*tasks.support[:2], *tasks.query[:2]))
    return lambda: jax.block_until_ready(compiled(params, *data))


def fmeta_eager(work, meta, tasks, **options):
    grads = fmeta.meta_grad(work.learner(**options))
    return lambda: grads(meta, tasks)[0]


def fmeta_compiled(work, meta, tasks, backend="inductor", **options):
    grads = fmeta.meta_grad(work.learner(**options), work.gradient)
    grads = fmeta.compile(grads, scope=work.scope, backend=backend)
    return lambda: grads(meta, tasks)[0]


PEERS = {
    "fmeta": fmeta_compiled,
    "fmeta, eager": fmeta_eager,
    "autograd loop": autograd_loop,
    "higher": with_higher,
    "TorchOpt": with_torchopt,
    "JAX": with_jax,
}


def arithmetic(work, gradient, steps=None):
    """FLOPs per task that a meta-gradient owes: forward F for an example, F1 of it in the first layer.

    first order (KS+Q)(3F−F1); unrolled KS(9F−5F1)+Q(3F−F1); adjoint KS(12F−6F1)+Q(3F−F1): the input of the first layer
    needs no gradient.
    """
    module, x = work.module(), work.data(tasks=1).query.x[0, :1]
    with FlopCounterMode(display=False) as counter:
        module(x)
    whole, first = counter.get_total_flops(), _first_layer(counter)
    inner, query = (steps or work.steps) * work.support, work.query * (3 * whole - first)
    each = {"first_order": 3 * whole - first, "unrolled": 9 * whole - 5 * first, "adjoint": 12 * whole - 6 * first}
    return inner * each[gradient] + query


def _first_layer(counter):
    counts = counter.get_flop_counts()
    name = next(n for n in counts if n.endswith((".conv1", ".hidden1")))
    return sum(counts[name].values())


def matmul_rate(device="cpu", dtype=torch.float32, size=None):
    """FLOP/s of a large square matrix product: the best of several."""
    size = size or (8192 if torch.device(device).type == "cuda" else 1536)
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = interleaved({"matmul": lambda: a @ a}, 7, 1)["matmul"]["min"]
    return 2 * size**3 / best
