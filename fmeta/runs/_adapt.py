"""A trained run on examples of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta._errors import InputError
from fmeta.core import Examples, Learner, Tree, key, trajectory, tree
from fmeta.evaluation import class_shares
from fmeta.operators import over_tasks
from fmeta.runs._experiment import Experiment, fields_in
from fmeta.runs._folder import shapes_of
from fmeta.runs._load import load
from fmeta.runs._recipe import OnError, Queries, Recipe, Support


class Predictions(NamedTuple):
    """What the query examples are."""

    names: tuple[str, ...]  # [class]; () where the learner predicts values
    probabilities: Tensor  # [query, class]; the predicted values, [query, ...], where there are no classes
    queries: tuple[str, ...]  # [query] what each is called, such as its file; () for inputs that came as tensors

    def labels(self) -> list[str]:
        """The most probable class of each query example; "nothing" where its probabilities are no numbers.

        Raises InputError where the learner predicts values.
        """
        if not self.names:
            raise InputError("labels: these predictions are values and have no classes; read them in probabilities")
        best = torch.where(self.probabilities.isnan().any(-1), -1, self.probabilities.argmax(-1))
        return [[*self.names, "nothing"][i] for i in best.tolist()]


class Adapted(NamedTuple):
    """A learner that has seen a support set."""

    recipe: Recipe
    learner: Learner
    meta: Tree
    fast: Tree
    support: Examples
    names: tuple[str, ...]  # [class]

    def predict(self, queries: str | Path | Tree, *, on_error: OnError = "raise") -> Predictions:
        """What the learner says of any number of query examples.

        Each is judged beside the support set alone, so that no answer depends on what else is asked, in networks with
        batch statistics too.

        Args:
            queries: a path that the recipe reads (an image file, a folder of them), or inputs as the support's.
            on_error: what to do about files that cannot be read: "raise", or "skip" them with one warning.

        Raises:
            InputError: nothing to read there, files that cannot be read, inputs of another shape than the support's.
        """
        found = self.recipe.read_queries(queries, on_error) if isinstance(queries, str | Path) else Queries(queries, ())
        x, seen = found.x, self.support.x
        shapes = [
            {n: (tuple(t.shape[1:]), t.is_floating_point()) for n, t in tree.named_leaves(u).items()} for u in (x, seen)
        ]
        if shapes[0] != shapes[1]:
            came, expected = (
                ", ".join(f"{n} {list(s)}".strip() + ("" if f else " of integers") for n, (s, f) in each.items())
                for each in shapes
            )
            raise InputError(
                f"predict: queries are [query, …] of {came}; expected {expected}, as the support set; bring them to "
                "that shape, or pass the files"
            )
        x = tree.tree_map(lambda t, s: t.to(s), x, seen)

        def one(query: Tree) -> Tree:
            beside = tree.tree_map(lambda s, q: torch.cat([s, q[None]]), seen, query)
            return tree.tree_map(lambda t: t[-1], self.learner.predict(self.fast, self.meta, beside))

        parts = []
        count = len(tree.tree_leaves(x)[0])
        with torch.no_grad():
            for begin in range(0, count, 64):
                parts.append(over_tasks(one, shared=())(tree.tree_map(lambda t, b=begin: t[b : b + 64], x)))
            said = torch.cat(parts)
            if self.names:
                said = class_shares(self.learner, said[..., : len(self.names)])
        return Predictions(self.names, said.cpu(), found.names)


def adapt(
    run: str | Path,
    support: str | Path | Support,
    *,
    checkpoint: str = "last",
    steps: int | None = None,
    device: str | None = None,
    on_error: OnError = "raise",
) -> Adapted:
    """A trained run, adapted to a few examples of one's own.

        adapted = fmeta.adapt("runs/NAME", "pictures/support")
        print(adapted.predict("pictures/new").labels())

    Args:
        run: the folder of a run whose recipe reads one's own data.
        support: what the recipe reads (a folder with a folder of pictures for each class), or `Support(examples,
            names)`. Any number of examples in each class. A learner with a head takes as many classes as it was trained
            with, or fewer; one that compares takes any.
        checkpoint: "last", "best", or the number of a step.
        steps: inner steps to take; None is the last that the run tests after.
        device: where to run; None is the run's.
        on_error: what to do about files that cannot be read: "raise", or "skip" them with one warning.

    Raises:
        InputError: no run there, a recipe that reads no data, fewer than two classes or more than the head has, a
            learner that takes no support set.
    """
    trained, here = load(run, checkpoint=checkpoint, device=device), f"adapt(run={str(run)!r})"
    of = trained.experiment
    expected = trained.run.support
    if expected is None:
        expected = shapes_of(tree.tree_map(lambda t: t[0], of.test_tasks(1).support.x))
    if not expected:
        raise InputError(
            f"{here}: a run of {trained.learner.name}, which takes no support set; expected another learner"
        )
    if steps is not None and trained.learner.inner is None:
        raise InputError(f"adapt(steps={steps}): {trained.learner.name} takes no inner steps; leave steps out")
    given = support if isinstance(support, Support) else of.recipe.read_support(support, on_error)
    came = shapes_of(given.examples.x)
    if came != expected:
        raise InputError(f"{here}: the support set has {_said(came)}; expected {_said(expected)}, as the run's")
    learner = trained.learner
    if given.names:
        of = _with_ways(here, of, len(given.names))
        learner = of.build_learner()
    place = of.device()
    examples = tree.tree_map(lambda t: t.to(place), given.examples)
    own = key(0, place)
    with torch.no_grad():
        if learner.inner is None:
            fast = learner.adapt(trained.meta, examples, own)
        else:
            taken = max(of.run.eval_steps) if steps is None else steps
            (fast,) = trajectory(learner.inner, at=(taken,))(trained.meta, examples, own)
    return Adapted(of.recipe, learner, trained.meta, fast, examples, given.names)


def _with_ways(here: str, of: Experiment, ways: int) -> Experiment:
    """The experiment for so many classes, where its learner compares; checked where it has a head."""
    recipe = of.recipe
    trained = recipe.offer().ways if of.learner is not None else ways
    compares = of.learner is not None and "classes" in of.learner.needs
    changeable = compares and "ways" in (field.name for field in fields_in(recipe))
    if ways < 2 or (ways > trained and not changeable):
        most = "any number" if changeable else f"at most {trained}, as it was trained with"
        raise InputError(f"{here}: the support set has {ways} classes; expected at least 2 and {most}")
    return of.changed(ways=ways) if changeable else of


def _said(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} of shape {shape}".removeprefix(" of ") for name, shape in shapes.items())
