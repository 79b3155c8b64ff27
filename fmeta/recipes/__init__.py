"""The recipes that come with fmeta: one file for each family of domains.

A recipe brings its tasks (`sampler`), what it offers to a learner (`offer`), how it reads one's own files
(`read_support`, `read_queries`) and how a report shows a task (`show`). They are found through entry points, as those
of any other package are: nothing in fmeta lists them.

- `sinusoid`: sine waves, needs no data
- `omniglot`, `glyphs`: characters, 28x28
- `images`: any folder with a folder of pictures for each class
- `mini_imagenet`: mini-ImageNet

A recipe is a frozen dataclass: its fields are its options, on the command line too. Those of pictures share `Pictures`.

    >>> import torch
    >>> import fmeta
    >>> recipe = fmeta.recipes.Sinusoid(shots=5)
    >>> tasks = recipe.sampler("test", torch.device("cpu"))(fmeta.key(0), 3)
    >>> tasks.support.x.shape
    torch.Size([3, 5, 1])
    >>> fmeta.runs.experiment(recipe, learner="meta_sgd").build_learner().name
    'meta_sgd'
"""

from fmeta._lazy import lazily

_PLACES = {
    "._characters": ("Glyphs", "Omniglot"),
    "._images": ("Images", "MiniImagenet"),
    "._pictures": ("Pictures",),
    "._sinusoid": ("Sinusoid",),
}

__all__ = sorted(name for names in _PLACES.values() for name in names)
__getattr__, __dir__ = lazily(__name__, _PLACES)
