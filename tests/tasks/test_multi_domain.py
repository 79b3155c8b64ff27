"""Several sources: every example says which source it is from."""

import pytest
import torch

import fmeta
from fmeta import InputError
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.tasks import class_data, episodes, multi_domain, sampler, sinusoid


def marked(number, examples=4, **options):
    """Episodes of two features: the source's number, and the class."""
    classes = {str(c): torch.tensor([float(number), float(c)]).expand(examples, 2) for c in range(3)}
    return episodes(class_data(classes), **({"ways": 2, "shots": 1, "query": 2} | options))


SOURCES = {name: marked(i) for i, name in enumerate(("birds", "fungi", "signs"))}


def origins(tasks):
    """The source of each task, which all its examples share."""
    both = torch.cat([tasks.support.x, tasks.query.x], 1)[..., 0]
    assert (both == both[:, :1]).all()
    return both[:, 0].long()


def shares(tasks, count=3):
    return (torch.bincount(origins(tasks), minlength=count) / len(tasks.key)).tolist()


def test_each_task_is_whole_and_from_one_source_drawn_evenly():
    tasks = multi_domain(SOURCES)(fmeta.key(0), 3000)
    assert shares(tasks) == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / 3000) ** 0.5)
    assert tasks.support.x.shape == (3000, 2, 2)
    for i in (0, 1, 2, 3):  # a label means one class in support and query
        meaning = {int(y): float(x[1]) for x, y in zip(tasks.support.x[i], tasks.support.y[i], strict=True)}
        assert all(meaning[int(y)] == float(x[1]) for x, y in zip(tasks.query.x[i], tasks.query.y[i], strict=True))
    assert tasks.key.unique().numel() == 3000


def test_weights_are_proportions():
    tasks = multi_domain(SOURCES, weights={"signs": 5, "birds": 1, "fungi": 2})(fmeta.key(1), 4000)
    assert shares(tasks) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=4 * (0.25 / 4000) ** 0.5)


@pytest.mark.parametrize("left", SOURCES)
def test_a_source_left_out_gives_no_task(left):
    """The others keep their proportions."""
    number = list(SOURCES).index(left)
    tasks = multi_domain(SOURCES, leave_out=left, weights={"birds": 1.0, "fungi": 2.0, "signs": 3.0})(
        fmeta.key(2), 2000
    )
    weights = torch.tensor([1.0, 2.0, 3.0])
    weights[number] = 0.0
    assert shares(tasks) == pytest.approx((weights / weights.sum()).tolist(), abs=0.05)
    assert shares(tasks)[number] == 0


def test_a_task_does_not_depend_on_the_batch():
    """The same key gives the same tasks, and the first ones of a longer batch."""
    draw = multi_domain(SOURCES)
    long, short, other = (tree_leaves(draw(fmeta.key(s), n)) for s, n in ((3, 9), (3, 4), (4, 4)))
    assert all(torch.equal(a[:4], b) for a, b in zip(long, short, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(short, other, strict=True))


def test_two_sources_of_one_kind_draw_different_tasks():
    """Each source has a key of its own: no task of one comes again in the other."""
    one = sinusoid()
    tasks = multi_domain({"a": one, "b": one})(fmeta.key(5), 50)
    assert tasks.support.x[:, 0, 0].unique().numel() == 50
    assert tasks.key.unique().numel() == 50


def test_sources_run_compiled():
    draw = multi_domain(SOURCES, weights={"signs": 5, "birds": 1, "fungi": 2})
    run = fmeta.compile(lambda key: draw(key, 6), backend="aot_eager")
    for seed in range(2):
        found, expected = tree_leaves(run(fmeta.key(seed))), tree_leaves(draw(fmeta.key(seed), 6))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_learner_trains_on_all_but_one():
    """The loop of the docstring, one step each."""
    learner = fmeta.protonet(fmeta.models.mlp([2, 4]), ways=2, metrics={"accuracy": fmeta.accuracy})
    trainer = fmeta.trainer(learner, fmeta.adam(1e-2))
    for name in SOURCES:
        train, test = multi_domain(SOURCES, leave_out=name), SOURCES[name]
        state, _ = trainer.step(trainer.init(fmeta.key(0)), train(fmeta.key(1), 8))
        assert fmeta.evaluate(learner, state.meta, test(fmeta.key(2), 8)).values["accuracy"].shape == (8, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"leave_out": "sign"},
            r"multi_domain\(leave_out='sign'\): no such source; did you mean 'signs'\? known: birds",
        ),
        ({"weights": {"bird": 1.0}}, r"multi_domain\(weights=…\): no source 'bird'; did you mean 'birds'"),
        ({"weights": {"birds": 1.0, "signs": 1.0}}, "'fungi' has none; expected a positive number"),
        ({"weights": {"birds": 1.0, "signs": -1.0, "fungi": 1.0}}, "'signs' has -1.0; expected a positive number"),
        ({"weights": {"birds": 0, "signs": 1.0, "fungi": 1.0}}, "'birds' has 0; .*leave it out"),
        ({"weights": {"birds": float("nan"), "signs": 1.0, "fungi": 1.0}}, "'birds' has nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        multi_domain(SOURCES, **options)


def test_no_source_is_refused():
    with pytest.raises(InputError, match="no sources are left"):
        multi_domain({})
    with pytest.raises(InputError, match="no sources are left"):
        multi_domain({"only": SOURCES["birds"]}, leave_out="only")


def weighted(key):
    task = tree_map(lambda t: t[0], SOURCES["birds"](key, 1))
    return task._replace(support=task.support._replace(weight=torch.ones(2)), key=fold(key, 1))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            marked(1, query=3, examples=6),
            r"in a task of 'birds' .*query.x is torch.float32 \[4, 2\], of 'odd' .*\[6, 2\]",
        ),
        (marked(1, ways=3), r"support.x is torch.float32 \[2, 2\], of 'odd' torch.float32 \[3, 2\]; expected the same"),
        (sinusoid(), r"support.x is .*\[2, 2\], of 'odd' torch.float32 \[10, 1\]"),
        (sampler(weighted), r"support.weight is nothing, of 'odd' torch.float32 \[2\]"),
    ],
)
def test_sources_of_other_shapes_are_named(other, message):
    with pytest.raises(InputError, match=message):
        multi_domain({"birds": SOURCES["birds"], "odd": other})(fmeta.key(0), 2)
