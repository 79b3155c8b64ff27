"""Libraries of networks, which are tried where they are installed."""

import importlib
import importlib.util
import re
import sys

import pytest
import torch


def imported(library):
    """A library, if it is there. A torchvision that was built for another torch has no detection operators and does not
    import without them; declared they do no harm, for no classifier uses them.
    """
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}: pip install 'fmeta[zoo]'")
    while True:
        try:
            return importlib.import_module(library)
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _DECLARED.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", library)]:
                del sys.modules[name]


_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="session")
def timm():
    return imported("timm")


@pytest.fixture(scope="session")
def torchvision():
    return imported("torchvision")


@pytest.fixture(scope="session")
def transformers():
    return imported("transformers")
