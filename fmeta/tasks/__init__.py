"""Where tasks come from: each source is a function `(key, count) -> Task`."""

from fmeta.core import cache_folder
from fmeta.tasks._download import fetch
from fmeta.tasks._episodes import ClassData, class_data, episodes, select_classes
from fmeta.tasks._glyphs import glyphs
from fmeta.tasks._linear import linear, linear_meta_grad
from fmeta.tasks._omniglot import load_omniglot, omniglot
from fmeta.tasks._sampler import Sampler, sampler
from fmeta.tasks._sinusoid import sinusoid

__all__ = [
    "ClassData", "Sampler", "cache_folder", "class_data", "episodes", "fetch", "glyphs", "linear",
    "linear_meta_grad", "load_omniglot", "omniglot", "sampler", "select_classes", "sinusoid",
]  # fmt: skip
