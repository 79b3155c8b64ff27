"""A trained run on examples of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmeta.core import Examples, InputError, Learner, Tree, key, trajectory
from fmeta.core.tree import named_leaves
from fmeta.evaluation import class_shares
from fmeta.operators._over_tasks import over_tasks
from fmeta.tasks import ClassData, image_folder, read_images
from fmeta.tasks._class_data import look_up
from fmeta.tasks._images import OnError, is_image


class Predictions(NamedTuple):
    """What the query examples are."""

    names: tuple[str, ...]  # [class]
    probabilities: Tensor  # [query, class]
    files: tuple[Path, ...]  # [query] where the queries were files, else ()

    def labels(self) -> list[str]:
        """The most probable class of each query example."""
        return [self.names[i] for i in self.probabilities.argmax(-1).tolist()]


class Adapted(NamedTuple):
    """A learner that has seen a support set."""

    recipe: Any
    learner: Learner
    meta: Tree
    fast: Tree
    support: Examples
    names: tuple[str, ...]  # [class]

    def predict(
        self, queries: str | Path | Sequence[str | Path] | Tensor, *, on_error: OnError = "raise"
    ) -> Predictions:
        """The classes of any number of query examples.

        Each is judged beside the support set alone, so that no answer depends on what else is asked, in networks with
        batch statistics too.

        Args:
            queries: image files, a folder that is searched for them, or a tensor as the support's.
            on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

        Raises:
            InputError: no images, images that do not decode, a tensor of another shape than the support's.
        """
        files: tuple[Path, ...] = ()
        if isinstance(queries, Tensor):
            x = queries
        else:
            size, channels = self.support.x.shape[-1], self.support.x.shape[1]
            pixels, found = read_images(_files(queries), size=size, channels=channels, on_error=on_error)
            x, files = self.recipe.pictures(pixels), tuple(found)
        expected = self.support.x.shape[1:]
        if x.ndim != self.support.x.ndim or x.shape[1:] != expected or not x.is_floating_point():
            raise InputError(
                f"predict: queries are {x.dtype} {list(x.shape)}; expected floats [query, "
                f"{', '.join(map(str, expected))}], as the support set; resize them, or pass the image files"
            )
        x = x.to(self.support.x)

        def one(query: Tensor) -> Tensor:
            beside = torch.cat([self.support.x, query[None]])
            return self.learner.predict(self.fast, self.meta, beside)[-1, : len(self.names)]

        with torch.no_grad():
            scores = torch.cat([over_tasks(one, shared=())(part) for part in x.split(64)])
        return Predictions(self.names, class_shares(self.learner, scores).cpu(), files)


def adapt(
    run: str | Path,
    support: str | Path | ClassData,
    *,
    checkpoint: str = "last",
    steps: int | None = None,
    device: str | None = None,
    on_error: OnError = "raise",
) -> Adapted:
    """A trained run, adapted to a few examples of new classes.

        adapted = fmeta.adapt("runs/NAME", "pictures/support")
        print(adapted.predict("pictures/new").labels())

    Args:
        run: the folder of a run of an image recipe (`fmeta train omniglot`, `fmeta train glyphs`).
        support: a folder with a folder of images for each class, or `ClassData`. Any number of images in each class.
            A learner with a head takes as many classes as it was trained with, or fewer; one that compares takes any.
        checkpoint: "last", "best", or the number of a step.
        steps: inner steps to take; None is the last that the recipe tests after.
        device: where to run; None is the recipe's.
        on_error: what to do about files that do not decode: "raise", or "skip" them with one warning.

    Raises:
        InputError: no run of an image recipe; fewer than two classes, or more than the head has; what `image_folder`
            refuses; data of another shape than the run's.
    """
    from fmeta.cli._recipes import Images  # here, because the command line's libraries take a second to import
    from fmeta.cli._trained import LoadOptions, load

    trained = load(Path(run), LoadOptions(checkpoint=checkpoint, device=device))
    recipe, here = trained.recipe, f"adapt(run={str(run)!r})"
    if not isinstance(recipe, Images):
        raise InputError(f"{here}: a run of the recipe {recipe.name}; expected one that classifies images")
    if recipe.learner == "mann":
        raise InputError(
            f"{here}: a run of mann, which reads streams and takes no support set; expected another learner"
        )
    data = support if isinstance(support, ClassData) else _folder(recipe, support, on_error)
    shape = (1, recipe.size, recipe.size)
    shapes = {name: list(leaf.shape[1:]) for name, leaf in named_leaves(data.examples).items()}
    if shapes != {"": list(shape)} or bool(data.turns.any()):
        came = ", ".join(f"{name} {found}" if name else f"{found}" for name, found in shapes.items())
        raise InputError(f"{here}: the support set has shape {came}; expected {list(shape)}, as the run's")
    ways = len(data.names)
    if ways < 2 or (ways > recipe.ways and not recipe.encodes):
        most = "any number" if recipe.encodes else f"at most {recipe.ways}, the outputs of its {recipe.learner}"
        raise InputError(f"{here}: the support set has {ways} classes; expected at least 2 and {most}")
    if recipe.encodes:
        recipe = dataclasses.replace(recipe, ways=ways)
    learner = recipe.build_learner()
    data = data.to(recipe.where())
    rows = torch.cat([torch.arange(s, s + n) for s, n in zip(data.start.tolist(), data.size.tolist(), strict=True)])
    labels = torch.arange(ways, device=data.size.device).repeat_interleave(data.size)
    examples = Examples(look_up(data, rows.to(labels.device), None), labels)
    with torch.no_grad():
        own = key(0, recipe.where())
        if learner.inner is None:
            fast = learner.adapt(trained.meta, examples, own)
        else:
            taken = max(recipe.eval_steps) if steps is None else steps
            fast = trajectory(learner.inner, taken)(trained.meta, examples, own)[-1]
    return Adapted(recipe, learner, trained.meta, fast, examples, data.names)


def _folder(recipe: Any, path: str | Path, on_error: OnError) -> ClassData:
    data = image_folder(path, size=recipe.size, channels=1, on_error=on_error)
    return data._replace(examples=recipe.pictures(data.examples))


def _files(queries: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(queries, str | Path):
        path = Path(queries)
        if not path.is_dir():
            return [path]
        found = sorted(p for p in path.rglob("*") if is_image(p.name))
        if not found:
            raise InputError(f"predict({str(queries)!r}): holds no images; expected image files, in any folder below")
        return found
    return [Path(q) for q in queries]
