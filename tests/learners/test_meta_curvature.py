"""Meta-Curvature's own facts."""

import torch
from helpers import F64, distance, labelled, regressor, vectors

import fmeta
from fmeta.core import fold, normal
from fmeta.core.tree import tree_map

KEY = fmeta.key(12)


def test_with_identities_it_is_maml_and_its_matrices_have_a_gradient():
    net, tasks = regressor(), vectors(fold(KEY, 1))
    learner = fmeta.meta_curvature(net, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    plain = fmeta.maml(net, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    meta = learner.init(KEY)
    grads = fmeta.meta_grad(learner)(meta, tasks)[0]
    assert distance(grads.params, fmeta.meta_grad(plain)(meta.params, tasks)[0]) < 1e-12
    assert all(m.abs().max() > 1e-6 for matrices in grads.curvature.values() for m in matrices)


def test_an_update_is_the_kronecker_product_of_the_matrices_times_the_gradient():
    """A convolution's [out, in, height, width]: (M₁ ⊗ M₂ ⊗ M₃) vec(G), with one matrix for all kernel positions."""
    model = fmeta.models.conv4(
        3, form="pool", width=2, size=16, norm="none", activation=torch.tanh, pool="avg", dtype=F64
    )
    learner = fmeta.meta_curvature(model, fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)
    meta = learner.init(KEY)
    assert [tuple(m.shape) for m in meta.curvature["conv2.weight"]] == [(2, 2), (2, 2), (9, 9)]
    assert [tuple(m.shape) for m in meta.curvature["head.bias"]] == [(3, 3)]
    noise = {n: tuple(normal(fold(KEY, i), m.shape, F64) for i, m in enumerate(ms)) for n, ms in meta.curvature.items()}
    meta = meta._replace(curvature=noise)
    tasks = labelled(fold(KEY, 1), tasks=2, shots=1, shape=(1, 16, 16))
    task = tree_map(lambda t: t[0], tasks)
    params = {n: p.clone().requires_grad_() for n, p in meta.params.items()}
    loss = fmeta.cross_entropy(model.apply(params, task.support.x), task.support.y).mean()
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    fast = learner.adapt(meta, task.support, task.key)
    for name in ("conv2.weight", "head.weight", "head.bias"):
        whole = torch.eye(1, dtype=F64)
        for matrix in noise[name]:
            whole = torch.kron(whole, matrix)
        expected = meta.params[name] - 0.1 * (whole @ grads[name].reshape(-1)).reshape(grads[name].shape)
        assert distance(fast[name], expected) < 1e-12
