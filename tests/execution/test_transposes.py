"""Products without transposed results are the same products."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fmeta
from fmeta.core.tree import tree_leaves
from fmeta.execution._transposes import without_transposed_products

KEY = fmeta.key(4)
FORMS = {
    "(ab)'": lambda a, b: (a @ b).mT,
    "a'b'": lambda a, b: a.mT @ b.mT,
    "(a'b')'": lambda a, b: (a.mT @ b.mT).mT * 2,
    "((ab)')'": lambda a, b: (a @ b).mT.mT + 1,
    "(ab)' and ab": lambda a, b: ((a @ b).mT, a @ b),
    "(ab')' view": lambda a, b: (a @ b).mT.reshape(-1),
    "a'b' view": lambda a, b: (a.mT @ b.mT).reshape(-1),
    "as it lies": lambda a, b: (a @ b).mT.as_strided((4, 4), (4, 1)),
    "sum of (ab)'": lambda a, b: (a @ b).mT.sum(0),
}


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("form", FORMS)
def test_they_are_the_same_products(batch, form):
    a, b = torch.randn(*batch, 4, 5, dtype=torch.float64), torch.randn(*batch, 5, 4, dtype=torch.float64)
    function = FORMS[form]
    graph = make_fx(function, tracing_mode="fake")(a, b)
    without_transposed_products(graph)
    for found, expected in zip(tree_leaves(graph(a, b)), tree_leaves(function(a, b)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    transposed = [n for n in graph.graph.nodes if n.target in (torch.ops.aten.t.default, torch.ops.aten.transpose.int)]
    assert len(transposed) <= 2


def test_products_read_their_operands_before_these_are_written_to():
    def function(a, b):
        a = a.clone()
        product = a @ b
        a.mul_(0.0)
        turned = product.mT
        turned.add_(1.0)
        return turned, a.mT @ b.mT

    a, b = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
    graph = make_fx(function, tracing_mode="fake")(a, b)
    without_transposed_products(graph)
    for found, expected in zip(graph(a, b), function(a, b), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_derivatives_of_a_linear_layer_have_no_transposed_results():
    """What the rewriting is for: sums over tasks and updates read the gradient of a weight as it lies."""
    learner = fmeta.maml(fmeta.models.mlp([1, 8, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    fmeta.compile(fmeta.meta_grad(learner), backend=backend)(learner.init(KEY), fmeta.tasks.sinusoid()(KEY, 3))
    products = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
    for node in seen[0].graph.nodes:
        if node.target in (torch.ops.aten.t.default, torch.ops.aten.transpose.int):
            assert node.args[0].target not in products or len(node.args[0].users) > 1
