"""Plants faults one at a time and reports which law of fmeta.testing catches each.

Three kinds. Faults in fmeta's own source: a copy of the package is changed in one place and the laws run in a process
of their own. Faults at its boundary (`_boundary_faults`), which tests must catch in such a copy. Wrong implementations,
as tutorials print them: a learner or a meta-gradient that claims to be exact. The run fails if a fault gets away, or if
the sound package breaks a law.

python benchmarks/mutations.py [--only WORD]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from _boundary_faults import FAULTS as AT_THE_BOUNDARY
from _report import write
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.func import grad

import fmeta
from fmeta.core import fold, tree
from fmeta.core.tree import tree_map
from fmeta.operators._over_tasks import over_tasks
from fmeta.testing import LAWS, LawError, check_learner, random_classification, random_regression

F64 = torch.float64
KEY = fmeta.key(3)
SLOW = {"compiled equals eager"}


class Fault(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    learner: str = "maml"


FAULTS = [
    Fault(
        "drop the Hessian term of the recursion",
        "gradients/_replayed.py",
        "            return move(slope(f, m, seeing(",
        "            return move(slope(fast, meta, seeing(",
    ),
    Fault(
        "trace one tensor in two places as one input",
        "execution/_graph.py",
        "[leaves[i].detach().requires_grad_(leaves[i].requires_grad) for i in places]",
        "[leaves[i] for i in places]",
    ),
    Fault(
        "drop the Hessian term everywhere: detach the inner gradient",
        "core/_inner.py",
        "    return grad(inner.loss)(fast, meta, inner.batch(support, at), at)",
        "    return tree.tree_map(torch.Tensor.detach, grad(inner.loss)(fast, meta, inner.batch(support, at), at))",
    ),
    Fault(
        "detach the learned rate",
        "learners/_meta_sgd.py",
        "lambda meta: sgd(meta.lr)",
        "lambda meta: sgd(tree.tree_map(torch.Tensor.detach, meta.lr))",
        "meta_sgd",
    ),
    Fault(
        "swap support and query",
        "gradients/_unrolled.py",
        "learner.loss(learner.adapt(meta, task.support, task.key), meta, task.query)",
        "learner.loss(learner.adapt(meta, task.query, task.key), meta, task.support)",
    ),
    Fault(
        "forget the optimizer state's cotangent",
        "gradients/_replayed.py",
        "                *d, more, of_step = pull(*step, meta, tasks, index, tuple(d))",
        "                *d, more, of_step = pull(*step, meta, tasks, index, (d[0], tree.zeros_like(d[1])))",
        "maml-adam",
    ),
    Fault(
        "replay with another key",
        "gradients/_replayed.py",
        "                *d, more, of_step = pull(*step, meta, tasks, index, tuple(d))",
        "                other = tasks._replace(key=tasks.key + 1)\n"
        "                *d, more, of_step = pull(*step, meta, other, index, tuple(d))",
        "reptile",
    ),
    Fault(
        "replay another step",
        "gradients/_replayed.py",
        "                *d, more, of_step = pull(*step, meta, tasks, index, tuple(d))",
        "                *d, more, of_step = pull(*step, meta, tasks, steps[0], tuple(d))",
        "reptile",
    ),
    Fault(
        "average before the gradient: one adaptation for all tasks",
        "gradients/_unrolled.py",
        "            minimised, (losses, metrics) = over_tasks(task_loss)(meta, tasks)",
        "            fast = tree_mean(over_tasks(learner.adapt, (0,))(meta, tasks.support, tasks.key))\n"
        "            losses, metrics = over_tasks(learner.loss, (0, 1))(fast, meta, tasks.query)\n"
        "            minimised = losses",
    ),
    Fault(
        "sum over tasks in place of the mean",
        "gradients/_unrolled.py",
        "            return minimised.mean(), Info",
        "            return minimised.sum(), Info",
    ),
    Fault(
        "one-sided evolution",
        "gradients/_evolution.py",
        "(ahead - behind) / (2 * sigma)",
        "ahead / sigma",
    ),
    Fault(
        "implicit without the inverse Hessian",
        "gradients/_implicit.py",
        "            v = solve(product, b)",
        "            v = b",
        "imaml",
    ),
    Fault(
        "implicit taken for any learner",
        "gradients/_implicit.py",
        "        if not inner.strongly_convex:",
        "        if False:",
    ),
    Fault(
        "ignore example weights in the loss",
        "core/_losses.py",
        "    return (weight * values).sum() / weight.sum()",
        "    return values.mean()",
    ),
    Fault(
        "count the losses of all steps alike, whatever their weights",
        "gradients/_replayed.py",
        "            return loss * weight[0].to(loss.dtype), info",
        "            return loss, info",
    ),
    Fault(
        "forget the path through the start of the fast weights",
        "gradients/_replayed.py",
        "        return tree.add(d_meta, close(meta, support, tasks.key, (*d, d_features))), info",
        "        return d_meta, info",
    ),
    Fault(
        "start the fast weights with another key on the way back",
        "gradients/_replayed.py",
        "            fast, state, x = opening(m, support, key)",
        "            fast, state, x = opening(m, support, key + 1)",
        "drawn_start",
    ),
    Fault(
        "drop the cotangent of what is prepared",
        "gradients/_replayed.py",
        "(*d, d_features))), info",
        "(*d, tree.zeros_like(d_features)))), info",
        "anil",
    ),
    Fault(
        "take the cotangent of what is prepared from one step alone",
        "gradients/_replayed.py",
        "                d_features = tree.add(d_features, of_step)",
        "                d_features = of_step",
        "anil",
    ),
    Fault(
        "prepare with another key on the way back",
        "gradients/_replayed.py",
        "            fast, state, x = opening(m, support, key)",
        "            fast, state, x = opening(m, support, key + 1)",
        "anil-dropout",
    ),
    Fault(
        "prepare the inputs and let the steps see the old ones",
        "core/_inner.py",
        "    support = prepare(inner, meta, support, key)\n",
        "    prepare(inner, meta, support, key)\n",
        "anil",
    ),
    Fault(
        "hold what is prepared constant in the cross derivative",
        "gradients/_implicit.py",
        "            support = prepare(m, tasks.support, tasks.key)",
        "            support = prepare(meta, tasks.support, tasks.key)",
        "proximal",
    ),
    Fault(
        "update in place",
        "core/_inner.py",
        "    return tree.add(fast, updates), state",
        "    return tree.tree_map(lambda w, u: w.add_(u), fast, updates), state",
    ),
    Fault(
        "first order before the first step is cut, not held constant",
        "gradients/_replayed.py",
        "                *d, more = pull_constant(*step, meta, tuple(d))",
        "                *d, more = tree.zeros_like((*d, meta))",
    ),
]
IMPORTS = {  # what a planted line needs
    "core/_inner.py": "",
    "gradients/_unrolled.py": "from fmeta.core.tree import mean_tasks as tree_mean\n",
}


# ---- learners the laws run over ------------------------------------------------------------------


def regressor():
    return fmeta.models.mlp([2, 6, 1], torch.tanh, F64)


def learners():
    tasks = random_regression(fold(KEY, 1), tasks=3)
    return {
        "maml": (fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3), tasks),
        "maml-adam": (fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.adam(0.02, eps=1e-3), steps=3), tasks),
        "meta_sgd": (fmeta.meta_sgd(regressor(), fmeta.mse, lr=0.1, steps=2), tasks),
        "reptile": (fmeta.reptile(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3, batch=4), tasks),
        "anil": (anil(), tasks),
        "anil-dropout": (anil(0.3), tasks, ["padding changes nothing"]),
        "proximal": (proximal(), tasks),
        "drawn_start": (drawn_start(), tasks),
        "imaml": (fmeta.imaml(regressor(), fmeta.mse, damping=3.0, optimizer=fmeta.sgd(0.2), steps=3), tasks),
    }


def anil(dropout=0.0):
    """Its inner steps run on the features of a trunk that does not adapt."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(6, 2)]
    trunk = fmeta.from_module(torch.nn.Sequential(*layers).double())
    model = fmeta.models.with_head(trunk, 1, features=2)
    return fmeta.anil(model, fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)


def proximal():
    """`anil` whose head stays near the meta-learned one."""
    learner = anil()

    def loss(fast, meta, batch, at):
        away = tree.sub(fast, tree.select_leaves(meta, "head.*"))
        return learner.inner.loss(fast, meta, batch, at) + 0.5 * tree.dot(away, away)

    inner = learner.inner._replace(loss=loss, optimizer=lambda meta: fmeta.sgd(0.3), strongly_convex=True)
    return fmeta.with_inner(learner, inner)


def drawn_start():
    """MAML whose start is scaled at random, from the task's key."""
    learner = fmeta.maml(regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=2)

    def start(meta, support, key):
        return tree.scale(meta, fmeta.core.uniform(fold(key, "start"), (), 0.5, 1.5, tree.tree_leaves(meta)[0].dtype))

    return fmeta.with_inner(learner, learner.inner._replace(start=start))


def broken_laws(learner, tasks, skip=(), **claims):
    """The laws that fail, the most telling first."""
    try:
        check_learner(learner, tasks, skip={*SLOW, *skip}, backend="eager", **claims)
    except LawError as error:
        return error.failures
    return {}


# ---- wrong implementations -----------------------------------------------------------------------


def data_update(learner, stage):
    """First order in disguise: updates through `.data`, and the outer gradient taken at the adapted point."""

    def grads(meta, tasks):
        def one(m, task):
            fast = learner.adapt(m, task.support, task.key)
            fast = tree_map(lambda w: w.detach(), fast)
            return grad(lambda f: learner.loss(f, m, task.query)[0])(fast), learner.loss(fast, m, task.query)[0]

        each, losses = over_tasks(one)(meta, tasks)
        return tree.mean_tasks(each), fmeta.Info(losses.mean(), losses, {})

    return stage(grads)


def gradient_norm(learner, stage):
    """The gradient of the norm of a gradient."""

    def grads(meta, tasks):
        def norm(m, task):
            inner = grad(lambda f: learner.loss(f, m, task.support)[0])(m)
            return tree.dot(inner, inner)

        def one(m, task):
            fast = learner.adapt(m, task.support, task.key)
            return grad(norm)(m, task), learner.loss(fast, m, task.query)[0]

        each, losses = over_tasks(one)(meta, tasks)
        return tree.mean_tasks(each), fmeta.Info(losses.mean(), losses, {})

    return stage(grads)


def no_inner_loop(learner, stage):
    """Plain training on the query set, called meta-learning."""

    def grads(meta, tasks):
        def loss(m):
            losses, _ = over_tasks(learner.loss, (0, 1))(m, m, tasks.query)
            return losses.mean(), losses

        g, losses = grad(loss, has_aux=True)(meta)
        return g, fmeta.Info(losses.mean(), losses, {})

    return stage(grads)


def prototypical(means):
    """A prototypical network with the prototypes that `means` makes of embedded support examples."""
    encoder = fmeta.models.mlp([4, 6, 5], torch.tanh, F64)

    def adapt(meta, support, key):
        z = encoder.apply(meta, support.x)
        weight = support.weight if isinstance(support.weight, torch.Tensor) else torch.ones_like(z[:, 0])
        return means(z, support.y, weight.to(z))

    def predict(prototypes, meta, x):
        return -((encoder.apply(meta, x)[:, None] - prototypes) ** 2).sum(-1)

    def loss(fast, meta, query):
        losses = fmeta.cross_entropy(predict(fast, meta, query.x), query.y)
        weight = query.weight if isinstance(query.weight, torch.Tensor) else torch.ones_like(losses)
        return (losses * weight).sum() / weight.sum(), {}

    return fmeta.Learner(encoder.init, adapt, predict, loss, None, fmeta.unrolled(), "prototypes")


def class_means(z, y, weight):
    member = torch.nn.functional.one_hot(y, 3).to(z) * weight[:, None]
    return (member.T @ z) / member.sum(0)[:, None]


def one_mean(z, y, weight):
    return ((weight @ z) / weight.sum()).expand(3, -1)


def tutorials():
    learner, tasks = learners()["maml"]
    claims = {
        "first order through .data, outer step at the adapted point": data_update,
        "the gradient of a gradient's norm": gradient_norm,
        "no inner loop at all": no_inner_loop,
    }
    for what, gradient in claims.items():
        yield what, broken_laws(learner, tasks, claimed={"claimed": gradient})
    classes = random_classification(fold(KEY, 1))
    if found := broken_laws(prototypical(class_means), classes):
        raise SystemExit(f"prototypes as they should be break laws: {found}")
    yield "one prototype for all classes", broken_laws(prototypical(one_mean), classes)


# ---- the run ---------------------------------------------------------------------------------------


def copy_with(fault, root):
    """A copy of the package with this fault in it."""
    package = Path(fmeta.__file__).parent
    copy = Path(root) / "fmeta"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.what}: the line to change stands {text.count(fault.old)} times in {fault.file}")
    text = text.replace(fault.old, fault.new)
    extra = IMPORTS.get(fault.file, "")
    if extra:
        text = text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n\n{extra}", 1)
    file.write_text(text)
    return copy


def failing_tests(fault, root):
    """The tests that fail in such a copy, at most three."""
    copy_with(fault, root)
    repository = Path(__file__).parents[1]
    # -P: the copy, and not the package in the folder where pytest runs
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", "--maxfail", "3", "-p", "no:cacheprovider"]
    command += [*fault.tests.split(), *(["-k", fault.only] if fault.only else [])]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{fault.what}: the tests could not be run\n{done.stdout[-3000:]}{done.stderr}")
    return re.findall(r"^FAILED \S*?::(\S+)", done.stdout, re.M)


def planted(fault, root):
    """The laws that a copy of the package with this fault breaks, from a process of its own."""
    copy = copy_with(fault, root)
    command = [sys.executable, __file__, "--laws-of", fault.learner]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{fault.what}: the laws could not be run\n{done.stderr}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if Path(answer["package"]) != copy:
        raise SystemExit(f"{fault.what}: ran the package in {answer['package']}")
    return answer["broken"]


def found_by(fault):
    """What a fault is, where it is planted, and what catches it."""
    by_laws = isinstance(fault, Fault)
    with tempfile.TemporaryDirectory() as root:
        found = list((planted if by_laws else failing_tests)(fault, root))
    print(f"{fault.what}: {', '.join(found) or 'NOT CAUGHT'}", flush=True)
    return fault.what, f"fmeta, {fault.learner}" if by_laws else fault.file, found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose description holds this word")
    parser.add_argument("--laws-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.laws_of:
        found = broken_laws(*learners()[options.laws_of])
        print(json.dumps({"package": str(Path(fmeta.__file__).parent), "broken": found}))
        return
    sound = {name: broken_laws(*row) for name, row in learners().items()}
    if any(sound.values()):
        raise SystemExit(f"the package as it is breaks laws: {sound}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each in processes of its own
        rows = list(pool.map(found_by, (f for f in [*FAULTS, *AT_THE_BOUNDARY] if options.only in f.what)))
    rows += [(what, "as tutorials print it", found) for what, found in tutorials() if options.only in what]
    table = Table("fault", "planted in", "caught by", "of", title=f"{len(LAWS) - len(SLOW)} laws, and tests")
    for what, where, found in rows:
        table.add_row(what, where, escape(next(iter(found), "")) or "[red]NOT CAUGHT", str(len(found)))
    Console(width=160).print(table)
    if not options.only:
        caught = {what: {"planted in": where, "caught by": list(found)} for what, where, found in rows}
        write("mutations", {"faults": len(rows), "caught": sum(bool(f) for _, _, f in rows), "by": caught})
    if not all(found for _, _, found in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
