"""Task encoders: an embedding of the support set that can be read, and a network that it modulates."""

import torch
from helpers import F64, drawn

import fmeta
from fmeta.core import fold, normal, randint
from fmeta.core.tree import tree_map

KEY = fmeta.key(71)
ENCODER, NETWORK = (
    fmeta.models.mlp([4, 8, 2], torch.tanh, F64),
    fmeta.models.mlp([4, 8, 5], torch.tanh, F64, film=2),
)
CLASSES = fmeta.task_encoder(ENCODER, NETWORK, ways=3)
SUPPORT, OTHER, QUERY = (drawn(fold(KEY, i), c) for i, c in enumerate(([3, 1, 2], [2, 2, 2], [2, 2, 2])))


def test_classes_are_told_by_the_means_of_the_modulated_features():
    meta = CLASSES.init(KEY)
    embedding = sum(ENCODER.apply(meta.encoder, x[None])[0] for x in SUPPORT.x) / 6
    features = NETWORK.apply(meta.network, (SUPPORT.x, embedding))
    means = torch.stack([features[SUPPORT.y == n].mean(0) for n in range(3)])
    found = NETWORK.apply(meta.network, (QUERY.x, embedding))
    expected = torch.stack([-((q - means) ** 2).sum(-1) for q in found])
    fast = CLASSES.adapt(meta, SUPPORT, ())
    torch.testing.assert_close(fast.embedding, embedding)
    torch.testing.assert_close(CLASSES.predict(fast, meta, QUERY.x), expected)


def test_the_order_of_the_support_set_and_the_names_of_its_classes_do_not_matter():
    meta = CLASSES.init(KEY)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    fast, turned = (CLASSES.adapt(meta, s, ()) for s in (SUPPORT, tree_map(lambda t: t[order], SUPPORT)))
    torch.testing.assert_close(turned, fast)
    renamed = CLASSES.adapt(meta, SUPPORT._replace(y=(SUPPORT.y + 1) % 3), ())
    torch.testing.assert_close(renamed.embedding, fast.embedding)
    torch.testing.assert_close(
        CLASSES.predict(renamed, meta, QUERY.x), CLASSES.predict(fast, meta, QUERY.x).roll(1, -1)
    )


def slopes(key, count):
    """Lines through 0 of slope −1 or 1: two clusters of tasks."""
    sign = 2.0 * randint(fold(key, 0), 2, (count,)).float() - 1.0

    def points(number, size):
        x = normal(fold(key, number), (count, size, 1))
        return fmeta.Examples(x, sign[:, None, None] * x + 0.1 * normal(fold(key, number + 1), x.shape))

    return fmeta.Task(points(1, 5), points(3, 10)), sign


def test_tasks_that_are_alike_have_embeddings_that_are_near():
    learner = fmeta.task_encoder(fmeta.models.mlp([2, 16, 3]), fmeta.models.mlp([1, 16, 1], film=3), fmeta.mse)
    trainer = fmeta.trainer(learner, fmeta.adam(1e-2))
    state = trainer.init(KEY)
    for k in range(150):
        state, _ = trainer.step(state, slopes(fold(KEY, k), 16)[0])
    tasks, sign = slopes(fold(KEY, 999), 60)
    assert fmeta.evaluate(learner, state.meta, tasks).mean("loss")[0] < 0.1
    embedding = fmeta.adapt_tasks(learner, state.meta, tasks).embedding
    assert embedding.shape == (60, 3)
    centres = torch.stack([embedding[sign == s].mean(0) for s in (-1, 1)])
    nearest = torch.cdist(embedding, centres).argmin(1)
    assert torch.equal(nearest, (sign > 0).long())


def test_adapt_tasks_gives_what_each_task_alone_gives():
    tasks = tree_map(lambda a, b: torch.stack([a, b]), fmeta.Task(SUPPORT, QUERY), fmeta.Task(OTHER, QUERY))
    meta = CLASSES.init(KEY)
    together = fmeta.adapt_tasks(CLASSES, meta, tasks)
    for i, support in enumerate((SUPPORT, OTHER)):
        torch.testing.assert_close(tree_map(lambda t, i=i: t[i], together), CLASSES.adapt(meta, support, ()))
