"""Linear regression, whose MAML meta-gradient is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, PartialSampler, Task, Tree, fold, normal
from fmeta.core._checks import check_counts
from fmeta.core.tree import mean_tasks
from fmeta.operators._over_tasks import over_tasks
from fmeta.tasks._sampler import TaskSampler


def linear(
    *, features: int = 3, shots: int = 10, query: int = 10, noise: float = 0.1, dtype: torch.dtype = torch.float32
) -> PartialSampler:
    """y = w·x + b + noise·ε with w, b, x and ε standard normal. `x` is `[task, example, features]`, `y`
    `[task, example, 1]`.

    >>> import fmeta
    >>> fmeta.tasks.linear(features=3, shots=10)(fmeta.key(0), 25).support.x.shape
    torch.Size([25, 10, 3])
    """
    check_counts("linear", features=features, shots=shots, query=query)

    def one(key: Tensor) -> Task:
        weight = normal(fold(key, 0), (features + 1, 1), dtype)

        def draw(number: int, count: int) -> Examples:
            x = normal(fold(fold(key, number), 0), (count, features), dtype)
            y = x @ weight[:-1] + weight[-1] + noise * normal(fold(fold(key, number), 1), (count, 1), dtype)
            return Examples(x, y)

        return Task(draw(1, shots), draw(2, query), fold(key, 3))

    return TaskSampler(one)


def linear_meta_grad(meta: Tree, tasks: Task, *, lr: float, steps: int) -> Tree:
    """The exact meta-gradient of `maml(mlp([features, 1]), mse, optimizer=sgd(lr), steps=steps)`, in closed form.

    With X the support inputs and a column of ones, H = 2XᵀX/n, w* the least-squares solution, q the same on the query:

        fast = w* + (I − lr·H)ᴷ (meta − w*),    meta-gradient = (I − lr·H)ᴷ · 2/m · X_qᵀ(X_q·fast − y_q).

    So `fmeta.meta_grad` of that learner is right to the last digits:

        >>> import fmeta
        >>> learner = fmeta.maml(fmeta.models.mlp([3, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=5)
        >>> meta, tasks = learner.init(fmeta.key(0)), fmeta.tasks.linear(features=3)(fmeta.key(1), 25)
        >>> gradient, info = fmeta.meta_grad(learner)(meta, tasks)
        >>> exact = fmeta.tasks.linear_meta_grad(meta, tasks, lr=0.1, steps=5)
        >>> bool(fmeta.testing.distance(gradient, exact) < 1e-5)
        True

    Args:
        meta: `{"head.weight": [1, features], "head.bias": [1]}`.
        tasks: a batch of tasks from `linear`.
        lr: rate α of the inner loop.
        steps: K, 0 or more.
    """
    if steps < 0:
        raise InputError(f"linear_meta_grad(steps={steps}): expected 0 or more")

    def one(params: Tree, task: Task) -> Tensor:
        start = torch.cat([params["head.weight"][0], params["head.bias"]])[:, None]
        x, xq = (torch.cat([e.x, torch.ones_like(e.x[:, :1])], 1) for e in (task.support, task.query))
        hessian = 2.0 * x.T @ x / x.shape[0]
        power = torch.linalg.matrix_power(torch.eye(len(start), dtype=x.dtype, device=x.device) - lr * hessian, steps)
        best = torch.linalg.pinv(x) @ task.support.y
        fast = best + power @ (start - best)
        return (power @ (2.0 * xq.T @ (xq @ fast - task.query.y) / xq.shape[0]))[:, 0]

    total = mean_tasks(over_tasks(one)(meta, tasks))
    return {"head.weight": total[None, :-1], "head.bias": total[-1:]}
