"""What classes add to an evaluation: precision, recall, F1 and calibration."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Learner, Output, Tree
from fmeta.core._checks import check_labels
from fmeta.evaluation._intervals import bootstrap_means, percentiles95

_BINS = 15


class Calibration(NamedTuple):
    """The expected calibration error of the query predictions, per number of adaptation steps.

    The confidence of a prediction is its probability. With 15 bins of confidence, (0, 1/15] … (14/15, 1], it is the sum
    over bins of |Σ confidence − number correct| / examples, over the examples of all tasks together (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599).
    """

    gap: Tensor  # float64 [task, step, bin] Σ confidence − number correct
    examples: Tensor  # float64 [task]

    def error(self) -> list[float]:
        return (self.gap.sum(0).abs().sum(-1) / self.examples.sum()).tolist()

    def interval(self) -> list[list[float]]:
        """The 95% percentile bootstrap over tasks, low and high. Small errors are overestimated, in resamples too.

        Raises InputError for a single task.
        """
        sums = bootstrap_means(torch.cat([self.gap.flatten(1), self.examples[:, None]], 1))
        gaps = sums[:, :-1].unflatten(1, self.gap.shape[1:])
        return percentiles95(gaps.abs().sum(-1) / sums[:, -1:]).T.tolist()

    def summary(self) -> dict[str, Any]:
        return {"pooled": self.error(), "interval95": self.interval() if len(self.examples) > 1 else None}


class Judged(NamedTuple):
    """Class predictions of some tasks, judged. A label of -1 stands for a weight of 0, or for a prediction of NaN."""

    values: dict[str, Tensor]  # "precision", "recall", "f1" -> [task, step]
    calibration: Calibration
    truth: Tensor  # int64 [task, example] labels
    predicted: Tensor  # int64 [task, example] labels, after the last of the steps


def predict_classes(learner: Learner, fast: Tree, meta: Tree, x: Tree, ways: int) -> Tensor:
    """The prediction of one task, `[example, way]`."""
    prediction = learner.predict(fast, meta, x)
    if not isinstance(prediction, Tensor) or prediction.ndim != 2 or prediction.shape[1] != ways:
        came = list(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
        raise InputError(
            f"evaluate(ways={ways}): {learner.name} predicts {came}; expected scores of classes "
            f"[example, {ways}]; set ways to the classes of a task, or leave it out where there are none"
        )
    return prediction


def class_shares(learner: Learner, prediction: Tensor) -> Tensor:
    """The probability of each class, `[..., way]`, by what the learner's predictions mean (`Learner.output`).

    "probabilities" are made to sum to 1; all else is taken for logits.
    """
    return _shares(prediction, learner.output)


def _shares(prediction: Tensor, output: Output) -> Tensor:
    return prediction / prediction.sum(-1, keepdim=True) if output == "probabilities" else prediction.softmax(-1)


def judge(prediction: Tensor, query: Examples, ways: int, output: Output = "logits") -> Judged:
    """Predictions `[task, step, example, way]` against the labels of a batch of tasks, `[task, example]`."""
    from torchmetrics.functional import classification  # takes seconds to import

    check_labels(f"evaluate(ways={ways})", query.y.flatten(), ways)
    truth = query.y.to(torch.int64)
    if isinstance(query.weight, Tensor):
        truth = torch.where(query.weight == 0, -1, truth)
    label, confidence = _decide(_shares(prediction.double(), output))
    expected = truth[:, None].expand_as(label)

    rows = expected.flatten(0, 1)
    present = torch.stack([(rows == way).any(-1) for way in range(ways)], -1)
    measures = {
        "precision": classification.multiclass_precision,
        "recall": classification.multiclass_recall,
        "f1": classification.multiclass_f1_score,
    }
    values = {}
    for name, measure in measures.items():
        of_class = measure(
            torch.where(label < 0, ways, label).flatten(0, 1),  # one class more, which is never right
            rows,
            num_classes=ways + 1,
            average="none",
            multidim_average="samplewise",
            ignore_index=-1,
            validate_args=False,
        )
        mean = torch.where(present, of_class[:, :ways].double(), 0.0).sum(-1) / present.sum(-1)
        values[name] = mean.unflatten(0, label.shape[:2])
    return Judged(values, _calibrate(confidence, label, expected), truth, label[:, -1])


def _decide(shares: Tensor) -> tuple[Tensor, Tensor]:
    """The label and its probability. Where one is NaN, -1 and NaN: torch's argmax would take the NaN for best."""
    confidence, label = shares.max(-1)
    return torch.where(confidence.isnan(), -1, label), confidence


def _calibrate(confidence: Tensor, label: Tensor, expected: Tensor) -> Calibration:
    counted = expected >= 0
    over = torch.where(counted, confidence - (label == expected).double(), 0.0)
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=confidence.device)
    bins = torch.bucketize(confidence, edges[1:-1])
    gap = over.new_zeros(*over.shape[:2], _BINS).scatter_add_(-1, bins, over)
    return Calibration(gap, counted[:, 0].sum(-1).double())
