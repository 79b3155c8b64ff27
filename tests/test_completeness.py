"""Nothing public is left out: of the laws, and of its package's chapter."""

import importlib
import importlib.util
import inspect
import re
import typing
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import LEARNERS

import fmeta
from fmeta.core import Learner, MetaGradient, Model
from fmeta.core._types import PartialSampler
from fmeta.tasks import ClassData
from fmeta.testing import strategies
from fmeta.testing._case import Case, admitted

TESTS = Path(__file__).parent
KEY = fmeta.key(0)

KINDS = {  # package -> what its public functions return that must not be left out
    "learners": (Learner,),
    "gradients": (MetaGradient,),
    "models": (Model,),
    "tasks": (PartialSampler, ClassData),
}

# what neither the table of laws nor the strategies hold, and the reason; a test that is named there must name it
EXEMPT = {
    "encoder_based": "makes the learners without an inner loop that have rows",
    "with_inner": "exchanges the inner problem of a learner that has a row",
    "starting_from": "a learner that has a row, begun elsewhere: learners/test_fine_tune.py",
    "chunked": "another meta-gradient, slice by slice: execution/test_auto.py",
    "skipping": "another meta-gradient, without tasks that are not finite: gradients/test_skipping.py",
    "backbone": "from_module of a timm network: models/test_transfer.py",
    "conv2": "too slow for finite differences: models/test_models.py",
    "resnet12": "too slow for finite differences: models/test_models.py",
    "batches": "feeds supervised, which has a row: learners/test_fine_tune.py",
    "sampler": "makes sources of one's own: tasks/test_episodes.py",
    "linear": "has a closed form: tasks/test_linear.py",
    "sinusoid": "draws, learns nothing: tasks/test_sinusoid.py",
    "episodes": "draws, learns nothing: tasks/test_episodes.py",
    "variable_episodes": "draws, learns nothing: tasks/test_variable.py",
    "multi_domain": "draws, learns nothing: tasks/test_multi_domain.py",
    "class_data": "holds data: tasks/test_episodes.py",
    "from_labels": "holds data: tasks/test_episodes.py",
    "select_classes": "holds data: tasks/test_episodes.py",
    "split_classes": "holds data: tasks/test_trees_of_rows.py",
    "image_splits": "reads by image_folder, cuts by split_classes",
    "glyphs": "holds data: tasks/test_glyphs.py",
    "omniglot": "holds data: tasks/test_omniglot.py",
    "mini_imagenet": "holds data: tasks/test_mini_imagenet.py",
    "image_folder": "holds data: tasks/test_image_folder.py",
}


def concerned(package, kinds):
    """The public functions of a package that return one of these, by name."""
    public = {name: getattr(package, name) for name in package.__all__}
    returned = {n: typing.get_type_hints(f).get("return") for n, f in public.items() if inspect.isfunction(f)}
    return [name for name, kind in returned.items() if kind in kinds or (is_source(kind) and PartialSampler in kinds)]


def is_source(kind):
    return isinstance(kind, type) and issubclass(kind, PartialSampler)


def held_to_the_laws():
    """Every learner with a row, every meta-gradient that a row admits, and what rows and strategies are made of."""
    learners = {word for name in LEARNERS for word in (name, name.split("-")[0], LEARNERS[name].learner.name)}
    gradients = set()
    for learner, sample, _ in LEARNERS.values():
        gradients |= set(admitted(Case(learner, learner.init(KEY), sample(KEY))))
    sources = [(TESTS / "helpers.py").read_text(encoding="utf-8"), inspect.getsource(strategies)]
    return learners | gradients | set(re.findall(r"fmeta\.(?:\w+\.)?(\w+)\(", "\n".join(sources)))


def in_chapter(name, package):
    return re.search(rf"`{name}[`(]", package.__doc__ or "")


def left_out(package, kinds, held):
    """What is wrong with a package, line by line."""
    for name in concerned(package, kinds):
        if name not in held and name not in EXEMPT:
            yield (
                f"{name}: no row in LEARNERS of tests/helpers.py, not in fmeta/testing (strategies, or _case for a "
                "meta-gradient), no reason in EXEMPT of tests/test_completeness.py"
            )
        if not in_chapter(name, package):
            yield f"{name}: not in the docstring of {package.__name__}, its chapter of the manual"


@pytest.mark.parametrize("package", KINDS)
def test_nothing_is_left_out(package):
    missing = list(left_out(importlib.import_module(f"fmeta.{package}"), KINDS[package], held_to_the_laws()))
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("package", KINDS)
def test_one_that_is_left_out_is_named(package):
    def made_up(): ...

    made_up.__annotations__["return"] = KINDS[package][0]
    module = SimpleNamespace(__all__=["made_up"], __name__=f"fmeta.{package}", __doc__="Nothing.", made_up=made_up)
    law, chapter = left_out(module, KINDS[package], held_to_the_laws())
    assert law.startswith("made_up: no row")
    assert chapter.startswith("made_up: not in the docstring")


def test_exemptions_are_needed_and_true():
    held = held_to_the_laws()
    public = {name for p, kinds in KINDS.items() for name in concerned(importlib.import_module(f"fmeta.{p}"), kinds)}
    for name, reason in EXEMPT.items():
        assert name in public, f"{name} is exempt and not public"
        assert name not in held, f"{name} is exempt and held to the laws"
        for test in re.findall(r"[\w/]+\.py", reason):
            assert re.search(rf"\b{name}\b", (TESTS / test).read_text(encoding="utf-8")), f"{test} does not name {name}"


def test_every_recipe_is_in_its_chapter():
    """Ours; another package documents its own."""
    if importlib.util.find_spec("fmeta.recipes") is None:
        pytest.skip("there is no package fmeta.recipes")
    recipes = [e.name for e in entry_points(group="fmeta.recipes") if e.value.startswith("fmeta.")]
    chapter = importlib.import_module("fmeta.recipes")
    assert recipes, "fmeta.recipes is there, and no entry point names a recipe of it; is fmeta installed anew?"
    for name in recipes:
        assert in_chapter(name, chapter), f"{name}: not in the docstring of fmeta.recipes, its chapter of the manual"


@pytest.mark.parametrize("name", ["uniform", "normal", "randint", "permutation", "choice", "bits"])
def test_every_way_to_draw_a_number_is_at_the_top(name):
    """Who writes a sampler needs them first."""
    assert name in fmeta.__all__
    assert getattr(fmeta, name) is getattr(fmeta.core, name)
    assert in_chapter(name, fmeta.core)
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"`(fmeta\.)?{name}`", readme)
