"""What every run has: its options, its folder, and what can be done with it."""

from fmeta._lazy import lazily

_PLACES = {
    "._recipe": ("ACCURACY", "ERROR", "Answered", "Metric", "Offer", "Queries", "Recipe", "Support"),
    "._shown": ("Answer", "Chart", "Episode", "class_episode"),
    "._experiment": ("Experiment", "experiment"),
    "._options": ("GradientRow", "LearnerRow", "OptionError", "RunOptions"),
    "._train": ("Finished", "train"),
    "._load": ("Trained", "load", "measure"),
    "._adapt": ("Adapted", "Predictions", "adapt"),
    "._compare": ("RunsCompared", "compare"),
    "._folder": ("Run", "open_run"),
    "._ablation": ("ablate",),
    "._grid": ("Chooser", "Point", "grid"),
    "._search_space": ("Choice", "Range"),
    "._study": ("Study",),
    "._tuning": ("Search", "study"),
}

__all__ = sorted(name for names in _PLACES.values() for name in names)
__getattr__, __dir__ = lazily(__name__, _PLACES)
