"""Weights from files: other names, and what is missing or unexpected."""

import gc

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fmeta.core import InputError
from fmeta.models._weights import loading, misfits, read_weights, renamed


class Net(nn.Module):
    """Loads weights while it is made, strict or not, as timm's networks do."""

    def __init__(self, weights, strict=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        self.load_state_dict(weights, strict=strict)


WHOLE = {
    "body.0.weight": torch.ones(3, 2), "body.0.bias": torch.ones(3), "body.1.weight": torch.ones(3),
    "body.1.bias": torch.ones(3), "body.1.running_mean": torch.ones(3), "body.1.running_var": torch.ones(3),
    "head.weight": torch.ones(1, 3), "head.bias": torch.ones(1),
}  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_module_finds_missing_and_unexpected_while_it_is_made_is_known(strict):
    held = {n: v for n, v in WHOLE.items() if n != "body.0.bias"} | {"tail.weight": torch.ones(1)}
    with loading() as (missing, unexpected):
        try:
            Net(held, strict)
        except RuntimeError:
            assert strict
    assert (missing, unexpected) == (["body.0.bias"], ["tail.weight"])
    with loading() as (missing, unexpected):
        net = Net(WHOLE)
    assert (missing, unexpected) == ([], [])
    assert all(not module._load_state_dict_post_hooks for module in net.modules())


def test_modules_made_later_are_not_watched():
    with loading() as (missing, _):
        pass
    gc.collect()
    Net({})
    assert missing == []


def test_names_that_do_not_fit_are_counted_and_three_are_named():
    names = list("abcde")
    assert "lacks 5 weights (a, b, c, …) of the network;" in misfits(names, [])
    assert "holds 1 weight (x) that the network has not; expected" in misfits([], ["x"])
    assert "lacks 1 weight (a) of the network and it holds 2 weights (x, y) that" in misfits(["a"], ["x", "y"])
    assert 'rename=lambda name: name.removeprefix("module.")' in misfits(["a"], ["module.a"])


def test_weights_are_renamed_left_out_and_never_lost():
    held = {"a": torch.ones(1), "b": torch.zeros(1)}
    assert renamed("call", held, None) is held
    assert renamed("call", held, {"a": "c", "b": None}.get) == {"c": held["a"]}
    with pytest.raises(InputError, match=r"call: rename\('b'\) gave 'c', for the second time; expected a name of its"):
        renamed("call", held, lambda name: "c")
    with pytest.raises(InputError, match=r"rename\('a'\) gave 1, a int"):
        renamed("call", held, lambda name: 1)


def test_files_are_read_as_weights_alone(tmp_path):
    for name, held in (("a.pth", WHOLE), ("b.pth", {"model": WHOLE, "epoch": 3}), ("c.pth", {"state_dict": WHOLE})):
        torch.save(held, tmp_path / name)
        assert read_weights("call", tmp_path / name).keys() == WHOLE.keys()
    save_file(WHOLE, tmp_path / "d.safetensors")
    assert read_weights("call", tmp_path / "d.safetensors").keys() == WHOLE.keys()
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(InputError, match=r"call: (?s:.*)expected weights of this network, .safetensors or .pth"):
        read_weights("call", tmp_path / "module.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"call: the file holds a dict; expected tensors by name"):
        read_weights("call", tmp_path / "none.pth")
    with pytest.raises(InputError, match="call: no such file; expected one, 'hub', or None"):
        read_weights("call", tmp_path / "nowhere.pth")
