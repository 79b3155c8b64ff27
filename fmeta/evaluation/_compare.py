"""`compare`: two evaluations on the same tasks, task by task."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from fmeta.core import InputError
from fmeta.core._checks import nearest
from fmeta.evaluation._evaluate import Evaluation
from fmeta.evaluation._intervals import bootstrap_means, percentiles95


class Comparison(NamedTuple):
    """The difference of two evaluations in one figure, first minus second, over the same tasks."""

    metric: str
    better: Literal["higher", "lower"]
    steps: tuple[int, int]  # adaptation steps of the first and the second
    differences: Tensor  # float64 [task]
    mean: float
    interval: tuple[float, float]  # 95%, percentile bootstrap over tasks
    won: float  # share of the tasks in which the first is better; a NaN is neither won, lost nor tied
    lost: float
    tied: float

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        figures = {name: getattr(self, name) for name in ("metric", "better", "mean", "won", "lost", "tied")}
        return figures | {"steps": list(self.steps), "interval95": list(self.interval)}


def compare(
    a: Evaluation,
    b: Evaluation,
    metric: str,
    step: int = -1,
    *,
    better: Literal["higher", "lower"] | None = None,
    key: Tensor | None = None,
) -> Comparison:
    """Whether one learner is better than another on the tasks that both were evaluated on.

    The difference is taken in every task, so that what makes a task easy or hard for both cancels.

    Args:
        a: the first evaluation.
        b: the second.
        metric: a name in the values of both, such as "loss" or "accuracy".
        step: which of the measured steps, an index into `Evaluation.steps`; -1 is the last of each.
        better: which values are; None is "lower" for the loss and "higher" for all else.
        key: of the 10,000 resamples; None is `key(0)`.

    Raises:
        InputError: evaluations on different tasks or on a single one, an unknown metric or step.
    """
    fingerprints = [e.protocol.get("task list") for e in (a, b)]
    if None in fingerprints or fingerprints[0] != fingerprints[1]:
        raise InputError(
            f"compare: the first was evaluated on the task list {fingerprints[0]}, the second on {fingerprints[1]}; "
            "expected the same tasks, because the difference is taken task by task; evaluate both on one list"
        )
    for which, e in {"first": a, "second": b}.items():
        if metric not in e.values:
            raise InputError(f"compare(metric={metric!r}): not in the {which} evaluation; {nearest(metric, e.values)}")
        if not -len(e.steps) <= step < len(e.steps):
            raise InputError(
                f"compare(step={step}): the {which} evaluation has {len(e.steps)} measured steps; expected an index"
            )
    if len(a.values[metric]) < 2:
        raise InputError("compare: both were evaluated on 1 task; expected at least 2, for an interval")
    if better is None:
        better = "lower" if metric in ("loss", "loss alone") else "higher"
    differences = a.values[metric][:, step] - b.values[metric][:, step]
    low, high = percentiles95(bootstrap_means(differences, key)).tolist()
    gains = differences if better == "higher" else -differences
    won, lost, tied = (kind.double().mean().item() for kind in (gains > 0, gains < 0, gains == 0))
    steps = (a.steps[step], b.steps[step])
    return Comparison(metric, better, steps, differences, differences.mean().item(), (low, high), won, lost, tied)
