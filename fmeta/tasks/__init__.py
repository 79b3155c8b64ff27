"""Where tasks come from: each source is a function `(key, count) -> Task`."""

from fmeta.core import PartialSampler
from fmeta.operators import cache_folder
from fmeta.tasks._batches import batches, stream
from fmeta.tasks._class_data import ClassData, Split, class_data, from_labels, select_classes
from fmeta.tasks._download import fetch
from fmeta.tasks._episodes import Episodes, episodes
from fmeta.tasks._glyphs import glyphs
from fmeta.tasks._image_folder import image_folder, image_splits
from fmeta.tasks._images import read_images
from fmeta.tasks._linear import linear, linear_meta_grad
from fmeta.tasks._mini_imagenet import mini_imagenet
from fmeta.tasks._multi_domain import multi_domain
from fmeta.tasks._omniglot import load_omniglot, omniglot
from fmeta.tasks._sampler import Sampler, sampler
from fmeta.tasks._sinusoid import sinusoid
from fmeta.tasks._splits import split_classes
from fmeta.tasks._variable import variable_episodes

__all__ = [
    "ClassData", "Episodes", "PartialSampler", "Sampler", "Split", "batches", "cache_folder", "class_data", "episodes",
    "fetch", "from_labels", "glyphs", "image_folder", "image_splits", "linear", "linear_meta_grad", "load_omniglot",
    "mini_imagenet", "multi_domain", "omniglot", "read_images", "sampler", "select_classes", "sinusoid",
    "split_classes", "stream", "variable_episodes",
]  # fmt: skip
