"""How a step is run: eager is correct, compiled is fast, and both are tested to agree.

- `compile`: `fmeta.compile(trainer.step)` is one graph, the fastest for small networks; `scope="step"` compiles each
  stage of the meta-gradient, so that the time it takes does not depend on the inner steps (`adjoint`, `truncated`,
  `first_order` and `implicit` have stages, `unrolled` is one graph in any scope); `scope="auto"` measures these and
  eager code on your shapes, and remembers. A step that is compiled again says why (`RetraceWarning`), what cannot be
  compiled runs eager (`CompileWarning`).
- `capture`: a whole training step as one CUDA graph, sampling included, because launches are its cost.
- `peak_memory`: what a function will take, before it is run. Where memory ends, `OutOfMemoryError` says which
  meta-gradient fits, and in chunks of how many tasks (`fmeta.chunked`).

Compile outside, differentiate inside: `compile` runs the function once on tensors without data, `torch.func` and all.
As in JAX, only tensors among its arguments can change from call to call; what else it reads is constant.
`logging.getLogger("fmeta")` says what was chosen and why.

    >>> import torch
    >>> import fmeta
    >>> learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)
    >>> trainer = fmeta.trainer(learner, fmeta.adam(1e-3))
    >>> step = fmeta.compile(trainer.step, backend="aot_eager")  # leave the backend out for speed
    >>> state, tasks = trainer.init(fmeta.key(0)), fmeta.tasks.sinusoid()(fmeta.key(1), 4)
    >>> compiled, eager = step(state, tasks)[0], trainer.step(state, tasks)[0]
    >>> bool(fmeta.tree.global_norm(fmeta.tree.sub(compiled.meta, eager.meta)) < 1e-5)
    True
    >>> fmeta.peak_memory(trainer.step, state, tasks) > 0  # bytes
    True
"""

from fmeta.execution._capture import capture
from fmeta.execution._compile import CompileWarning, RetraceWarning, Scope, compile
from fmeta.execution._memory import OutOfMemoryError, peak_memory

__all__ = [
    "CompileWarning", "OutOfMemoryError", "RetraceWarning", "Scope", "capture", "compile", "peak_memory",
]  # fmt: skip
