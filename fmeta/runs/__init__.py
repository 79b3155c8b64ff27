"""Runs: what is trained, the folder it is kept in, and what can be done with it. All that the command line does.

- An `Experiment` is four parts with options: a recipe (tasks, networks, how to read and to show), a learner's row, a
  meta-gradient's row, and the `RunOptions` that every run has. `experiment(recipe, **options)` makes one; an option
  that no chosen part takes is refused, and the error names who takes it.
- `train` trains, tests and plots in a run's folder; `load` reads it back at a checkpoint, `measure` tests it, `adapt`
  takes it to a few examples of one's own, `compare` pits several against each other on the same tasks.
- `grid` and `ablate` train every combination of some options over seeds; `study` looks for the best (`Range`, `Choice`,
  `Search`), with Optuna.
- A domain moves in as a `Recipe`: a frozen dataclass with a `sampler` and an `offer`, found by its entry point or as
  `file.py:name`. A recipe may bring its own learner, and with it a folder that `fmeta.fit(run_dir=…,
  recipe="module:object")` wrote is a run like any other.

A run, in a few lines:

    >>> import tempfile
    >>> import fmeta
    >>> of = fmeta.runs.experiment("sinusoid", hidden=(8,), iterations=4, compile="none", eval_tasks=4, log_every=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = fmeta.runs.train(of, f"{folder}/run")
    ...     trained = fmeta.runs.load(f"{folder}/run")
    >>> trained.step, done.evaluation.steps
    (4, (0, 1, 5, 10))
    >>> of.changed(learner="anil").learner.adapt
    'head.*'
    >>> of.changed(context=9)
    Traceback (most recent call last):
    ...
    fmeta.runs._options.OptionError: context=9: maml with unrolled does not take it; expected it with cavia
"""

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
