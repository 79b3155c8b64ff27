"""`experiment`: a recipe, a learner, a meta-gradient and a run's options, each with its own."""

import dataclasses
import pathlib
import re

import pytest
import torch

import fmeta
from fmeta.core import InputError
from fmeta.recipes import Glyphs, Sinusoid
from fmeta.runs import GradientRow, LearnerRow, OptionError, experiment
from fmeta.runs._gradient_rows import GRADIENTS
from fmeta.runs._learner_rows import LEARNERS
from fmeta.runs._rows import offered


def phases(recipe, **options):
    of = experiment(recipe, **options)
    return of.phases(of.build_learner())


def test_maml_plus_plus_weighs_all_steps_under_any_meta_gradient():
    """Named on the command line, unrolled is what the learner has of itself; the option gives any learner the same."""
    many = {"hidden": (4,), "inner_steps": 3}
    own = phases("sinusoid", learner="maml_plus_plus", **many)
    assert own == {0: fmeta.unrolled(fmeta.multi_step(3))}
    assert phases("sinusoid", learner="maml_plus_plus", gradient="unrolled", **many) == own
    annealed = phases("sinusoid", learner="maml_plus_plus", gradient="adjoint", first_order_until=5, **many)
    assert annealed == {0: fmeta.first_order(fmeta.multi_step(3)), 5: fmeta.adjoint(fmeta.multi_step(3))}
    assert phases("sinusoid", multi_step=True, **many) == own
    assert phases("sinusoid", **many) == {0: fmeta.unrolled()}
    assert phases("sinusoid", learner="maml_plus_plus", multi_step=False, **many) == {0: fmeta.unrolled()}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_is_made_of_what_glyphs_offer_by_its_name_alone(name):
    of = experiment("glyphs", learner=name, width=4, drawings=2)
    tasks = fmeta.core.tree.tree_map(lambda t: t[:2], of.validation(2))
    learner = of.build_learner()
    assert name in (learner.name, LEARNERS[name].name)
    assert type(of.phases(learner)[0]) is type(learner.gradient)
    assert of.gradient.name == LEARNERS[name].gradient
    meta = learner.init(of.key())
    assert (
        fmeta.evaluate(learner, meta, tasks, steps=(1,) if learner.inner else None).values["accuracy"].isfinite().all()
    )


def test_learners_that_a_recipe_cannot_have_are_not_offered():
    assert offered(Glyphs).keys() == LEARNERS.keys()
    assert not {"protonet", "mann", "transfer"} & offered(Sinusoid).keys()
    with pytest.raises(OptionError, match="recipe sinusoid gives no batches, classes, features"):
        experiment("sinusoid", learner="transfer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 9}, "context=9: maml with unrolled does not take it; expected it with cavia"),
        ({"learner": "cavia", "damping": 1.0}, "cavia with unrolled does not take it; expected it with imaml"),
        ({"gradient": "evolution", "last": 2}, "maml with evolution does not take it; expected it with truncated"),
        ({"sigma": 0.1}, "sigma=0.1: maml with unrolled does not take it; expected it with evolution"),
        ({"iner_lr": 0.1}, "no such option here; did you mean 'inner_lr'?"),
        ({"maml.context": 3}, "maml.context=3: no such option here"),
        ({"inner_lr": "fast"}, "inner_lr='fast': "),
        ({"hidden": 4}, "hidden=4: "),
        ({"compile": "hole"}, "compile='hole': did you mean 'whole'?"),
        ({"gradient": "unroled"}, "gradient='unroled': did you mean 'unrolled'?"),
    ],
)
def test_what_no_chosen_part_takes_is_refused(options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        experiment("sinusoid", **options)


def test_an_addressed_option_is_for_its_learner_alone():
    for name, rate in {"maml": 0.3, "anil": 0.2}.items():
        assert (
            experiment("sinusoid", learner=name, inner_lr=0.2, **{"maml.inner_lr": 0.3}).options()["inner_lr"] == rate
        )


def test_another_learner_keeps_what_it_takes_and_drops_the_rest():
    of = experiment("sinusoid", learner="cavia", context=7, hidden=(3,), seed=5)
    other = of.changed(learner="reptile")
    assert (other.learner.name, other.gradient.name) == ("reptile", "difference")
    assert (other.recipe.hidden, other.run.seed) == ((3,), 5)
    assert "context" not in other.options()
    assert of.changed(context=8).options() == {**of.options(), "context": 8}


def test_the_fingerprint_is_of_what_decides_the_run():
    of = experiment("omniglot", shots=2)
    assert of.digest() == experiment("omniglot", shots=2).digest()
    assert of.digest() == of.changed(data_dir="elsewhere", device="cpu", eval_tasks=7, log_every=3).digest()
    others = [of.changed(**o) for o in ({"shots": 3}, {"seed": 1}, {"learner": "anil"}, {"gradient": "adjoint"})]
    assert len({e.digest() for e in (of, *others)}) == 5


def test_auto_norms_fit_the_learner():
    """Batch statistics where they may be, the example's own where a learner must see each by itself."""
    usual, own = experiment("glyphs"), experiment("glyphs", norm="group")
    assert usual.recipe.norm == "auto"
    assert "norm" not in usual.facts()
    assert own.facts()["norm"] == "group"
    x = torch.rand(6, 1, 28, 28)

    def looks_at_others(of, beside):
        net = of.offer().network(beside=beside)
        params = net.init(of.key())
        return not torch.allclose(net.apply(params, x)[:1], net.apply(params, x[:1]), atol=1e-5)

    assert looks_at_others(usual, "support")
    assert not looks_at_others(usual, "nothing")
    with pytest.raises(InputError, match="norm='batch': not with this learner: it must see each example by itself"):
        experiment("glyphs", learner="mann", norm="batch").build_learner()


def test_rows_bear_the_names_of_their_tables():
    assert all(row.name == name and row.__doc__ for table in (LEARNERS, GRADIENTS) for name, row in table.items())


def test_a_row_that_builds_nothing_is_named(monkeypatch):
    unfinished = type("Unfinished", (LearnerRow,), {"name": "unfinished"})
    monkeypatch.setitem(LEARNERS, "unfinished", unfinished)
    with pytest.raises(InputError, match=r"learner row Unfinished: it has no build\(offer\); expected one that"):
        experiment("sinusoid", learner="unfinished").build_learner()
    unweighed = type("Unweighed", (GradientRow,), {"name": "unweighed"})
    monkeypatch.setitem(GRADIENTS, "unweighed", unweighed)
    with pytest.raises(InputError, match=r"meta-gradient row Unweighed: it has no build\(steps\); expected one that"):
        phases("sinusoid", gradient="unweighed")


def test_another_meta_gradient_leaves_the_learners_options_as_they_are():
    of = fmeta.runs.experiment("sinusoid", inner_lr=0.5, inner_steps=3)
    changed = of.changed(gradient="adjoint")
    assert (changed.learner, changed.gradient.name) == (of.learner, "adjoint")
    assert of.changed(learner="reptile").gradient.name == "difference"


def test_what_a_network_has_not_is_no_option_of_it():
    for options in ({"norm": "task"}, {"width": 7}):
        with pytest.raises(fmeta.InputError, match="conv2 has none to choose; leave it out"):
            fmeta.runs.experiment("glyphs", network="conv2", **options).build_learner()


def test_an_option_that_json_cannot_hold_is_refused_by_name():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd(fmeta.recipes.Sinusoid):
        where: pathlib.Path = pathlib.Path()

    with pytest.raises(fmeta.InputError, match="recipe sinusoid: its option 'where' is a Path; expected text"):
        fmeta.runs.experiment(Odd)


def test_a_grid_of_a_stored_experiment_keeps_each_learners_own_defaults():
    of = fmeta.runs.experiment("sinusoid", inner_lr=0.2)
    points = fmeta.runs.grid(of, {"learner": ["maml", "reptile", "maml_plus_plus"]})
    found = {p.experiment.learner.name: p.experiment for p in points}
    assert found["reptile"].gradient.name == "difference"
    assert found["maml_plus_plus"].gradient.multi_step
    assert all(each.learner.inner_lr == 0.2 for each in found.values())


def test_no_points_and_no_seeds_are_refused(tmp_path):
    with pytest.raises(fmeta.InputError, match="expected at least one"):
        fmeta.runs.ablate([], tmp_path)
    points = fmeta.runs.grid(fmeta.runs.experiment("sinusoid"), {})
    with pytest.raises(fmeta.InputError, match=r"ablate\(seeds=0\)"):
        fmeta.runs.ablate(points, tmp_path, seeds=0)
    with pytest.raises(fmeta.InputError, match="no run to go on with"):
        fmeta.runs.train("sinusoid", resume=True)
