"""Networks that look at the support set beside every input."""

import pytest
import torch
from helpers import F64, drawn

import fmeta
from fmeta.core import InputError, fold
from fmeta.core.tree import tree_map

KEY = fmeta.key(51)
SUPPORT, QUERY = drawn(fold(KEY, 1), [2, 2, 2], (1, 8, 8)), drawn(fold(KEY, 2), [2, 2, 2], (1, 8, 8))


def learner(norm, **more):
    model = fmeta.models.conv4(3, width=4, size=8, norm=norm, activation=torch.tanh, dtype=F64)
    built = fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=2, **more)
    return built if norm == "batch" else fmeta.in_context(built)


@pytest.mark.parametrize("norm", ["support", "task"])
def test_no_query_example_sees_another(norm):
    """What batch statistics cannot promise."""
    for kind, alone_is_together in ((norm, True), ("batch", False)):
        own = learner(kind)
        meta = own.init(KEY)
        fast = own.adapt(meta, SUPPORT, ())
        together = own.predict(fast, meta, QUERY.x)
        size = 1 if alone_is_together else 2  # the batch's statistics of one example are refused
        alone = torch.cat([own.predict(fast, meta, x) for x in QUERY.x.split(size)])
        assert torch.allclose(together, alone, atol=1e-10) is alone_is_together


def test_padding_counts_neither_in_the_loss_nor_in_the_norm():
    own = learner("task")
    meta = own.init(KEY)
    more = fmeta.Examples(
        torch.cat([SUPPORT.x, 9 + SUPPORT.x[:2]]), torch.cat([SUPPORT.y, SUPPORT.y[:2]]), torch.ones(8, dtype=F64)
    )
    more.weight[6:] = 0.0
    plain, padded = (own.predict(own.adapt(meta, s, ()), meta, QUERY.x) for s in (SUPPORT, more))
    torch.testing.assert_close(padded, plain)


def test_the_meta_gradient_of_a_whole_network_is_exact():
    own = learner("task")
    task = tree_map(lambda t: t[None], fmeta.Task(SUPPORT, QUERY))
    meta = own.init(KEY)
    report = fmeta.check_meta_grad(own, meta, task)
    assert report.order == "exact"
    grads = [fmeta.meta_grad(own, g)(meta, task)[0] for g in (fmeta.unrolled(), fmeta.adjoint())]
    assert fmeta.testing.distance(*grads) < 1e-12


def test_reptile_is_refused_because_fast_carries_the_support_set():
    own = learner("support", gradient=fmeta.difference())
    task = tree_map(lambda t: t[None], fmeta.Task(SUPPORT, QUERY))
    with pytest.raises(InputError, match="fast weights shaped like meta"):
        fmeta.meta_grad(own)(own.init(KEY), task)
