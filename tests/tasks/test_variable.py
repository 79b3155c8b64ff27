"""Episodes of variable way and shot, against Meta-Dataset's formulas written as a loop over the same draws."""

import math

import pytest
import torch

import fmeta
from fmeta import InputError
from fmeta.core import choice, fold, randint, uniform
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.tasks import class_data, multi_domain, variable_episodes

SIZES = [3, 17, 40, 9, 5, 2, 30, 12, 8, 25]


def coded(sizes, dtype=torch.float32):
    """Classes of these sizes whose examples are (class, index in the class)."""
    return class_data(
        {
            f"class{c}": torch.stack([torch.full((size,), c), torch.arange(size)], 1).to(dtype)
            for c, size in enumerate(sizes)
        }
    )


OPTIONS = {"max_ways": 6, "min_ways": 3, "query": 4, "max_support": 40, "max_support_per_class": 11}
DRAW = variable_episodes(coded(SIZES), **OPTIONS)


def split_tasks(tasks):
    return [tree_map(lambda t, i=i: t[i], tasks) for i in range(len(tasks.key))]


def real(examples):
    """The examples of weight 1."""
    kept = examples.weight == 1
    return examples.x[kept], examples.y[kept]


def counts(examples):
    return torch.bincount(real(examples)[1]).tolist()


def composition(key, sizes, *, max_ways, min_ways, query, max_support, max_support_per_class):
    """Classes, query examples of each and support examples of each, as the paper has it, from the sampler's draws."""
    slots = min(max_ways, len(sizes))
    ways = min_ways + int(randint(fold(key, 1), slots - min_ways + 1))
    chosen = choice(fold(key, 0), len(sizes), slots).tolist()[:ways]
    beta = 1.0 - float(uniform(fold(fold(key, 2), 0), dtype=torch.float64))
    alpha = uniform(fold(fold(key, 2), 1), (slots,), math.log(0.5), math.log(2.0), dtype=torch.float64).tolist()
    queries = min([query] + [math.floor(0.5 * sizes[c]) for c in chosen])
    total = sum(math.ceil(beta * min(max_support_per_class, sizes[c] - queries)) for c in chosen)
    total = min(max_support, total)
    shares = [sizes[c] * math.exp(a) for c, a in zip(chosen, alpha, strict=False)]
    shots = [
        min(math.floor(share / sum(shares) * (total - ways)) + 1, sizes[c] - queries)
        for c, share in zip(chosen, shares, strict=True)
    ]
    return chosen, queries, shots


@pytest.mark.parametrize(
    "change", [{}, {"max_support": 8}, {"query": 100, "max_support_per_class": 100}, {"max_ways": 30}]
)
def test_ways_shots_and_queries_are_those_of_the_paper(change):
    options = {**OPTIONS, **change, "max_support": change.get("max_support", 60)}
    tasks = variable_episodes(coded(SIZES), **options)(fmeta.key(0), 200)
    assert tasks.support.x.shape == (200, options["max_support"], 2)
    assert tasks.query.x.shape == (200, options["max_ways"] * options["query"], 2)
    shapes = set()
    for task, key in zip(split_tasks(tasks), fmeta.split(fmeta.key(0), 200), strict=True):
        chosen, queries, shots = composition(key, SIZES, **options)
        x, y = real(task.support)
        assert counts(task.support) == shots
        assert counts(task.query) == [queries] * len(chosen)
        assert [int(x[y == label, 0][0]) for label in range(len(chosen))] == chosen
        assert sum(shots) <= options["max_support"]
        assert min(shots) >= 1
        shapes.add((len(chosen), queries, tuple(shots)))
    assert len(shapes) > 50


def test_the_number_of_ways_is_uniform():
    ways = DRAW(fmeta.key(1), 4000).support.y.amax(1) + 1
    seen = torch.bincount(ways)[3:].double()
    assert len(seen) == 4
    assert ((seen - 1000) ** 2 / 1000).sum() < 21.11  # scipy.stats.chi2.ppf(1 - 1e-4, 3)


def test_every_example_of_every_class_is_drawn_and_none_twice():
    """A label means one class; support and query share no example; padding is copies."""
    seen = set()
    for task in split_tasks(DRAW(fmeta.key(2), 400)):
        meaning, found = {}, []
        for examples in (task.support, task.query):
            x, _ = real(examples)
            found.append({tuple(row) for row in x.int().tolist()})
            assert len(found[-1]) == len(x)
            for label, row in zip(examples.y.tolist(), examples.x.tolist(), strict=True):
                assert meaning.setdefault(label, row[0]) == row[0]
            assert {tuple(row) for row in examples.x.int().tolist()} == found[-1]
        assert not found[0] & found[1]
        assert len(set(meaning.values())) == len(meaning)
        assert sorted(meaning) == list(range(len(meaning)))
        seen |= found[0] | found[1]
    assert seen == {(c, i) for c, size in enumerate(SIZES) for i in range(size)}


def test_weights_are_one_on_the_examples_then_zero():
    tasks = DRAW(fmeta.key(3), 100)
    for task, key in zip(split_tasks(tasks), fmeta.split(fmeta.key(3), 100), strict=True):
        chosen, queries, shots = composition(key, SIZES, **OPTIONS)
        for examples, number in ((task.support, sum(shots)), (task.query, queries * len(chosen))):
            assert examples.weight.tolist() == [1.0] * number + [0.0] * (len(examples.y) - number)
    assert tasks.support.y.dtype == torch.int64


def test_the_place_of_an_example_gives_nothing_away():
    """Of three classes with two shots each, every label stands first equally often."""
    draw = variable_episodes(coded([3] * 3), max_ways=3, min_ways=3, query=1, max_support=9, max_support_per_class=2)
    first = [draw(fmeta.key(4), 3000).query.y[:, i] for i in range(3)]
    for labels in first:
        seen = torch.bincount(labels).double()
        assert ((seen - 1000) ** 2 / 1000).sum() < 18.42  # scipy.stats.chi2.ppf(1 - 1e-4, 2)


def test_a_task_does_not_depend_on_the_batch_and_runs_compiled():
    long, short = (tree_leaves(DRAW(fmeta.key(5), n)) for n in (7, 3))
    assert all(torch.equal(a[:3], b) for a, b in zip(long, short, strict=True))
    run = fmeta.compile(lambda key: DRAW(key, 3), backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(run(fmeta.key(5))), short, strict=True))
    assert not torch.equal(run(fmeta.key(6)).support.x, short[0])


def test_images_become_floats_and_turned_classes_turn():
    pattern = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2) * 60
    data = class_data({"a": pattern.expand(4, 1, 2, 2), "b": pattern.expand(4, 1, 2, 2)}, pictures=True)
    data = data._replace(turns=torch.tensor([0, 3]))
    draw = variable_episodes(data, max_ways=2, min_ways=2, query=1, max_support=6)
    expected = {tuple(pattern.rot90(k, (-2, -1)).flatten().tolist()) for k in (0, 3)}
    x = draw(fmeta.key(7), 20).support.x
    assert x.dtype == torch.float32
    assert {tuple(image) for image in (x * 255).round().int().flatten(2).flatten(0, 1).tolist()} == expected


@pytest.mark.parametrize("name", ["protonet", "ridge", "matching", "relation"])
def test_a_learner_of_most_ways_sees_each_task_as_it_is(name):
    """Loss and meta-gradient of a padded batch are the mean over its tasks, cut to size, each with its own learner."""
    encoder = fmeta.models.mlp([2, 6, 4], torch.tanh, torch.float64)

    def learner(ways):
        more = (fmeta.models.mlp([8, 1], torch.tanh, torch.float64),) if name == "relation" else ()
        return getattr(fmeta, name)(encoder, *more, ways=ways)

    tasks = variable_episodes(coded(SIZES, torch.float64), **OPTIONS)(fmeta.key(8), 4)
    meta = learner(6).init(fmeta.key(9))
    found, info = fmeta.meta_grad(learner(6))(meta, tasks)
    alone, losses = [], []
    for task in split_tasks(tasks):
        cut = fmeta.Task(fmeta.Examples(*real(task.support)), fmeta.Examples(*real(task.query)), task.key)
        own = fmeta.meta_grad(learner(int(task.support.y.max()) + 1))(meta, tree_map(lambda t: t[None], cut))
        alone.append(own[0])
        losses.append(own[1].loss)
    assert fmeta.testing.distance(info.losses, torch.stack(losses)) < 1e-12
    assert fmeta.testing.distance(found, tree_map(lambda *g: torch.stack(g).mean(0), *alone)) < 1e-12


def test_data_of_other_sizes_goes_together_in_one_source():
    """Shapes depend on the arguments alone."""
    options = {**OPTIONS, "max_ways": 8}
    sources = {
        "few": variable_episodes(coded([4] * 4), **options),
        "many": variable_episodes(coded([50] * 9), **options),
    }
    tasks = multi_domain(sources)(fmeta.key(10), 200)
    ways = tasks.support.y.amax(1) + 1
    few = tasks.support.x[..., 1].amax(1) < 4
    assert ways[few].unique().tolist() == [3, 4]
    assert ways[~few].unique().tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (SIZES, {"min_ways": 11, "max_ways": 20}, r"\(min_ways=11\): the data has 10 classes; expected min_ways <= 10"),
        (SIZES, {"min_ways": 7}, r"\(min_ways=7, max_ways=6, max_support=40\): expected min_ways <= max_ways"),
        (SIZES, {"max_support": 5}, r"\(.*max_support=5\): expected .*one support example for each class or more"),
        ([4, 1, 4, 4], {}, ": class 'class1' has one example; expected two or more"),
        (SIZES, {"query": 0}, r"\(query=0\): expected a whole number, at least 1"),
        (SIZES, {"max_support_per_class": 1.5}, r"\(max_support_per_class=1.5\): expected a whole number"),
    ],
)
def test_what_does_not_go_together_is_refused(sizes, options, message):
    with pytest.raises(InputError, match=rf"variable_episodes{message}"):
        variable_episodes(coded(sizes), **{**OPTIONS, **options})


def test_turned_vectors_are_refused():
    data = coded([3] * 5)._replace(turns=torch.tensor([0, 1, 0, 0, 0]))
    with pytest.raises(InputError, match=r"variable_episodes: .*expected square images"):
        variable_episodes(data, **OPTIONS)
