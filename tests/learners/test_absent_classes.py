"""A learner of many ways on a task with fewer classes is the learner of fewer ways, to the last digits."""

import pytest
import torch
from helpers import F64, drawn

import fmeta
from fmeta.core import InputError, fold
from fmeta.core.tree import tree_map
from fmeta.testing import distance

KEY = fmeta.key(41)
WAYS, HELD = 5, [0, 1, 2]
ENCODER = fmeta.models.mlp([4, 8, 6], torch.tanh, F64)
COMPARISON = fmeta.models.mlp([12, 6, 1], torch.tanh, F64)
BUILD = {
    "protonet": lambda ways: fmeta.protonet(ENCODER, ways=ways),
    "protonet-cosine": lambda ways: fmeta.protonet(ENCODER, ways=ways, distance="cosine"),
    "ridge": lambda ways: fmeta.ridge(ENCODER, ways=ways, damping=0.7),
    "ridge-wide": lambda ways: fmeta.ridge(fmeta.models.mlp([4, 40], torch.tanh, F64), ways=ways, damping=0.7),
    "matching": lambda ways: fmeta.matching(ENCODER, ways=ways, scale=3.0),
    "matching-context": lambda ways: fmeta.matching(ENCODER, ways=ways, full_context=6, reads=2),
    "relation": lambda ways: fmeta.relation(ENCODER, COMPARISON, ways=ways),
    "protomaml": lambda ways: fmeta.protomaml(ENCODER, ways=ways, optimizer=fmeta.sgd(0.3), steps=3),
    "protomaml-adam": lambda ways: fmeta.protomaml(
        ENCODER, ways=ways, optimizer=fmeta.adamw(0.02, eps=1e-3, weight_decay=0.1), steps=3
    ),
}


def smaller():
    """Two tasks of three classes."""
    tasks = [
        fmeta.Task(drawn(fold(KEY, i), [2, 1, 3]), drawn(fold(KEY, 10 + i), [2, 2, 1]), fold(KEY, 20 + i))
        for i in (0, 1)
    ]
    return tree_map(lambda *leaves: torch.stack(leaves), *tasks)


def padded(tasks, label):
    """Two more examples of weight 0 in front and behind, of any class."""

    def more(examples):
        count, length = examples.y.shape
        x = torch.cat([examples.x[:, :1] + 1.0, examples.x, examples.x[:, -1:] - 1.0], 1)
        y = torch.nn.functional.pad(examples.y, (1, 1), value=label)
        return fmeta.Examples(x, y, torch.nn.functional.pad(torch.ones(count, length), (1, 1)))

    return tasks._replace(support=more(tasks.support), query=more(tasks.query))


def predicted(learner, meta, tasks, i):
    task = tree_map(lambda t: t[i], tasks)
    return learner.predict(learner.adapt(meta, task.support, task.key), meta, task.query.x)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("padding", [None, 0, 4], ids=["unpadded", "padding of class 0", "padding of an absent class"])
def test_absent_classes_change_nothing(name, padding):
    """Loss, meta-gradient, predictions and adapted state of the task of fewer ways, in a batch and one by one."""
    few, many = BUILD[name](len(HELD)), BUILD[name](WAYS)
    tasks = smaller()
    wide = tasks if padding is None else padded(tasks, padding)
    meta = few.init(KEY)
    for gradient in [fmeta.unrolled()] + ([fmeta.adjoint(), fmeta.first_order()] if few.inner else []):
        expected, info = fmeta.meta_grad(few, gradient)(meta, tasks)
        found, wide_info = fmeta.meta_grad(many, gradient)(meta, wide)
        assert distance(wide_info.losses, info.losses) < 1e-12
        assert distance(found, expected) < 1e-12
    for i in (0, 1):
        logits = predicted(many, meta, wide, i)
        logits = logits if padding is None else logits[1:-1]
        assert distance(logits[:, HELD], predicted(few, meta, tasks, i)) < 1e-12
        assert torch.isin(logits.argmax(-1), torch.tensor(HELD)).all()
        if name != "relation":
            assert (logits.softmax(-1)[:, len(HELD) :] == 0).all()
        task = tree_map(lambda t, i=i: t[i], wide)
        assert abs(many.loss(many.adapt(meta, task.support, task.key), meta, task.query)[0] - info.losses[i]) < 1e-12


@pytest.mark.parametrize("name", BUILD)
def test_any_classes_may_be_absent(name):
    """Classes 1, 3 and 4 in the place of 0, 1 and 2: labels are names, not numbers."""
    few, many = BUILD[name](3), BUILD[name](WAYS)
    tasks, names = smaller(), torch.tensor([1, 3, 4])
    renamed = tasks._replace(
        support=tasks.support._replace(y=names[tasks.support.y]), query=tasks.query._replace(y=names[tasks.query.y])
    )
    meta = few.init(KEY)
    expected, found = fmeta.meta_grad(few)(meta, tasks), fmeta.meta_grad(many)(meta, renamed)
    assert distance(found[0], expected[0]) < 1e-12
    assert distance(found[1].losses, expected[1].losses) < 1e-12


@pytest.mark.parametrize("name", ["protonet", "ridge", "matching", "relation", "protomaml"])
def test_compiled_is_eager_and_a_stray_query_is_not_a_number(name):
    learner, tasks = BUILD[name](WAYS), padded(smaller(), 4)
    meta = learner.init(KEY)
    eager = fmeta.meta_grad(learner)
    run = fmeta.compile(eager, backend="aot_eager")
    assert distance(run(meta, tasks)[0], eager(meta, tasks)[0]) < 1e-12
    stray = tasks._replace(query=tasks.query._replace(y=tasks.query.y.clone().index_fill_(1, torch.tensor([2]), 3)))
    grads, info = run(meta, stray)
    assert info.losses.isnan().all()
    assert not all(torch.isfinite(leaf).all() for leaf in fmeta.tree.tree_leaves(grads))
    with pytest.raises(InputError, match=rf"{name}: a query example is of class 3, which has no support example"):
        eager(meta, stray)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["protonet", "ridge", "matching", "relation", "protomaml"])
def test_lower_precision_has_room_for_absence(name, dtype):
    """Nothing overflows, forward or backward."""
    if name == "ridge" and dtype == torch.bfloat16:
        pytest.skip("torch solves no linear systems in bfloat16")
    learner = BUILD[name](WAYS)
    meta, tasks = tree_map(
        lambda t: t.to(dtype) if t.is_floating_point() else t, (learner.init(KEY), padded(smaller(), 4))
    )
    grads, info = fmeta.meta_grad(learner)(meta, tasks)
    assert info.losses.isfinite().all()
    assert all(leaf.isfinite().all() for leaf in fmeta.tree.tree_leaves(grads))


@pytest.mark.parametrize("name", ["protonet", "ridge", "matching", "relation", "protomaml"])
@pytest.mark.parametrize("part", ["support", "query"])
def test_a_label_out_of_range_is_never_learned_from(name, part):
    """Eager it is named; a compiled step, which cannot raise, is withheld because its loss is not finite."""
    trainer, tasks = fmeta.trainer(BUILD[name](3), fmeta.sgd(0.1)), smaller()
    y = getattr(tasks, part).y.clone()
    y[1, 0] = 3
    odd = tasks._replace(**{part: getattr(tasks, part)._replace(y=y)})
    state = trainer.init(KEY)
    with pytest.raises(InputError, match="labels run from 0 to 3"):
        trainer.step(state, odd)
    step = fmeta.compile(trainer.step, backend="aot_eager")
    state, _ = step(state, tasks)
    after, _ = step(state, odd)
    assert after.bad == 1
    assert all(
        torch.equal(a, b) for a, b in zip(*(fmeta.tree.tree_leaves(s.meta) for s in (state, after)), strict=True)
    )
