"""Networks of other libraries as encoders, and new last layers for them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fmeta.core import InputError, Model, Pictures, Tree
from fmeta.core._checks import nearest
from fmeta.models._from_module import Norm, from_module
from fmeta.models._weights import loading, misfits, read_weights, renamed


def backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    rename: Callable[[str], str | None] | None = None,
    channels: int = 3,
    norm: Norm | None = None,
    calibrate: Tree = None,
    **options: Any,
) -> Model:
    """An encoder of the timm library (https://huggingface.co/docs/timm), `[example, channel, height, width]` ->
    `[example, feature]`: "resnet18", "vgg11", and all that `timm.list_models()` lists. Needs the extra `backbones`.

    With weights, `expects` says what pictures timm's pretrained network of that name was trained on:

        x = (pictures - mean)/std,    pictures [example, channel, height, width] in 0 .. 1, of `size`

    Args:
        name: timm's.
        weights: None draws them at random, with torch's generator; "hub" downloads timm's pretrained ones; else a local
            file (.safetensors, or .pth read as weights only), whose classifier is left out.
        rename: for a file: from a name in it to timm's; None leaves a weight out. `lambda name:
            name.removeprefix("module.")` is for what DataParallel saved.
        channels: of the input; timm sums or repeats pretrained first layers to fit.
        norm: what to do about batch norm, as in `from_module`: "frozen" for pretrained weights, "batch" or "group" to
            train from scratch. None for networks without.
        calibrate: images to take frozen statistics from.
        options: more of `timm.create_model`.

    Raises:
        InputError: timm is not there or cannot be imported; an unknown name; weights that cannot be had or do not fit:
            a file that lacks some, or that has others beside the classifier.
    """
    timm = _timm()
    if name.partition(".")[0] not in timm.list_models():
        raise InputError(f"backbone({name!r}): unknown model; {nearest(name, timm.list_models())}")
    call = f"backbone({name!r}, weights={None if weights is None else str(weights)!r})"
    options = {"num_classes": 0, "in_chans": channels, **options}
    if isinstance(weights, Path) or weights not in (None, "hub"):
        module = _from_file(call, timm, name, renamed(call, read_weights(call, Path(weights)), rename), options)
    elif rename is not None:
        raise InputError(f"{call}: rename= is for the names in a file; expected weights='file.safetensors' beside it")
    else:
        module = _created(call, timm, name, {"pretrained": weights is not None, **options})
    model = from_module(module, norm=norm, calibrate=calibrate)
    return model if weights is None else model._replace(expects=_pictures(module.pretrained_cfg, channels))


def _created(call: str, timm: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # what a hub, a file format or a state dict can raise
        raise InputError(f"{call}: {error}; expected weights of this network") from error


def _from_file(call: str, timm: Any, name: str, weights: dict[str, Tensor], options: dict[str, Any]) -> Any:
    """timm fits them to the network's size and channels, and says nothing of those that it could not place."""
    overlay = {**options.get("pretrained_cfg_overlay", {}), "state_dict": weights}
    module: Any = None
    refused: InputError | None = None
    with loading() as (missing, unexpected):
        try:
            module = _created(call, timm, name, {**options, "pretrained": True, "pretrained_cfg_overlay": overlay})
        except InputError as error:
            refused = error
    if unexpected:
        unexpected = sorted(set(unexpected) - _names(timm, name, options))
    if missing or unexpected:
        raise InputError(f"{call}: {misfits(missing, unexpected)}") from refused
    if refused is not None:
        raise refused
    module.pretrained_cfg["state_dict"] = None
    return module


def _names(timm: Any, name: str, options: dict[str, Any]) -> set[str]:
    """Of all weights, those of the classifier among them."""
    return set(timm.create_model(name, **{n: v for n, v in options.items() if n != "num_classes"}).state_dict())


def _pictures(config: dict[str, Any], channels: int) -> Pictures:
    """Of one channel the average, as timm sums weights; of more than three again from the first, as timm repeats."""

    def by_channel(of: tuple[float, ...]) -> tuple[float, ...]:
        return (sum(of) / len(of),) if channels == 1 else tuple(of[i % len(of)] for i in range(channels))

    height, width = config["input_size"][1:]
    return Pictures(by_channel(config["mean"]), by_channel(config["std"]), (height, width))


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError("backbone: timm is not installed; pip install 'fmeta[backbones]'") from error
    except RuntimeError as error:  # torchvision's operators, built for another torch
        raise InputError(
            f"backbone: timm cannot be imported: {error}; expected torchvision of the same build as torch; install "
            "both from one index, such as https://download.pytorch.org/whl/cpu"
        ) from error


def replace_layer(module: nn.Module, name: str, layer: nn.Module | int) -> nn.Module:
    """A copy of `module` with another layer in the place called `name`; all other weights are copied.

    Args:
        module: any network.
        name: of the layer, as in `module.named_modules()`: "fc" of a ResNet, "classifier.6" of a VGG.
        layer: what takes its place; or a number of outputs, for a fresh linear (or convolutional) layer that is as the
            old one otherwise.

    Raises:
        InputError: no layer of that name; a number for a layer that is neither linear nor convolutional.
    """
    names = [n for n, _ in module.named_modules() if n]
    if name not in names:
        raise InputError(f"replace_layer({name!r}): {type(module).__name__} has no such layer; {nearest(name, names)}")
    changed = copy.deepcopy(module)
    old = changed.get_submodule(name)
    if isinstance(layer, int):
        layer = _with_outputs(name, old, layer)
    parent, _, child = name.rpartition(".")
    setattr(changed.get_submodule(parent), child, layer)
    return changed


def _with_outputs(name: str, old: nn.Module, outputs: int) -> nn.Module:
    if isinstance(old, nn.Linear):
        fresh: nn.Module = nn.Linear(old.in_features, outputs, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        shape: dict[str, Any] = {n: getattr(old, n) for n in ("kernel_size", "stride", "padding", "dilation")}
        fresh = nn.Conv2d(old.in_channels, outputs, **shape, bias=old.bias is not None)
    else:
        raise InputError(
            f"replace_layer({name!r}, {outputs}): it is a {type(old).__name__}; expected nn.Linear or nn.Conv2d for a "
            "number of outputs; pass the new layer itself"
        )
    return fresh.to(next(old.parameters()))
