"""Meta-training: the step, the loop around it, and what the loop keeps.

- A `Trainer` is meta-training as a value: `init(key) -> state`, `step(state, tasks) -> (state, Info)`, and what the
  loop needs to know of it. `trainer(learner, optimizer, gradient)` makes the one that takes a meta-gradient and
  updates; its state is a `TrainState`. All of a state is tensors, so that a step can be compiled, captured and resumed.
  A trainer of your own keeps what is not finite out of its state by `withhold`.
- `fit` is the loop around a trainer: progress, validation, `metrics.jsonl`, checkpoints, early stopping, exact resume,
  several processes (`torchrun`). `Validation`, `Saving` and `Logging` say how often, and by what. Ctrl-C saves the step
  that was reached; resumed, state and metrics end as if nothing had been. `NonFiniteError`, `SaveError` and
  `RanksDifferError` say why it cannot go on.
- `save_checkpoint`, `load_checkpoint` and `load_meta`: files that are whole or absent, with a checksum, read without
  pickle.
- A `Logger` is any function of a step and its values; `tensorboard` is one.

The step, in a loop of one's own:

    >>> import fmeta
    >>> learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    >>> trainer = fmeta.trainer(learner, fmeta.adam(1e-2), fmeta.first_order())
    >>> sample, key = fmeta.tasks.sinusoid(), fmeta.key(0)
    >>> state = trainer.init(key)
    >>> for k in range(3):
    ...     state, info = trainer.step(state, sample(fmeta.fold(key, k), 4))
    >>> int(state.step), info.losses.shape
    (3, torch.Size([4]))

The same by `fit`:

    >>> state = fmeta.fit(trainer, sample, key=key, iterations=3, meta_batch=4)
    >>> int(state.step)
    3

In phases, and with tasks that depend on the state, as those of a simulator would:

    >>> trainer = fmeta.trainer(learner, fmeta.adam(1e-2), {0: fmeta.first_order(), 2: fmeta.unrolled()})
    >>> trainer = trainer._replace(host=lambda state, tasks: tasks._replace(key=fmeta.fold(tasks.key, state.step)))
    >>> told = []
    >>> logging = fmeta.Logging(every=2, loggers=[lambda step, values: told.append(step)])
    >>> state = fmeta.fit(trainer, sample, key=key, iterations=3, meta_batch=4, logging=logging)
    >>> told
    [2, 3]
"""

from fmeta.training._checkpoint import load_checkpoint, load_meta, save_checkpoint
from fmeta.training._fit import fit
from fmeta.training._logging import Logger, Logging
from fmeta.training._progress import NonFiniteError
from fmeta.training._ranks import RanksDifferError
from fmeta.training._run_files import SaveError, Saving
from fmeta.training._tensorboard import tensorboard
from fmeta.training._trainer import Trainer, TrainState, trainer, withhold
from fmeta.training._validation import Validation

__all__ = [
    "Logger", "Logging", "NonFiniteError", "RanksDifferError", "SaveError", "Saving", "TrainState", "Trainer",
    "Validation", "fit", "load_checkpoint", "load_meta", "save_checkpoint", "tensorboard", "trainer", "withhold",
]  # fmt: skip
