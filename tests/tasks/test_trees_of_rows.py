"""Examples that are trees: every source draws the same rows of every leaf, those it draws of one tensor."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import fmeta
from fmeta import InputError
from fmeta.core import fold
from fmeta.core.tree import named_leaves, tree_leaves, tree_map, tree_structure
from fmeta.tasks import (
    PartialSampler,
    batches,
    class_data,
    episodes,
    from_labels,
    multi_domain,
    select_classes,
    split_classes,
    stream,
    variable_episodes,
)


class Text(NamedTuple):
    ids: Tensor
    mask: Tensor


SIZES = [4, 7, 5, 9, 6, 8]


def number(c, size):
    """The rows of class `c` as integers that say class and place: 100·class + place."""
    return 100 * c + torch.arange(size)


def sentence(rows):
    """Leaves of every kind, each a function of the row's number that can be turned back."""
    return {
        "text": Text(rows[:, None].expand(-1, 3).to(torch.int32), (rows % 2 == 0)[:, None].expand(-1, 3)),
        "id": rows,
        "features": (rows.double() / 7.0,),
    }


TREES = class_data({f"class{c}": sentence(number(c, size)) for c, size in enumerate(SIZES)})
SINGLE = class_data({f"class{c}": number(c, size) for c, size in enumerate(SIZES)})

OPTIONS = {"max_ways": 4, "min_ways": 2, "query": 2, "max_support": 12}
SOURCES = {
    "episodes": lambda data: episodes(data, ways=3, shots=1, query=2),
    "variable_episodes": lambda data: variable_episodes(data, **OPTIONS),
    "batches": lambda data: batches(data, size=11),
    "multi_domain": lambda data: multi_domain(
        {
            "some": episodes(select_classes(data, torch.tensor([0, 1, 2])), ways=2, shots=1, query=3),
            "others": episodes(split_classes(data, "train", ways=2), ways=2, shots=1, query=3),
        }
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_leaf_has_the_rows_that_a_tensor_has(name):
    """So every law of rows, labels and weights for tensors holds for trees."""
    draw = SOURCES[name]
    trees, single = (draw(data)(fmeta.key(0), 40) for data in (TREES, SINGLE))
    for theirs, mine in ((trees.support, single.support), (trees.query, single.query)):
        for a, b in zip(tree_leaves((theirs.y, theirs.weight)), tree_leaves((mine.y, mine.weight)), strict=True):
            assert torch.equal(a, b)
        if not tree_leaves(mine):
            assert not tree_leaves(theirs)  # batches have no support set
            continue
        expected = sentence(mine.x.flatten())
        assert tree_structure(theirs.x) == tree_structure(expected)
        for path, leaf in named_leaves(theirs.x).items():
            wanted = named_leaves(expected)[path]
            assert leaf.dtype == wanted.dtype, path
            assert torch.equal(leaf.flatten(0, 1), wanted), path
    assert torch.equal(trees.key, single.key)


@pytest.mark.parametrize("name", ["episodes", "variable_episodes", "multi_domain"])
def test_support_and_query_share_no_example_and_labels_are_right(name):
    for i in range(40):
        task = tree_map(lambda t, i=i: t[i], SOURCES[name](TREES)(fmeta.key(1), 40))
        support, query = task.support.x["id"].tolist(), task.query.x["id"].tolist()
        assert not set(support) & set(query)
        meaning = {}
        for row, label in zip(support + query, task.support.y.tolist() + task.query.y.tolist(), strict=True):
            assert meaning.setdefault(label, row // 100) == row // 100
        assert len(set(meaning.values())) == len(meaning)


def test_streams_of_trees_keep_examples_and_labels_together():
    source = SOURCES["episodes"](TREES)
    tasks, streams = source(fmeta.key(2), 10), stream(source, ways=3)(fmeta.key(2), 10)
    inputs, previous = streams.query.x
    for i in range(10):
        label = dict(zip(tasks.support.x["id"][i].tolist(), tasks.support.y[i].tolist(), strict=True))
        label |= dict(zip(tasks.query.x["id"][i].tolist(), tasks.query.y[i].tolist(), strict=True))
        rows = inputs["id"][i].tolist()
        assert sorted(rows) == sorted(label)
        assert streams.query.y[i].tolist() == [label[row] for row in rows]
        assert previous[i].tolist() == [3, *streams.query.y[i].tolist()[:-1]]
        assert torch.equal(inputs["text"].ids[i, :, 0], inputs["id"][i].to(torch.int32))


def test_classes_says_which_class_each_label_stands_for():
    source = SOURCES["episodes"](TREES)
    tasks, classes = source(fmeta.key(3), 20), source.classes(fmeta.key(3), 20)
    assert torch.equal(classes.gather(1, tasks.query.y), tasks.query.x["id"] // 100)


def test_from_labels_gathers_every_leaf():
    order = torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(0))
    rows = SINGLE.examples[order]
    data = from_labels(sentence(rows), rows // 100, names=TREES.names)
    assert data.names == TREES.names
    assert data.size.tolist() == SIZES
    shuffled = data.examples["id"]
    assert torch.equal(shuffled // 100, SINGLE.examples // 100)  # class after class, in the order they came
    assert all(
        torch.equal(a, b) for a, b in zip(tree_leaves(data.examples), tree_leaves(sentence(shuffled)), strict=True)
    )


def test_arrays_are_taken_as_leaves():
    data = class_data({"a": {"ids": np.arange(6, dtype=np.int16).reshape(3, 2), "x": torch.zeros(3)}})
    assert data.examples["ids"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.examples["ids"].dtype == torch.int16


def test_all_leaves_move_and_names_stay():
    moved = TREES.to("meta")
    assert {t.device.type for t in tree_leaves(moved[:4])} == {"meta"}
    assert moved.names == TREES.names
    assert tree_structure(moved.examples) == tree_structure(TREES.examples)


# --- bytes


def test_only_pictures_of_bytes_stand_for_0_to_1():
    """Bytes with another number of axes keep their values, as floats: ids, masks, labels of pixels."""
    leaves = {
        "image": torch.full((4, 1, 2, 2), 255, dtype=torch.uint8),
        "ids": torch.full((4, 5), 255, dtype=torch.uint8),
        "id": torch.full((4,), 255, dtype=torch.uint8),
        "map": torch.full((4, 2, 2), 255, dtype=torch.uint8),
        "film": torch.full((4, 3, 1, 2, 2), 255, dtype=torch.uint8),
        "counts": torch.full((4, 1, 2, 2), 255, dtype=torch.int16),
    }
    data = class_data({"a": leaves, "b": leaves}, pictures=True)
    for x in (
        episodes(data, ways=2, shots=1, query=1)(fmeta.key(0), 2).query.x,
        batches(data, size=3)(fmeta.key(0), 2).query.x,
        variable_episodes(data, max_ways=2, min_ways=2, query=1, max_support=4)(fmeta.key(0), 2).query.x,
    ):
        assert {path: leaf.dtype for path, leaf in x.items()} == {
            path: torch.int16 if path == "counts" else torch.float32 for path in leaves
        }
        assert {path: leaf.unique().tolist() for path, leaf in x.items()} == {
            path: [1.0 if path == "image" else 255] for path in leaves
        }


def test_one_square_image_in_a_tree_turns_and_one_beside_others_does_not():
    image = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2)
    numbers = {"ways": 2, "shots": 1, "query": 1, "rotate": True}
    draw = episodes(class_data({name: {"image": image} for name in "ab"}, pictures=True), **numbers)
    alone = episodes(class_data(dict.fromkeys("ab", image), pictures=True), **numbers)
    assert torch.equal(draw(fmeta.key(0), 9).query.x["image"], alone(fmeta.key(0), 9).query.x)
    beside = class_data({name: {"image": image, "id": torch.arange(4)} for name in "ab"}, pictures=True)
    message = r"examples have shape image \[1, 2, 2\], id \[\]; expected square images .* alone"
    with pytest.raises(InputError, match=rf"episodes\(rotate=True\): {message}"):
        episodes(beside, **numbers)
    with pytest.raises(InputError, match=rf"batches: {message}"):
        batches(beside._replace(turns=torch.ones(2, dtype=torch.int64)), size=2)


def test_sources_of_a_single_class_are_refused():
    """Of one class every answer is right."""
    one = class_data({"a": torch.zeros(4, 2)})
    with pytest.raises(InputError, match=r"batches: the data has 1 class; expected at least 2"):
        batches(one, size=2)
    with pytest.raises(InputError, match=r"variable_episodes\(min_ways=1\): expected a whole number, at least 2"):
        variable_episodes(SINGLE, **OPTIONS | {"min_ways": 1})
    with pytest.raises(InputError, match=r"stream\(ways=1\): expected a whole number, at least 2"):
        stream(SOURCES["episodes"](SINGLE), ways=1)


# --- parts of a batch


def plain(sample):
    """A function and nothing more."""
    return lambda key, count: sample(key, count)


@pytest.mark.parametrize("name", [*SOURCES, "stream", "stream of a function", "domains of functions"])
def test_a_part_is_cut_from_the_whole(name):
    """For every source: the tasks of one rank are those of the whole batch, to the bit."""
    source = {
        **{name: draw(TREES) for name, draw in SOURCES.items()},
        "stream": stream(SOURCES["episodes"](TREES), ways=3),
        "stream of a function": stream(plain(SOURCES["episodes"](TREES)), ways=3),
        "domains of functions": multi_domain({n: plain(SOURCES["episodes"](TREES)) for n in ("a", "b")}),
    }[name]
    assert isinstance(source, PartialSampler)
    whole, part = source(fmeta.key(4), 7), source.part(fmeta.key(4), 7, range(2, 6))
    for a, b in zip(tree_leaves(whole), tree_leaves(part), strict=True):
        assert torch.equal(a[2:6], b)


def test_a_stream_draws_no_more_than_its_part():
    """What a rank does not need is not drawn by any source underneath."""
    drawn = []

    class Counting:
        def __init__(self, source):
            self.source = source

        def __call__(self, key, count):
            raise AssertionError("drew the whole batch")

        def part(self, key, count, numbers):
            drawn.append(numbers)
            return self.source.part(key, count, numbers)

    source = Counting(SOURCES["episodes"](TREES))
    stream(source, ways=3).part(fmeta.key(0), 8, range(4, 6))
    multi_domain({"a": source, "b": source}).part(fmeta.key(0), 8, range(1, 3))
    assert drawn == [range(4, 6), range(1, 3), range(1, 3)]


def test_a_source_is_a_value():
    """Equal parts make equal sources; nothing hangs on a function."""

    def one(key):
        return fmeta.Task(fmeta.Examples(key[None], key[None]), fmeta.Examples(key[None], key[None]), fold(key, 1))

    assert fmeta.tasks.sampler(one) == fmeta.tasks.sampler(one)
    assert stream(one, ways=2) == stream(one, ways=2) != stream(one, ways=3)


# --- what is refused


def text(rows, length=3, dtype=torch.int64):
    return {"ids": torch.zeros(rows, length, dtype=dtype), "mask": torch.ones(rows, length)}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": text(2) | {"mask": torch.ones(3, 3)}}, "class 'a' has examples: 2 in leaf 'ids', 3 in leaf 'mask'; exp"),
        ({"a": text(2) | {"mask": torch.ones(())}}, "class 'a' leaf 'mask' is a scalar"),
        ({"a": text(2) | {"mask": None}}, "class 'a' leaf 'mask' is a NoneType; expected a tensor"),
        ({"a": text(2) | {"mask": ["x", "y"]}}, "class 'a' leaf 'mask.0' is a str; expected a tensor"),
        ({"a": text(0)}, "class 'a' has no examples; leave it out"),
        ({"a": {}}, "class 'a' has no leaves; expected a tensor"),
        ({"a": text(2), "b": text(2, 4)}, r"differ in shape or dtype: leaf 'ids' .* in class 'a', .*\[4\]"),
        ({"a": text(2), "b": text(2, 3, torch.int32)}, r"leaf 'ids' torch.int64 \[3\] in class 'a', torch.int32 \[3\]"),
        ({"a": text(2), "b": torch.zeros(2, 3)}, "class 'a' has the leaves ids, mask, 'b' a tensor; expected"),
        ({"a": text(2), "b": dict(reversed(text(2).items()))}, "the leaves ids, mask, 'b' mask, ids; .*one order"),
    ],
)  # fmt: skip
def test_classes_that_are_not_alike_are_named_with_the_leaf(classes, message):
    with pytest.raises(InputError, match=rf"class_data: .*{message}"):
        class_data(classes)


def test_labels_for_another_number_of_rows_are_refused():
    x = text(3) | {"mask": torch.ones(4, 3)}
    with pytest.raises(InputError, match=r"from_labels: x.ids is \[3, 3\], x.mask is \[4, 3\], y is torch.int64 \[3\]"):
        from_labels(x, torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match=r"from_labels: x leaf 'mask' is an array of object"):
        from_labels(text(3) | {"mask": np.array([None] * 3)}, torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match=r"from_labels: x has no leaves"):
        from_labels((), torch.tensor([0, 1, 0]))


def test_domains_of_other_containers_are_refused():
    pairs = [class_data({c: kind([torch.zeros(4), torch.zeros(4)]) for c in "ab"}) for kind in (tuple, list)]
    first, other = (episodes(data, ways=2, shots=1, query=1) for data in pairs)
    with pytest.raises(InputError, match="'first' and 'other' hold the same leaves in other containers"):
        multi_domain({"first": first, "other": other})(fmeta.key(0), 2)
    third = episodes(class_data({c: {"ids": torch.zeros(4)} for c in "ab"}), ways=2, shots=1, query=1)
    with pytest.raises(InputError, match=r"support.x.0 is .*, of 'other' nothing"):
        multi_domain({"first": first, "other": third})(fmeta.key(0), 2)
