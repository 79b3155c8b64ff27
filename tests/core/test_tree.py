"""Trees: the order of leaves, names."""

import gc

import torch

from fmeta.core import tree


def test_dicts_keep_the_order_of_their_keys():
    gc.collect()
    params = {"weight": torch.ones(1), "bias": {"z": torch.zeros(1), "a": torch.ones(2)}}
    assert tree.leaf_names(params) == ["weight", "bias.z", "bias.a"]
    assert [leaf.shape[0] for leaf in tree.tree_leaves(params)] == [1, 1, 2]
    assert list(tree.tree_map(torch.clone, params)) == ["weight", "bias"]
