"""Where the batches of a run come from: by the key in blocks, or step by step, and never in silence."""

import random
import warnings

import numpy as np
import pytest
import torch
from helpers import F64

import fmeta
from fmeta import Examples, Task
from fmeta.training._batches import Batches

KEY = fmeta.key(0)
SINE = fmeta.tasks.sinusoid(shots=4, query=4)
POOL = [SINE(fmeta.key(i), 2) for i in range(50)]
LEARNER = fmeta.maml(fmeta.models.mlp([1, 4, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)


def drawn(sample, steps=300, meta_batch=2, start=0):
    batches = Batches({0: sample}, KEY, meta_batch, start, range(meta_batch))
    return [batches.draw() for _ in range(steps)]


def distinct(tasks):
    return len({t.support.x.numpy().tobytes() for t in tasks})


def by_random(key, count):
    return POOL[random.randrange(50)]


def by_numpy(key, count):
    x = torch.from_numpy(np.random.randn(count, 4, 1).astype("f4"))
    return Task(Examples(x, x), Examples(x, x), fmeta.split(key, count))


def by_torch(key, count):
    x = torch.randn(count, 4, 1)
    return Task(Examples(x, x), Examples(x, x), fmeta.split(key, count))


def by_an_iterator(key, count, items=iter(POOL * 20)):  # noqa: B008
    return next(items)


def partly_by_key(key, count):
    x = torch.randn(count, 4, 1)
    y = fmeta.uniform(key, (count, 1, 1)) * x
    return Task(Examples(x, y), Examples(x, y), fmeta.split(key, count))


@pytest.mark.parametrize("sample", [by_random, by_numpy, by_torch, by_an_iterator, partly_by_key])
def test_what_does_not_draw_by_the_key_is_called_at_every_step_and_said(sample):
    with pytest.warns(UserWarning, match=r"same key gave other tasks.*from_loader"):
        tasks = drawn(sample)
    assert distinct(tasks) >= 45


def by_looking(key, count):
    """A function of the key that vmap cannot batch."""
    picks = [POOL[int(k) % 50] for k in fmeta.split(key, count)]
    return fmeta.tree.tree_map(lambda *leaves: torch.stack([leaf[0] for leaf in leaves]), *picks)


def test_what_looks_at_its_key_is_called_at_every_step_without_a_word():
    tasks = drawn(by_looking)
    assert distinct(tasks) > 200
    again = drawn(by_looking, steps=10, start=290)  # resumed
    assert all(torch.equal(a.support.x, b.support.x) for a, b in zip(tasks[290:], again, strict=True))


def test_fixed_tasks_stay_what_they_are():
    assert distinct(drawn(lambda key, count: POOL[0])) == 1


def test_samplers_by_the_key_are_drawn_in_blocks():
    calls = []

    def counted(key, count):
        calls.append(count)
        return SINE(key, count)

    tasks = drawn(counted)
    assert len(calls) <= 8
    assert torch.equal(tasks[7].support.x, SINE(fmeta.fold(KEY, 7), 2).support.x)


@pytest.mark.parametrize("given", [1, 3])
def test_another_number_of_tasks_is_refused(given):
    with pytest.raises(fmeta.InputError, match=rf"meta_batch=2.*gave {given} tasks; expected 2"):
        drawn(lambda key, count: SINE(key, given), 1)


def test_tasks_without_keys_get_their_own():
    one, two = drawn(lambda key, count: SINE(key, count)._replace(key=()), 2)
    assert one.key.shape == (2,)
    assert len({int(k) for k in (*one.key, *two.key)}) == 4


class TestFromLoader:
    def items(self, count=5, tasks=2):
        return [SINE(fmeta.key(i), tasks) for i in range(count)]

    def test_each_step_takes_the_next_and_begins_anew(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tasks = drawn(fmeta.tasks.from_loader(self.items()), 12)
        for k, task in enumerate(tasks):
            assert torch.equal(task.support.x, self.items()[k % 5].support.x)

    def test_a_data_loader_in_torchmetas_form(self):
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, i):
                x = np.full((4, 1), i, "f4")
                return {"train": (x, x), "test": (x + 1, x)}

        loader = torch.utils.data.DataLoader(Data(), batch_size=2)
        tasks = drawn(fmeta.tasks.from_loader(loader), 4)
        assert [t.query.x[:, 0, 0].tolist() for t in tasks] == [[1, 2], [3, 4], [5, 6], [1, 2]]

    def test_single_tasks_are_stacked(self):
        singles = [(((np.full((4, 1), i, "f4"),) * 2), ((np.full((3, 1), i, "f4"),) * 2)) for i in range(6)]
        sample = fmeta.tasks.from_loader(singles, batched=False)
        assert sample(KEY, 4).support.x[:, 0, 0].tolist() == [0, 1, 2, 3]
        assert sample(KEY, 4).query.x[:, 0, 0].tolist() == [4, 5, 0, 1]

    def test_an_item_of_another_form_by_a_function(self):
        sample = fmeta.tasks.from_loader([{"a": self.items()[0]}], to_task=lambda item: item["a"])
        assert torch.equal(sample(KEY, 2).support.x, self.items()[0].support.x)

    def test_it_trains(self):
        state = fmeta.fit(
            LEARNER, fmeta.adam(1e-2), fmeta.tasks.from_loader(self.items()), key=KEY, iterations=7, meta_batch=2
        )
        assert state.step == 7

    def test_a_resumed_run_says_that_its_draws_are_new(self, tmp_path):
        given = {"key": KEY, "meta_batch": 2, "run_dir": tmp_path / "run"}
        fmeta.fit(LEARNER, fmeta.adam(1e-2), fmeta.tasks.from_loader(self.items()), iterations=3, **given)
        with pytest.warns(UserWarning, match="resumed at step 3 with new draws"):
            fmeta.fit(
                LEARNER, fmeta.adam(1e-2), fmeta.tasks.from_loader(self.items()), iterations=5, resume=True, **given
            )

    @pytest.mark.parametrize(
        ("loader", "words"),
        [
            (3, "something to iterate over"),
            ([], "it has ended"),
            ([3], "an item is a int"),
            ([{"train": 1, "test": 2}], "support is a int"),
            ([(("a", "b"), ("c", "d"))], "holds a str"),
        ],
    )
    def test_what_is_no_source_is_named(self, loader, words):
        with pytest.raises(fmeta.InputError, match=words):
            fmeta.tasks.from_loader(loader)(KEY, 2)

    def test_an_iterator_that_ends_is_named(self):
        sample = fmeta.tasks.from_loader(iter(self.items(1)))
        sample(KEY, 2)
        with pytest.raises(fmeta.InputError, match="begins anew"):
            sample(KEY, 2)


class TestOwnSampler:
    def test_draws_that_are_not_by_the_key_are_made_task_by_task(self):
        def one(key):
            x = torch.randn(4, 2, dtype=F64)
            return Task(Examples(x, x), Examples(x, x), key)

        sample = fmeta.tasks.sampler(one)
        assert len({x.numpy().tobytes() for x in sample(KEY, 5).support.x}) == 5

    def test_a_key_may_be_looked_at(self):
        def one(key):
            x = torch.full((4, 2), float(int(key) % 1000))
            return Task(Examples(x, x), Examples(x, x), key)

        sample = fmeta.tasks.sampler(one)
        expected = [float(int(k) % 1000) for k in fmeta.split(KEY, 5)]
        assert sample(KEY, 5).support.x[:, 0, 0].tolist() == expected
        assert sample.part(KEY, 5, range(2, 4)).support.x[:, 0, 0].tolist() == expected[2:4]

    def test_the_first_call_may_be_under_vmap(self):
        def one(key):
            x = fmeta.normal(key, (5, 1))
            return Task(Examples(x, x), Examples(x, x), key)

        fresh, keys = fmeta.tasks.sampler(one), fmeta.split(KEY, 2)
        found = torch.func.vmap(lambda key: fresh(key, 4).support.x)(keys)
        assert torch.equal(found, torch.stack([fmeta.tasks.sampler(one)(key, 4).support.x for key in keys]))

    def test_tasks_of_different_shapes_are_named(self):
        def one(key):
            x = torch.randn(2 + int(key) % 7, 1)
            return Task(Examples(x, x), Examples(x, x), key)

        with pytest.raises(fmeta.InputError, match="different shapes"):
            fmeta.tasks.sampler(one)(KEY, 9)


def test_a_smaller_last_batch_of_a_loader_is_named_with_the_cure():
    items = [SINE(fmeta.key(0), 2), SINE(fmeta.key(1), 1)]
    with pytest.raises(fmeta.InputError, match="drop_last=True"):
        drawn(fmeta.tasks.from_loader(items), 2)
