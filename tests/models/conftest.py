"""Libraries of networks, which are tried where they are installed."""

import importlib
import importlib.util
import re
import sys

import pytest
import torch

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def imported(library):
    """A library, if it is there; all of them import torchvision where they can.

    A torchvision that was built for another torch has no detection operators and does not import without them; declared
    they do no harm, for no classifier uses them.
    """
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}: pip install 'fmeta[zoo]'")
    while importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _DECLARED.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    return importlib.import_module(library)


@pytest.fixture(scope="session")
def timm():
    return imported("timm")


@pytest.fixture(scope="session")
def torchvision():
    return imported("torchvision")


@pytest.fixture(scope="session")
def transformers():
    return imported("transformers")
