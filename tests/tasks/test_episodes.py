"""Episodes: the data says of which class and which example it is, so what was drawn can be read off."""

import itertools
import math

import numpy as np
import pytest
import torch

import fmeta
from fmeta import InputError
from fmeta.core import fold
from fmeta.core.tree import tree_leaves, tree_map
from fmeta.tasks import class_data, episodes, from_labels, sampler, select_classes, split_classes


def coded(sizes):
    """Classes of these sizes whose examples are (class, index in the class)."""
    classes = {
        f"class{c}": torch.stack([torch.full((size,), float(c)), torch.arange(float(size))], 1)
        for c, size in enumerate(sizes)
    }
    return class_data(classes)


def turned_images(classes, size=6, dtype=torch.float32, channels=1):
    """Images whose four quarter turns all differ: 100 · class + example in the corner, 0..side²-1 elsewhere."""
    pattern = torch.arange(16.0).reshape(4, 4) / 16
    return class_data(
        {
            f"class{c}": torch.stack([100.0 * c + e + pattern.expand(channels, 4, 4) for e in range(size)]).to(dtype)
            for c in range(classes)
        }
    )


def read(image):
    """(class, example, quarter turns) of an image [channel, 4, 4] of `turned_images`."""
    number = int(image.min())
    pattern = torch.arange(16.0).reshape(4, 4) / 16
    turns = [k for k in range(4) if torch.equal(image, (number + pattern).expand_as(image).rot90(k, (-2, -1)))]
    assert len(turns) == 1
    return number // 100, number % 100, turns[0]


def split_tasks(tasks):
    """The tasks of a batch, one by one."""
    return [tree_map(lambda t, i=i: t[i], tasks) for i in range(len(tasks.key))]


def chi_square(values, cells):
    counts = torch.bincount(torch.as_tensor(values).reshape(-1), minlength=cells).double()
    assert len(counts) == cells
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()


# --- what an episode is


def test_shapes_labels_and_counts():
    """[task, ways·shots, ...] and [task, ways·query, ...]; each label K times, as int64."""
    tasks = episodes(coded([9] * 12), ways=5, shots=2, query=4)(fmeta.key(0), 7)
    assert tasks.support.x.shape == (7, 10, 2)
    assert tasks.query.x.shape == (7, 20, 2)
    assert tasks.support.y.dtype == tasks.query.y.dtype == torch.int64
    for task in split_tasks(tasks):
        assert torch.bincount(task.support.y).tolist() == [2] * 5
        assert torch.bincount(task.query.y).tolist() == [4] * 5
    assert tasks.key.shape == (7,)
    assert tasks.key.unique().numel() == 7


@pytest.mark.parametrize(("shots", "query"), [(1, 1), (1, 5), (3, 2), (5, 1)])
def test_support_and_query_are_disjoint_and_of_the_same_classes(shots, query):
    """A label means one class in support and query alike, no class has two labels, no example occurs twice."""
    for task in split_tasks(episodes(coded([6] * 8), ways=4, shots=shots, query=query)(fmeta.key(1), 60)):
        x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
        meaning = {label: set(x[y == label, 0].tolist()) for label in range(4)}
        assert all(len(classes) == 1 for classes in meaning.values())
        assert len(set.union(*meaning.values())) == 4
        assert len({tuple(example) for example in x.tolist()}) == 4 * (shots + query)


def test_classes_says_which_class_each_label_stands_for():
    """For the same key and count, the tasks in the same order; and compiled too."""
    sample = episodes(coded([6] * 8), ways=4, shots=2, query=3)
    tasks, classes = sample(fmeta.key(20), 30), sample.classes(fmeta.key(20), 30)
    assert classes.shape == (30, 4)
    assert classes.dtype == torch.int64
    for examples in (tasks.support, tasks.query):
        assert torch.equal(classes.gather(1, examples.y), examples.x[..., 0].long())
    assert sample.names == tuple(f"class{c}" for c in range(8))
    compiled = fmeta.compile(sample.classes, backend="eager")
    assert torch.equal(compiled(fmeta.key(20), 30), classes)


def test_all_classes_and_all_examples_can_be_asked_for():
    """At the limit the episode is the whole data, in another order."""
    task = split_tasks(episodes(coded([5] * 4), ways=4, shots=2, query=3)(fmeta.key(2), 1))[0]
    seen = sorted(map(tuple, torch.cat([task.support.x, task.query.x]).tolist()))
    assert seen == sorted(itertools.product([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]))


def test_two_ways_one_shot():
    """The smallest episode there is."""
    task = split_tasks(episodes(coded([2, 2]), ways=2, shots=1, query=1)(fmeta.key(3), 1))[0]
    assert sorted(task.support.y.tolist()) == sorted(task.query.y.tolist()) == [0, 1]
    seen = torch.cat([task.support.x, task.query.x]).tolist()
    assert sorted(seen) == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def test_unequal_classes_are_never_read_beyond_their_end():
    """Each class gives its own examples only, all of them, and equally often."""
    sizes = [3, 17, 4, 9]
    tasks = episodes(coded(sizes), ways=3, shots=1, query=2)(fmeta.key(4), 3000)
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    y = torch.cat([tasks.support.y, tasks.query.y], 1)
    # 99.99 % points of chi-square (scipy.stats.chi2.ppf(1 - 1e-4, size - 1))
    for c, (size, point) in enumerate(zip(sizes, (18.42, 45.92, 21.11, 31.83), strict=True)):
        index = x[x[..., 0] == c][:, 1].long()
        assert index.max() == size - 1
        # without replacement the counts vary less than independent draws would: the point is a bound
        assert chi_square(index, size) < point
    for task_x, task_y in zip(x, y, strict=True):
        assert all(task_x[task_y == label, 0].unique().numel() == 1 for label in range(3))


def test_classes_of_a_selection_are_its_own():
    """A selection shares the rows: only chosen classes occur, each with its own name, size and start."""
    data = select_classes(coded([4, 5, 6, 7, 8]), torch.tensor([3, 1, 4]))
    assert data.names == ("class3", "class1", "class4")
    assert data.size.tolist() == [7, 5, 8]
    assert data.examples.shape[0] == 30
    x = episodes(data, ways=2, shots=1, query=4)(fmeta.key(5), 300).query.x
    assert x[..., 0].unique().tolist() == [1.0, 3.0, 4.0]
    assert [int(x[x[..., 0] == c][:, 1].max()) for c in (1, 3, 4)] == [4, 6, 7]


# --- randomness


def test_every_class_gets_every_label():
    """Class and label are independent: the 20 pairs of 5 classes and 4 labels occur equally often."""
    tasks = episodes(coded([2] * 5), ways=4, shots=1, query=1)(fmeta.key(6), 5000)
    pairs = tasks.support.x[..., 0].long() * 4 + tasks.support.y
    assert chi_square(pairs, 20) < 50.80  # scipy.stats.chi2.ppf(1 - 1e-4, 19); drawn without replacement: a bound


def test_order_of_labels_is_shuffled_apart_for_support_and_query():
    """All 36 pairs of orders of three labels occur equally often: the place in a task gives nothing away."""
    tasks = episodes(coded([2] * 5), ways=3, shots=1, query=1)(fmeta.key(7), 7200)
    names = {order: i for i, order in enumerate(itertools.permutations(range(3)))}
    first, second = ([names[tuple(o)] for o in y.tolist()] for y in (tasks.support.y, tasks.query.y))
    pairs = torch.tensor(first) * 6 + torch.tensor(second)
    assert chi_square(pairs, 36) < 74.93  # scipy.stats.chi2.ppf(1 - 1e-4, 35)


def test_sets_of_classes_are_uniform():
    """Two of five classes: the ten pairs occur equally often."""
    tasks = episodes(coded([2] * 5), ways=2, shots=1, query=1)(fmeta.key(8), 5000)
    names = {pair: i for i, pair in enumerate(itertools.combinations(range(5), 2))}
    drawn = [names[tuple(sorted(map(int, row)))] for row in tasks.support.x[..., 0].tolist()]
    assert chi_square(drawn, 10) < 33.72  # scipy.stats.chi2.ppf(1 - 1e-4, 9)


def test_same_key_same_episode():
    """Episodes are a function of the key: again the same, with another key others."""
    draw = episodes(coded([6] * 30), ways=5, shots=2, query=2)
    first, again, other = (tree_leaves(draw(fmeta.key(seed), 4)) for seed in (9, 9, 10))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("rotate", [False, True])
def test_element_of_a_batch_is_what_its_key_draws_alone(rotate):
    """Task i is `one(split(key, count)[i])`, without vmap and in a batch of any size."""
    draw = episodes(turned_images(6), ways=3, shots=1, query=2, rotate=rotate)
    one = draw.one
    batch, few = draw(fmeta.key(11), 5), draw(fmeta.key(11), 2)
    for i, (task, task_key) in enumerate(zip(split_tasks(batch), fmeta.split(fmeta.key(11), 5), strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(task), tree_leaves(one(task_key)), strict=True)), i
    assert all(torch.equal(a[:2], b) for a, b in zip(tree_leaves(batch), tree_leaves(few), strict=True))


def test_sampler_gives_each_task_its_own_key():
    """Any function that draws one task makes a source."""

    def one(key):
        return fmeta.Task(fmeta.Examples(key[None], key[None] + 1), fmeta.Examples(key[None], key[None]), fold(key, 1))

    keys = fmeta.split(fmeta.key(12), 4)
    tasks = sampler(one)(fmeta.key(12), 4)
    assert torch.equal(tasks.support.x, keys[:, None])
    assert torch.equal(tasks.support.y, keys[:, None] + 1)
    assert torch.equal(tasks.key, fold(keys, torch.ones((), dtype=torch.int64)))


# --- images


def test_uint8_images_become_floats_from_0_to_1():
    """0 is 0 and 255 is 1, as float32; the data stays uint8."""
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2)
    data = class_data({"one": images, "other": images}, pictures=True)
    assert data.examples.dtype == torch.uint8
    task = split_tasks(episodes(data, ways=2, shots=1, query=2)(fmeta.key(0), 1))[0]
    x = torch.cat([task.support.x, task.query.x])
    assert x.dtype == torch.float32
    assert sorted(x[:, 0, 0, 0].tolist()) == pytest.approx([0.0, 0.0, 0.2, 0.2, 1.0, 1.0], abs=1e-7)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (1, 4, 4), (3, 1, 4, 4)])
def test_bytes_that_are_not_said_to_be_pictures_keep_their_values(shape):
    """Features of 0 and 1, counts, boards: the same numbers, as floats, because sums of bytes wrap around."""
    x = (np.arange(12 * math.prod(shape)).reshape(12, *shape) % 256).astype("u1")
    data = from_labels(x, np.arange(12) // 4, pictures=False if len(shape) == 3 else None)
    for kept in (data, select_classes(data, torch.tensor([2, 0, 1])), data.to("cpu")):
        drawn = episodes(kept, ways=3, shots=2, query=2)(fmeta.key(0), 1)
        found = torch.cat([drawn.support.x, drawn.query.x], 1)
        assert found.dtype == torch.float32
        assert sorted(found.flatten().tolist()) == sorted(x.flatten().tolist())


def test_pictures_stay_pictures_in_every_selection():
    images = torch.full((12, 1, 2, 2), 255, dtype=torch.uint8)
    data = from_labels(images, torch.arange(12) // 2, pictures=True)
    split = split_classes(data, "train", ways=2)
    for kept in (data, select_classes(data, torch.tensor([1, 0])), data.to("cpu"), split):
        assert episodes(kept, ways=2, shots=1, query=1)(fmeta.key(0), 1).query.x.unique().tolist() == [1.0]


def test_bytes_of_four_axes_are_told_apart_by_the_caller():
    """Pictures and boards of 0 and 1 look alike: nobody guesses."""
    boards = torch.ones(4, 2, 3, 3, dtype=torch.uint8)
    for make in (
        lambda **o: class_data({"a": boards, "b": boards}, **o),
        lambda **o: from_labels(boards, torch.arange(4) % 2, **o),
    ):
        with pytest.raises(
            InputError, match=r"\(pictures=None\): uint8 \[\d, 2, 3, 3\] may be pictures or numbers; .*say"
        ):
            make()
        for pictures in (True, False):
            x = episodes(make(pictures=pictures), ways=2, shots=1, query=1)(fmeta.key(0), 1).query.x
            assert x.unique().tolist() == pytest.approx([1 / 255 if pictures else 1.0])
    with pytest.raises(InputError, match=r"class_data\(pictures=None\): leaf 'board' uint8"):
        class_data({"a": {"id": torch.zeros(4), "board": boards}})


@pytest.mark.parametrize("x", [torch.rand(4, 1, 2, 2), torch.zeros(4, 2, 2, dtype=torch.uint8)])
def test_what_cannot_be_pictures_is_refused_as_such(x):
    with pytest.raises(InputError, match=r"class_data\(pictures=True\): got torch.* \[4, .*expected pictures as uint8"):
        class_data({"a": x}, pictures=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16])
def test_other_dtypes_stay_as_they_are(dtype):
    """Token ids and float64 features pass through."""
    data = class_data({"a": torch.arange(3).to(dtype)[:, None], "b": torch.arange(3, 6).to(dtype)[:, None]})
    task = split_tasks(episodes(data, ways=2, shots=1, query=2)(fmeta.key(0), 1))[0]
    assert task.query.x.dtype == dtype
    assert sorted(torch.cat([task.support.x, task.query.x])[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_class_of_a_task_has_one_turn(channels):
    """Support and query of a class share a true torch.rot90; all four turns occur equally often."""
    tasks = episodes(turned_images(6, channels=channels), ways=3, shots=2, query=2, rotate=True)(fmeta.key(13), 200)
    drawn = []
    for task in split_tasks(tasks):
        x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
        for label in range(3):
            seen = [read(image) for image in x[y == label]]
            assert len({(c, turns) for c, _, turns in seen}) == 1
            assert len({example for _, example, _ in seen}) == 4
            drawn.append(seen[0][2])
    assert chi_square(drawn, 4) < 21.11  # scipy.stats.chi2.ppf(1 - 1e-4, 3)


def test_turns_of_a_task_are_independent():
    """Two classes of one task: the sixteen pairs of turns occur equally often."""
    tasks = episodes(turned_images(2, size=2), ways=2, shots=1, query=1, rotate=True)(fmeta.key(14), 800)
    pairs = []
    for task in split_tasks(tasks):
        turn = {int(label): read(image)[2] for image, label in zip(task.support.x, task.support.y, strict=True)}
        pairs.append(turn[0] * 4 + turn[1])
    assert chi_square(pairs, 16) < 44.26  # scipy.stats.chi2.ppf(1 - 1e-4, 15)


def test_a_class_keeps_its_own_turns():
    """`ClassData.turns` makes a rotated character a class of its own, without `rotate`."""
    data = turned_images(4)._replace(turns=torch.tensor([0, 1, 2, 3]))
    tasks = episodes(data, ways=3, shots=1, query=2)(fmeta.key(15), 50)
    seen = {read(image)[::2] for image in torch.cat([tasks.support.x, tasks.query.x], 1).reshape(-1, 1, 4, 4)}
    assert seen == {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_rotate_turns_on_from_the_turns_of_a_class():
    """Both together still give quarter turns: all sixteen pairs of class and turn."""
    data = turned_images(4)._replace(turns=torch.tensor([0, 1, 2, 3]))
    tasks = episodes(data, ways=3, shots=1, query=2, rotate=True)(fmeta.key(16), 100)
    seen = {read(image)[::2] for image in tasks.support.x.reshape(-1, 1, 4, 4)}
    assert seen == set(itertools.product(range(4), range(4)))


def test_without_rotate_images_stand_upright():
    """No turn where none was asked for."""
    tasks = episodes(turned_images(4), ways=3, shots=1, query=2)(fmeta.key(17), 30)
    assert {read(image)[2] for image in tasks.query.x.reshape(-1, 1, 4, 4)} == {0}


def test_turned_uint8_images_become_floats():
    """Both conversions together, as on Omniglot."""
    images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2) * 30
    data = class_data({"a": images, "b": images}, pictures=True)
    x = episodes(data, ways=2, shots=1, query=1, rotate=True)(fmeta.key(18), 20).support.x
    expected = [data.examples[e].rot90(k, (-2, -1)).float() / 255 for e in range(2) for k in range(4)]
    assert all(any(torch.equal(image, e) for e in expected) for image in x.flatten(0, 1))
    assert x.unique(dim=0).shape[0] > 4


# --- class_data


def test_class_data_lays_classes_end_to_end():
    """Starts, sizes, names and turns of classes of unequal sizes."""
    data = coded([2, 3, 1])
    assert data.start.tolist() == [0, 2, 5]
    assert data.size.tolist() == [2, 3, 1]
    assert data.turns.tolist() == [0, 0, 0]
    assert data.names == ("class0", "class1", "class2")
    assert data.examples.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert data.start.dtype == data.size.dtype == data.turns.dtype == torch.int64


def test_class_data_moves_as_a_whole():
    """`to` moves every tensor and keeps the names."""
    moved = coded([2, 3]).to("meta")
    assert {t.device.type for t in moved[:4]} == {"meta"}
    assert moved.names == ("class0", "class1")


def test_class_data_takes_arrays_of_any_layout():
    """Read-only, reversed, of the other byte order, and beside tensors; what is taken is a copy."""
    values = np.arange(6.0).reshape(3, 2)
    locked = values.copy()
    locked.setflags(write=False)
    arrays = {"locked": locked, "other": values.astype(">f8"), "reversed": values[::-1], "turned": values.T.copy().T}
    data = class_data({**arrays, "tensor": torch.from_numpy(values)})
    assert data.size.tolist() == [3] * 5
    for i, array in enumerate([*arrays.values(), values]):
        assert data.examples[3 * i : 3 * i + 3].tolist() == array.tolist()
    values[:] = -1.0
    assert data.examples.min() == 0


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "int32", "uint16"])
def test_from_labels_gathers_each_class(convert, dtype):
    """Classes in the order of their labels, whatever numbers those are; examples in the order they came."""
    labels = np.array([7, 2, 7, 40, 2, 7], dtype)
    data = from_labels(convert(np.arange(12.0).reshape(6, 2)), convert(labels))
    assert data.names == ("2", "7", "40")
    assert data.size.tolist() == [2, 3, 1]
    assert data.examples[:, 0].tolist() == [2, 8, 0, 4, 10, 6]
    drawn = episodes(select_classes(data, torch.tensor([0, 1])), ways=2, shots=1, query=1)(fmeta.key(0), 50)
    assert drawn.query.x[..., 0].unique().tolist() == [0, 2, 4, 8, 10]


def test_from_labels_is_class_data():
    """The same data as classes given one by one."""
    classes = {"ape": torch.randn(2, 3), "bee": torch.randn(4, 3)}
    data = from_labels(torch.cat(list(classes.values())), torch.tensor([0, 0, 1, 1, 1, 1]), names=["ape", "bee"])
    expected = class_data(classes)
    assert data.names == expected.names
    assert all(torch.equal(a, b) for a, b in zip(data[:4], expected[:4], strict=True))


@pytest.mark.parametrize(
    ("x", "y", "names", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), None, r"x is \[3, 2\], y is torch.int64 \[4\]"),
        (torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64), None, r"y is torch.int64 \[3, 1\]; expected examples"),
        (torch.zeros(3), torch.zeros(3), None, r"y is torch.float32 \[3\]; expected .* an integer label for each"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool), None, "y is torch.bool"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), None, r"x is \[0, 2\]"),
        (torch.zeros(()), torch.zeros((), dtype=torch.int64), None, r"x is \[\]"),
        (torch.zeros(2), torch.tensor([0, -1]), None, "a label is -1; expected 0 or more; leave out rows without"),
        (torch.zeros(2), torch.tensor([0, 2]), ["a", "b", "c"], "3 names, .* for 2 classes .*examples of each"),
        (torch.zeros(2), torch.tensor([0, 1]), ["a"], "1 names, 1 of them different, for 2 classes with labels 0 to 1"),
        (torch.zeros(2), torch.tensor([0, 1]), ["a", "a"], "2 names, 1 of them different, for 2 classes"),
        ([[1.0], [2.0]], torch.tensor([0, 1]), None, "x leaf '0.0' is a float; expected a tensor or"),
        (np.array([[1], [2, 3]], object), torch.tensor([0, 1]), None, "x is an array of object; .*bring ragged"),
        (torch.zeros(2), np.array(["a", "b"]), None, "y is an array of <U1"),
    ],
)  # fmt: skip
def test_from_labels_refuses(x, y, names, message):
    """Examples and labels that do not go together, and names that do not fit."""
    with pytest.raises(fmeta.InputError, match=rf"from_labels: .*{message}"):
        from_labels(x, y, names)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": np.array([[1], [2, 3]], object)}, "class 'a' is an array of object; .*bring ragged examples to one"),
        ({"a": [[1.0, 2.0]]}, "class 'a' leaf '0.0' is a float; expected a tensor or"),
        (
            {"a": np.zeros((2, 3)), "b": np.zeros((2, 4))},
            r"differ in shape or dtype: .* \[3\] in class 'a', .* \[4\] in 'b'",
        ),
        ({"a": np.zeros((0, 3))}, "'a' has no examples"),
        ({"a": np.array(1.0)}, "class 'a' is a scalar"),
        ({}, "no classes"),
        ({"full": torch.zeros(2, 3), "void": torch.zeros(0, 3)}, "'void' has no examples"),
        (
            {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)},
            r"differ in shape or dtype: .* \[3\] in class 'a', .* \[4\] in 'b'",
        ),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3, dtype=torch.float64)}, r"differ.*float32.*float64"),
    ],
)
def test_class_data_refuses(classes, message):
    """What cannot be drawn from is refused when it is built, not when it is drawn."""
    with pytest.raises(fmeta.InputError, match=rf"class_data: .*{message}"):
        class_data(classes)


# --- errors


def test_more_ways_than_classes_is_an_error():
    """The message names what was asked for and what there is."""
    with pytest.raises(fmeta.InputError, match=r"episodes\(ways=4\): the data has 3 classes; expected ways <= 3"):
        episodes(coded([5] * 3), ways=4, shots=1, query=1)


def test_a_class_with_too_few_examples_is_named():
    """Of many classes the one that does not suffice is named, with its size."""
    with pytest.raises(fmeta.InputError, match=r"class 'class2' has 3 examples; expected at least shots \+ query = 4"):
        episodes(coded([5, 6, 3, 9]), ways=2, shots=1, query=3)
    episodes(coded([5, 6, 4, 9]), ways=2, shots=1, query=3)  # exactly enough


@pytest.mark.parametrize("size", [{"ways": 0}, {"ways": -1}, {"ways": 1}, {"ways": 2.0}, {"shots": 0}, {"query": 0}])
def test_sizes_below_one_and_a_single_way_are_errors(size):
    """The message names the argument and what came. Of a single class every answer would be right."""
    (name, value) = next(iter(size.items()))
    least = 2 if name == "ways" else 1
    with pytest.raises(
        fmeta.InputError, match=rf"episodes\({name}={value}\): expected a whole number, at least {least}"
    ):
        episodes(coded([5] * 3), **({"ways": 2, "shots": 1, "query": 1} | size))


@pytest.mark.parametrize("shape", [(2,), (4, 4), (1, 4, 5), (1, 1, 4, 4)])
def test_rotating_anything_but_square_images_is_an_error(shape):
    """Neither vectors nor oblong images can be turned; the message shows the shape."""
    data = class_data({"a": torch.zeros(3, *shape), "b": torch.zeros(3, *shape)})
    with pytest.raises(fmeta.InputError, match=r"rotate=True.*expected square images") as caught:
        episodes(data, ways=2, shots=1, query=1, rotate=True)
    assert str(list(shape)) in str(caught.value)
    episodes(data, ways=2, shots=1, query=1)  # fine as they are


def test_turns_of_anything_but_square_images_are_an_error():
    """The same for turns that come with the classes."""
    data = coded([3, 3])._replace(turns=torch.tensor([0, 1]))
    with pytest.raises(fmeta.InputError, match="expected square images"):
        episodes(data, ways=2, shots=1, query=1)


def test_expected_accuracy_of_guessing_by_position_is_chance():
    """A learner that answers with its place in the query set is right once in `ways`: no order leaks."""
    ways, query, count = 5, 3, 2000
    y = episodes(coded([6] * 9), ways=ways, shots=1, query=query)(fmeta.key(19), count).query.y
    by_place = (torch.arange(ways * query) // query == y).double().mean()
    assert abs(by_place - 1 / ways) < 4 * math.sqrt(0.16 / (count * ways * query))
