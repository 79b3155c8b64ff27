"""Heads on encoders, layers exchanged by name, and networks of the timm library."""

import importlib
import re
import sys

import pytest
import torch
from helpers import F64
from torch import nn
from torch.nn import functional as F

import fmeta
from fmeta.core import InputError
from fmeta.models import backbone, mlp, replace_layer, with_head

KEY = fmeta.key(8)
ENCODER = mlp([4, 8, 5], torch.tanh, F64)
X = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_linear_and_cosine_heads_classify_the_features():
    for head in ("linear", "cosine"):
        model = with_head(ENCODER, 3, features=5, head=head, scale=4.0)
        params = model.init(KEY)
        features, weight = ENCODER.apply(params["encoder"], X), params["head"]["weight"]
        if head == "linear":
            expected = F.linear(features, weight, params["head"]["bias"])
        else:
            expected = 4.0 * F.cosine_similarity(features[:, None], weight[None], dim=-1)
        torch.testing.assert_close(model.apply(params, X), expected)
    wrong = with_head(ENCODER, 3, features=7)
    params = wrong.init(KEY)
    with pytest.raises(InputError, match=r"with_head\(features=7\): the encoder gave \[6, 5\]; expected"):
        wrong.apply(params, X)


def test_a_heads_noise_and_calibration_are_the_encoders():
    module = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)).double()
    model = with_head(fmeta.from_module(module), 3, features=5)
    params = model.init(KEY)
    assert not torch.equal(model.noisy(params, X, KEY), model.apply(params, X))
    frozen = with_head(fmeta.models.conv4(None, width=4, size=16, norm="frozen"), 3, features=4)
    images = torch.rand(5, 1, 16, 16)
    calibrated = frozen.calibrate(frozen.init(KEY), images)
    assert not torch.equal(calibrated["encoder"]["norm1.mean"], torch.zeros(4))
    assert frozen.noisy is None


def test_a_layer_is_replaced_by_name_and_the_original_stays():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 10, bias=False)))
    changed = replace_layer(net, "2.0", 3)
    assert changed(X.float()).shape == (6, 3)
    assert changed[2][0].bias is None
    assert net(X.float()).shape == (6, 10)
    assert torch.equal(changed[0].weight, net[0].weight)
    assert changed[0].weight is not net[0].weight
    assert isinstance(replace_layer(net, "1", nn.ReLU())[1], nn.ReLU)
    conv = replace_layer(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1)), "0", 7)
    assert conv(torch.zeros(1, 3, 8, 8)).shape == (1, 7, 4, 4)
    with pytest.raises(InputError, match=r"replace_layer\('2.1'\): Sequential has no such layer; did you mean '2.0'"):
        replace_layer(net, "2.1", 3)
    with pytest.raises(InputError, match=r"it is a Tanh; expected nn.Linear or nn.Conv2d"):
        replace_layer(net, "1", 3)


@pytest.fixture(scope="module")
def timm():
    """timm, if it is there. A torchvision that was built for another torch has no detection operators and does not
    import without them; declared they do no harm, for no classifier uses them.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs the extra `backbones`")
    operators = torch.library.Library("torchvision", "DEF")
    while True:
        try:
            yield importlib.import_module("timm")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            operators.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "timm")]:
                del sys.modules[name]


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("vgg11", 4096)])
def test_a_backbone_is_an_encoder(timm, name, features):
    model = backbone(name, channels=1, norm="batch" if name == "resnet18" else None)
    params = model.init(KEY)
    assert model.apply(params, torch.rand(3, 1, 64, 64)).shape == (3, features)


def test_pretrained_weights_come_from_a_local_file(timm, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    module = timm.create_model("resnet18", num_classes=10).train()
    module(torch.rand(4, 3, 32, 32))  # statistics other than 0 and 1
    module.eval()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    model = backbone("resnet18", weights=tmp_path / "weights.safetensors", norm="frozen")
    x = torch.rand(2, 3, 32, 32)
    expected = module.forward_head(module.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.apply(model.init(KEY), x), expected, rtol=1e-4, atol=1e-5)
    learner = fmeta.fine_tune(model, ways=2, optimizer=fmeta.sgd(0.1), steps=2)
    support = fmeta.Examples(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    meta = learner.init(KEY)
    assert learner.predict(learner.adapt(meta, support, ()), meta, x).shape == (2, 2)


def test_backbones_that_cannot_be_had_are_named(timm, tmp_path):
    with pytest.raises(InputError, match=r"backbone\('resnet81'\): unknown model; did you mean 'resnet"):
        backbone("resnet81")
    with pytest.raises(InputError, match=r"weights='.*none.pth'\): no such file; expected one, 'hub', or None"):
        backbone("resnet18", weights=tmp_path / "none.pth", norm="frozen")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="expected weights of this network"):
        backbone("resnet18", weights=tmp_path / "bad.safetensors", norm="frozen")
