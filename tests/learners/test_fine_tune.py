"""Transfer learning: pretraining, new heads on frozen features, full fine-tuning, and meta-training from there."""

import pytest
import torch
from helpers import F64, drawn
from torch.nn import functional as F

import fmeta
from fmeta.core import InputError, fold, normal
from fmeta.core.tree import tree_map

KEY = fmeta.key(81)
ENCODER = fmeta.models.mlp([4, 8, 5], torch.tanh, F64)
META = ENCODER.init(KEY)
SUPPORT, QUERY = drawn(fold(KEY, 1), [4, 1, 2]), drawn(fold(KEY, 2), [3, 3, 3])
WEIGHTED = SUPPORT._replace(weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 1.5, 0.2], dtype=F64))


def by_hand(support, head, everything, steps, rate):
    """The same descent with torch.optim."""
    params = {n: p.clone().requires_grad_(everything) for n, p in META.items()}
    weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones(len(support.y), dtype=F64)
    start = ENCODER.apply(META, support.x)
    if head == "linear":
        own = [torch.zeros(3, 5, dtype=F64, requires_grad=True), torch.zeros(3, dtype=F64, requires_grad=True)]
    else:
        means = [weight[support.y == n] @ start[support.y == n] / weight[support.y == n].sum() for n in range(3)]
        own = [torch.stack(means).requires_grad_()]

    def logits(x):
        features = ENCODER.apply(params, x)
        if head == "linear":
            return F.linear(features, *own)
        return 10.0 * F.cosine_similarity(features[:, None], own[0][None], dim=-1)

    optimizer = torch.optim.SGD([*own, *(params.values() if everything else ())], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = F.cross_entropy(logits(support.x), support.y, reduction="none")
        ((weight * losses).sum() / weight.sum()).backward()
        optimizer.step()
    return logits(QUERY.x).detach()


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("adapt", ["head", "all"])
@pytest.mark.parametrize("support", [SUPPORT, WEIGHTED])
def test_it_descends_as_torch_optim_does(head, adapt, support):
    learner = fmeta.fine_tune(ENCODER, ways=3, adapt=adapt, head=head, optimizer=fmeta.sgd(0.3), steps=7)
    found = learner.predict(learner.adapt(META, support, ()), META, QUERY.x)
    torch.testing.assert_close(found, by_hand(support, head, adapt == "all", 7, 0.3), rtol=1e-6, atol=1e-8)


def test_a_frozen_encoder_looks_at_the_support_set_once():
    seen = []

    def apply(params, x):
        seen.append(len(x))
        return ENCODER.apply(params, x)

    learner = fmeta.fine_tune(fmeta.Model(ENCODER.init, apply), ways=3, optimizer=fmeta.sgd(0.3), steps=50)
    learner.adapt(META, SUPPORT, ())
    assert seen == [7]


def groups(key, count):
    """Sixteen clusters in ten dimensions: the training classes, and eight more for new tasks."""
    return normal(fold(key, 0), (count, 10)) * torch.tensor([1.0] * 3 + [0.05] * 7)


def data(first, last):
    centres = groups(KEY, 24)[first:last]
    noise = torch.tensor([0.3] * 3 + [1.0] * 7)
    return fmeta.tasks.class_data(
        {f"c{i}": c + noise * normal(fold(KEY, 100 + first + i), (40, 10)) for i, c in enumerate(centres)}
    )


def trained(learner, sample, steps):
    trainer = fmeta.trainer(learner, fmeta.adam(1e-2))
    state = trainer.init(KEY)
    for k in range(steps):
        state, _ = trainer.step(state, sample(fold(KEY, k), 4))
    return state.meta


def test_pretraining_makes_features_that_serve_new_classes():
    encoder = fmeta.models.mlp([10, 32, 8])
    classifier = fmeta.models.with_head(encoder, 16, features=8)
    accuracy = {"accuracy": fmeta.accuracy}
    pretrained = trained(
        fmeta.supervised(classifier, metrics=accuracy), fmeta.tasks.batches(data(0, 16), size=32), 150
    )["encoder"]
    tasks = fmeta.tasks.episodes(data(16, 24), ways=5, shots=1, query=5)(fold(KEY, 7), 100)
    own = {"ways": 5, "optimizer": fmeta.adam(0.05), "steps": 30, "metrics": accuracy}
    for options in ({}, {"head": "cosine"}, {"adapt": "all", "optimizer": fmeta.adam(0.005)}):
        learner = fmeta.fine_tune(encoder, **{**own, **options})
        before, after = (
            fmeta.evaluate(learner, meta, tasks).mean("accuracy")[0] for meta in (encoder.init(KEY), pretrained)
        )
        assert after > before + 0.05, f"{options}: {before:.3f} from random features, {after:.3f} from pretrained ones"
    net = fmeta.models.with_head(encoder, 5, features=8)
    maml = fmeta.maml(net, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=5, metrics=accuracy)
    warm = fmeta.starting_from(maml, {"encoder": pretrained})
    sample = fmeta.tasks.episodes(data(0, 16), ways=5, shots=1, query=5)
    cold_after, warm_after = (
        fmeta.evaluate(maml, trained(each, sample, 20), tasks).mean("accuracy")[0] for each in (maml, warm)
    )
    assert warm_after > cold_after + 0.05, f"{cold_after:.3f} from scratch, {warm_after:.3f} from pretrained weights"


def test_transfer_pretrains_on_batches_and_fine_tunes_on_tasks():
    """Without a support set the classifier of all classes, with one fine_tune on its encoder."""
    classifier = fmeta.models.with_head(ENCODER, 7, features=5)
    own = fmeta.fine_tune(ENCODER, ways=3, optimizer=fmeta.sgd(0.3), steps=4, metrics={"accuracy": fmeta.accuracy})
    learner = fmeta.transfer(classifier, own)
    meta = learner.init(KEY)
    batch = fmeta.Examples(QUERY.x, torch.arange(9) % 7)
    loss, _ = learner.loss(learner.adapt(meta, fmeta.Examples((), ()), ()), meta, batch)
    assert loss.item() == pytest.approx(F.cross_entropy(classifier.apply(meta, batch.x), batch.y).item())
    fast = learner.adapt(meta, SUPPORT, ())
    torch.testing.assert_close(
        learner.predict(fast, meta, QUERY.x),
        own.predict(own.adapt(meta["encoder"], SUPPORT, ()), meta["encoder"], QUERY.x),
    )
    everything = fmeta.fine_tune(ENCODER, ways=3, adapt="all", optimizer=fmeta.sgd(0.3), steps=4)
    with pytest.raises(InputError, match=r"transfer\(fine_tune\): it shows its inner steps"):
        fmeta.transfer(classifier, everything)


def test_starting_from_takes_the_named_leaves_and_draws_the_others():
    learner = fmeta.maml(ENCODER, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=1)
    given = {"hidden1.weight": torch.full((8, 4), 2.0)}
    meta = fmeta.starting_from(learner, given).init(KEY)
    assert torch.equal(meta["hidden1.weight"], torch.full((8, 4), 2.0, dtype=F64))
    assert torch.equal(meta["head.weight"], learner.init(KEY)["head.weight"])
    for params, came in (({"head.weight": torch.zeros(5, 7)}, r"'head.weight' \[5, 7\]"), ({}, "nothing")):
        with pytest.raises(InputError, match=rf"starting_from\(maml\): params hold {came}, which its meta does not"):
            fmeta.starting_from(learner, params).init(KEY)


def test_batches_draw_classes_alike_and_label_them_by_position():
    classes = fmeta.tasks.class_data({"a": torch.zeros(2, 1), "b": torch.ones(30, 1), "c": torch.full((5, 1), 2.0)})
    tasks = fmeta.tasks.batches(classes, size=50)(KEY, 20)
    assert tasks.support == fmeta.Examples((), ())
    assert torch.equal(tasks.query.x[..., 0], tasks.query.y.float())
    counts = tasks.query.y.flatten().bincount(minlength=3)
    assert ((counts - 1000 / 3).abs() < 60).all(), counts
    images = fmeta.tasks.class_data(dict.fromkeys("ab", torch.arange(16).view(1, 1, 4, 4).float()))
    turned = fmeta.tasks.batches(images, size=40, rotate=True)(KEY, 1).query.x[0]
    four = {tuple(torch.rot90(images.examples[0], k, (-2, -1)).flatten().tolist()) for k in range(4)}
    assert {tuple(t.flatten().tolist()) for t in turned} == four


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": "heads"}, r"fine_tune\(adapt='heads'"),
        ({"head": "dot"}, r"head='dot'"),
        ({"scale": -1.0}, r"scale=-1.0"),
        ({"steps": 0}, r"fine_tune\(steps=0\)"),
        ({"ways": 1}, r"fine_tune\(ways=1\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fmeta.fine_tune(ENCODER, **{"ways": 3, "optimizer": fmeta.sgd(0.1), "steps": 2, **options})


def test_evaluation_of_the_full_fine_tune_shows_every_step():
    learner = fmeta.fine_tune(
        ENCODER, ways=3, adapt="all", optimizer=fmeta.sgd(0.3), steps=2, metrics={"accuracy": fmeta.accuracy}
    )
    task = tree_map(lambda t: t[None], fmeta.Task(SUPPORT, QUERY))
    assert fmeta.evaluate(learner, META, task, steps=(0, 2, 5)).steps == (0, 2, 5)
