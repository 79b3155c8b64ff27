"""Where tasks come from. A source is a function `(key, count) -> Task` with a leading `[task]` axis: the same key gives
the same tasks, and training, validation and a resumed run need nothing else.

- Regression: `sinusoid`, and `linear`, whose meta-gradient is known in closed form (`linear_meta_grad`).
- Classification: `episodes` (N ways, K shots) and `variable_episodes` (Meta-Dataset's ways and shots) over `ClassData`.
- Class data: `glyphs` (characters drawn from fonts, nothing to download), `omniglot`, `mini_imagenet`, `image_folder`,
  or arrays and trees of arrays of your own by `class_data` and `from_labels`. `split_classes` and `image_splits` cut
  the classes into those for training, validation and test, `select_classes` takes some.
- `multi_domain` mixes sources, with one left out for testing; `batches` are for pretraining, `stream` for `fmeta.mann`.
- `sampler` makes a source of a function of one task's key, `from_loader` of a DataLoader or a list. `read_images`,
  `load_omniglot`, `fetch` and `cache_folder` are below the class data.

Sine waves:

    >>> import torch
    >>> import fmeta
    >>> tasks = fmeta.tasks.sinusoid(shots=10, query=15)(fmeta.key(0), 25)
    >>> tasks.support.x.shape, tasks.query.y.shape
    (torch.Size([25, 10, 1]), torch.Size([25, 15, 1]))

Episodes from arrays of one's own (pictures kept as bytes are said to be some, by `pictures=True`):

    >>> x, y = torch.randn(60, 3, 8, 8), torch.arange(60) % 6  # sixty colour pictures of six classes
    >>> data = fmeta.tasks.from_labels(x, y)
    >>> sample = fmeta.tasks.episodes(data, ways=5, shots=1, query=2)
    >>> task = sample(fmeta.key(0), 4)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([4, 5, 3, 8, 8]), torch.Size([4, 10]))

A source of one's own:

    >>> def lines(key):  # one task: points of a line through the origin
    ...     slope, x = fmeta.normal(fmeta.fold(key, 0)), fmeta.uniform(fmeta.fold(key, 1), (12, 1))
    ...     return fmeta.Task(fmeta.Examples(x[:4], slope * x[:4]), fmeta.Examples(x[4:], slope * x[4:]), key)
    >>> fmeta.tasks.sampler(lines)(fmeta.key(0), 3).query.x.shape
    torch.Size([3, 8, 1])
"""

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
from fmeta.tasks._loader import from_loader
from fmeta.tasks._mini_imagenet import mini_imagenet
from fmeta.tasks._multi_domain import multi_domain
from fmeta.tasks._omniglot import load_omniglot, omniglot
from fmeta.tasks._sampler import Sampler, sampler
from fmeta.tasks._sinusoid import sinusoid
from fmeta.tasks._splits import split_classes
from fmeta.tasks._variable import variable_episodes

__all__ = [
    "ClassData", "Episodes", "PartialSampler", "Sampler", "Split", "batches", "cache_folder", "class_data", "episodes",
    "fetch", "from_labels", "from_loader", "glyphs", "image_folder", "image_splits", "linear", "linear_meta_grad",
    "load_omniglot", "mini_imagenet", "multi_domain", "omniglot", "read_images", "sampler", "select_classes",
    "sinusoid", "split_classes", "stream", "variable_episodes",
]  # fmt: skip
