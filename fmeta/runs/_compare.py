"""Several runs on the same test tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fmeta._errors import InputError, nearest
from fmeta.evaluation import Comparison, Evaluation
from fmeta.evaluation import compare as compare_evaluations
from fmeta.runs._experiment import Experiment
from fmeta.runs._load import Trained, load, measure


class RunsCompared(NamedTuple):
    """Evaluations of several runs on the same tasks, and each one's difference to the first, task by task."""

    metric: str
    results: dict[str, Evaluation]  # by folder
    differences: dict[str, Comparison]  # by folder, the first among them


def compare(
    runs: Sequence[str | Path],
    *,
    tasks: int | None = None,
    metric: str | None = None,
    checkpoint: str = "last",
    device: str | None = None,
    data_dir: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunsCompared:
    """Evaluates runs on the test tasks of the first, and compares each with it, task by task.

        found = fmeta.runs.compare(["runs/maml", "runs/protonet"], tasks=600)
        found.differences["runs/protonet"].interval

    Args:
        runs: folders of two or more runs.
        tasks: test tasks; None is the first run's number.
        metric: what to compare, after the last of each run's steps; None is the recipe's headline figure.
        checkpoint: "last", "best", or the number of a step, of every run.
        device: where to run; None is each run's.
        data_dir: where the data is now; None is each run's.
        tell: takes a line for people before each run is measured.

    Raises:
        InputError: fewer than two runs, runs of other domains, splits, ways or shots, an unknown metric.
    """
    folders = list(dict.fromkeys(str(run) for run in runs))
    if len(folders) < 2:
        raise InputError(f"compare(runs={folders}): expected the folders of two or more runs")
    loaded = {f: load(f, checkpoint=checkpoint, device=device, data_dir=data_dir) for f in folders}
    first = loaded[folders[0]].experiment
    for folder, trained in loaded.items():
        _check_fits(folder, trained.experiment, first)
    count = first.run.eval_tasks if tasks is None else tasks
    if count < 2:
        raise InputError(f"compare(tasks={tasks}): expected at least 2, for an interval")
    name = metric or first.recipe.metric.name
    results = {folder: _measured(folder, trained, count, first, name, tell) for folder, trained in loaded.items()}
    reference = results[folders[0]]
    return RunsCompared(
        name, results, {folder: compare_evaluations(result, reference, name) for folder, result in results.items()}
    )


def _measured(
    folder: str, trained: Trained, tasks: int, source: Experiment, metric: str, tell: Callable[[str], None] | None
) -> Evaluation:
    if tell is not None:
        tell(f"testing {folder} on {tasks} tasks")
    result = measure(trained, tasks, source=source, tell=tell)
    if metric not in result.values:
        raise InputError(f"compare(metric={metric!r}): run {folder!r} has none; {nearest(metric, result.values)}")
    return result


def _check_fits(folder: str, of: Experiment, first: Experiment) -> None:
    free = {"seed", *first.recipe.own_facts}
    own, expected = (
        {n: v for n, v in e.facts().items() if n not in free} | ({"tests on": e.learner.tests_on} if e.learner else {})
        for e in (of, first)
    )
    differ = [n for n in own | expected if own.get(n) != expected.get(n)]
    if differ:
        listed = ", ".join(f"{n} {own.get(n)!r} where the first run has {expected.get(n)!r}" for n in differ)
        raise InputError(
            f"compare(run {folder!r}): {listed}; expected the tasks of the first run; compare runs of one domain, "
            "split, ways and shots"
        )
