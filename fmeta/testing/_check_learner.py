"""`check_learner`: the laws, for a learner of anyone's."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fmeta.core import InputError, Learner, MetaGradient, Task, Tree, key, tree
from fmeta.core._checks import check_meta, check_tasks, nearest
from fmeta.testing._case import Case, admitted
from fmeta.testing._laws import LAWS, own_order
from fmeta.testing._oracles import losses_by_loop

_OWN, _ASKED = "own gradient has its order", "asked to skip"


class LawError(AssertionError):
    """Laws that a learner broke. `failures` maps each to what was found."""

    def __init__(self, learner: str, failures: dict[str, str]) -> None:
        lines = "\n".join(f"  {law}: {found}" for law, found in failures.items())
        super().__init__(f"check_learner({learner}): {len(failures)} broken\n{lines}")
        self.failures = failures


class LawReport(NamedTuple):
    """What `check_learner` went through."""

    passed: list[str]  # laws
    skipped: dict[str, str]  # law -> why it does not apply
    gradients: list[str]  # the meta-gradients that the learner admits
    # what the learner's own meta-gradient computes: "exact", "exact (no second-order term here)", "first order" or
    # "neither"; None where its law was not asked for
    order: str | None


def check_learner(
    learner: Learner,
    tasks: Task,
    *,
    meta: Tree | None = None,
    laws: Collection[str] | None = None,
    skip: Collection[str] = (),
    claimed: Mapping[str, MetaGradient] | None = None,
    backend: str = "aot_eager",
) -> LawReport:
    """Runs every law over a learner and every meta-gradient that it admits. For tests of learners of your own.

        def test_my_learner():
            fmeta.testing.check_learner(my_learner(model, fmeta.mse), tasks)

    Everything is cast to float64. Take small tasks, and smooth activations where you can: kinks (ReLU) spoil finite
    differences. The learner's own meta-gradient is held to what it claims (see `WeighingSteps`), which is exact unless
    it says otherwise; the report's `order` tells what it computes.

    Args:
        learner: what adapts, its model not compiled.
        tasks: a batch of two tasks or more; with keys, if the adaptation is random.
        meta: where to check; `learner.init(key(0))` if left out.
        laws: names of `LAWS`; all of them if left out.
        skip: laws that the learner does not promise, such as "padding changes nothing" where dropout or batch norm
            sees padding.
        claimed: more meta-gradients of your own that are said to be exact, by name.
        backend: of torch.compile, for "compiled equals eager".

    Raises:
        LawError: with every broken law and what was found.
        InputError: an unknown law, bad tasks or meta, a single task, a learner that does not run on them in float64.
    """
    for name in (*(laws or ()), *skip):
        if name not in LAWS:
            raise InputError(f"check_learner: unknown law {name!r}; {nearest(name, LAWS)}")
    if check_tasks("check_learner", tasks) < 2:
        raise InputError("check_learner: got one task; expected a batch of 2 or more, to tell a mean from a task")
    chosen = _double(learner.init(key(0, _device(tasks))) if meta is None else meta)
    check_meta("check_learner", chosen)
    case = Case(learner, chosen, _double(tasks), claimed or {}, backend)
    try:
        losses_by_loop(learner, case.meta, case.tasks)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(
            f"check_learner({learner.name}): it does not run on these tasks in float64 ({found}); expected tasks "
            "that fit, and that all tensors a model closes over follow its parameters' dtype"
        ) from error
    passed, skipped, failures = [], {}, {}
    for name in LAWS if laws is None else laws:
        if name in skip:
            skipped[name] = _ASKED
            continue
        try:
            reason = LAWS[name](case)
        except Exception as error:  # whatever a foreign learner raises is a finding
            failures[name] = f"{'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{error}"
        else:
            if reason is None:
                passed.append(name)
            else:
                skipped[name] = reason
    if failures:
        raise LawError(learner.name, failures)
    told = _OWN in passed or skipped.get(_OWN) not in (None, _ASKED)
    return LawReport(passed, skipped, list(admitted(case)), own_order(case) if told else None)


def _device(tasks: Task) -> torch.device:
    return tree.tree_leaves(tasks.query.x)[0].device


def _double(values: Tree) -> Tree:
    return tree.tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, values)
