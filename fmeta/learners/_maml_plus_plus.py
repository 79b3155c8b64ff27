"""MAML++: rates, normalisation and a loss for every inner step."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import tree
from fmeta.core._checks import InputError, check_counts, check_model, check_pattern
from fmeta.core._losses import weighted_mean
from fmeta.core._optim import per_step, sgd
from fmeta.core._types import At, Examples, Inner, Learner, Loss, MetaGradient, Model, Optimizer, Tree
from fmeta.gradients import multi_step, unrolled
from fmeta.learners._factories import Metrics, forward, gradient_based


class MAMLPlusPlusParams(NamedTuple):
    params: dict[str, Tensor]  # adapt
    each_step: dict[str, Tensor]  # leaves [step, ...]: do not adapt
    lr: dict[str, Tensor]  # name of a parameter that adapts -> [step]


class MAMLPlusPlusFast(NamedTuple):
    params: dict[str, Tensor]
    step: Tensor  # float [] updates made


def maml_plus_plus(
    model: Model,
    loss: Loss,
    *,
    lr: float,
    steps: int,
    each_step: str = "norm*",
    gradient: MetaGradient | None = None,
    metrics: Metrics | None = None,
) -> Learner:
    """How to train your MAML (Antoniou et al. 2019, https://arxiv.org/abs/1810.09502): MAML with

    - a learned rate for each parameter tensor and step (LSLR): fastₖ₊₁ = fastₖ − αₖ ∇ loss(fastₖ; support);
    - scale and shift of the norm layers learned for each step, not adapted, with the statistics of the present batch
      (BNWB; the paper's running statistics for each step are left out: they would not be a pure function);
    - the weighted losses after all steps as the outer loss (MSL), here with equal weights, as the paper begins.

    To anneal the weights, or first into second order, swap the meta-gradient during training:
    `fit(gradient={0: first_order(multi_step(K)), 5000: unrolled(multi_step(K, 1.0))})`. The paper trains with Adam
    under `cosine_decay`.

    Args:
        model: the network, parameters a dict by name.
        loss: `(prediction, y) -> [example]` (or a mean).
        lr: where every learned rate starts.
        steps: K, inner steps, at least 1. After more steps than K the last step's rates and norms serve.
        each_step: patterns of the parameters that have a value for each step; "" for a network without norm layers.
        gradient: `unrolled(multi_step(steps))` where left out.
        metrics: more functions to report on the query, by name.

    Raises:
        InputError: (at `init`) a pattern that matches no parameter, or all.
    """
    check_model("maml_plus_plus", model)
    sgd(lr)  # refuses what is no rate
    check_counts("maml_plus_plus", steps=steps)

    def init(key: Tensor) -> MAMLPlusPlusParams:
        params = model.init(key)
        if not (isinstance(params, dict) and all(isinstance(p, Tensor) for p in params.values())):
            raise InputError(
                "maml_plus_plus: the model's parameters are nested; expected one flat dict, name -> tensor"
            )
        if each_step:
            check_pattern("maml_plus_plus", params, each_step)
        held = tree.select_leaves(params, each_step)
        params = {name: p for name, p in params.items() if name not in held}
        if not params:
            raise InputError(f"maml_plus_plus(each_step={each_step!r}): leaves no parameter to adapt")
        return MAMLPlusPlusParams(
            params,
            {name: p.expand(steps, *p.shape).clone() for name, p in held.items()},
            {name: p.new_full((steps,), lr) for name, p in params.items()},
        )

    def assembled(fast: MAMLPlusPlusFast, meta: MAMLPlusPlusParams, step: Tensor) -> Tree:
        return fast.params | per_step(meta.each_step)(step)

    def inner_loss(fast: MAMLPlusPlusFast, meta: MAMLPlusPlusParams, batch: Examples, at: At) -> Tensor:
        prediction = forward(model, assembled(fast, meta, fast.step), batch.x, at.key)
        return weighted_mean(loss(prediction, batch.y), batch.weight, "maml_plus_plus")

    def predict(fast: MAMLPlusPlusFast, meta: MAMLPlusPlusParams, x: Tree) -> Tree:
        # the query is normalised as the support was before the last update
        return model.apply(assembled(fast, meta, (fast.step - 1).clamp(min=0)), x)

    def optimizer(meta: MAMLPlusPlusParams) -> Optimizer:
        learned = sgd(per_step(meta.lr))

        def update(grads: MAMLPlusPlusFast, state: Tree, fast: MAMLPlusPlusFast) -> tuple[MAMLPlusPlusFast, Tree]:
            updates, state = learned.update(grads.params, state, fast.params)
            return MAMLPlusPlusFast(updates, torch.ones_like(fast.step)), state

        return Optimizer(lambda fast: learned.init(fast.params), update)

    def start(meta: MAMLPlusPlusParams, support: Examples, key: Tree) -> MAMLPlusPlusFast:
        return MAMLPlusPlusFast(meta.params, next(iter(meta.params.values())).new_zeros(()))

    inner = Inner(start, inner_loss, optimizer, steps)
    own = gradient or unrolled(multi_step(steps))
    return gradient_based("maml_plus_plus", init, inner, predict, loss, metrics, own)
