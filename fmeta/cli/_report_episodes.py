"""Sample episodes of a report: what the learner saw, what it was asked, and what it said."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fmeta.cli._trained import Trained
from fmeta.core import Task, Tree, trajectory, tree
from fmeta.evaluation import class_shares

_SUPPORT, _QUERY = 5, 20  # pictures of a class, of an episode, at most


class Answer(NamedTuple):
    picture: str  # data URI
    truth: str
    predicted: str
    probability: float
    right: bool


class Episode(NamedTuple):
    support: dict[str, list[str]]  # class -> pictures
    answers: list[Answer]
    left_out: int  # query pictures that are not shown


def sample_episodes(trained: Trained, count: int) -> list[Episode]:
    """The first test tasks of a recipe of images, as the evaluation judges them."""
    tasks, classes = trained.recipe.test_tasks(count), trained.recipe.test_classes(count)
    found = []
    for i in range(count):
        task = tree.tree_map(lambda t, i=i: t[i], tasks)
        found.append(_episode(trained, task, [classes[1][c] for c in classes[0][i].tolist()] if classes else None))
    return found


def _episode(trained: Trained, task: Task, names: list[str] | None) -> Episode:
    with torch.no_grad():
        prediction = trained.learner.predict(_adapted(trained, task), trained.meta, task.query.x)
    names = names or [f"class {way}" for way in range(prediction.shape[-1])]
    probability, label = class_shares(trained.learner, prediction).max(-1)
    label = torch.where(probability.isnan(), -1, label)  # what is not a number is no answer
    asked = task.query.x[0] if isinstance(task.query.x, tuple) else task.query.x  # a stream's inputs
    answers = [
        Answer(_png(picture), names[truth], [*names, "nothing"][said], share, truth == said)
        for picture, truth, said, share in zip(
            asked[:_QUERY], *(t[:_QUERY].tolist() for t in (task.query.y, label, probability)), strict=True
        )
    ]
    return Episode(_support(task, names), answers, max(0, len(asked) - _QUERY))


def _support(task: Task, names: list[str]) -> dict[str, list[str]]:
    if not isinstance(task.support.y, Tensor):
        return {}
    of_class = {name: task.support.x[task.support.y == way] for way, name in enumerate(names)}
    return {name: [_png(picture) for picture in pictures[:_SUPPORT]] for name, pictures in of_class.items()}


def _adapted(trained: Trained, task: Task) -> Tree:
    """What the learner makes of a task after the last of the recipe's steps."""
    learner = trained.learner
    if learner.inner is None:
        return learner.adapt(trained.meta, task.support, task.key)
    return trajectory(learner.inner, trained.recipe.eval_steps[-1])(trained.meta, task.support, task.key)[-1]


def _png(picture: Tensor) -> str:
    """`[1, height, width]`, ink 1 on paper 0, as dark ink on white paper."""
    pixels = ((1.0 - picture[0].clamp(0, 1)) * 255).round().to(torch.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
