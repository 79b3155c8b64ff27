"""Every family of learners and baselines on the same split, the same test tasks and the same training time.

python benchmarks/families.py --data-dir PATH                   fills results/families.json cell by cell
python benchmarks/families.py --data-dir PATH --minutes 6       the same for other times, in families-6.json
python benchmarks/families.py --show                            the table as it stands

A model trains for `--minutes` of processor time on one core (so that other work on the machine does not count) on
Finn's 1,100 training characters, then is tested on fixed tasks of his 423 test characters: 5-way 1-shot, 5-way 5-shot
by the same model, some 20-way 1-shot, and 5-way 1-shot on `glyphs`, whose scripts no training saw; models named
"… on glyphs" the other way round. What is done already is kept: the weights in the cache folder, the figures in the
JSON. Every network is conv4-64 with stride 2 unless its line says otherwise; "batch" statistics are transductive, and
"alone" is the accuracy with every query beside the support set only.

--only NAME ...      these models only
--test-tasks N       600
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from _report import RESULTS, write

import fmeta
from fmeta.core import fold
from fmeta.models import conv4, mlp, with_head
from fmeta.operators import cache_folder
from fmeta.tasks import batches, episodes, glyphs, omniglot, stream
from fmeta.training import load_checkpoint, save_checkpoint
from fmeta.training._checkpoint import checkpoints

ACCURACY = {"accuracy": fmeta.accuracy}
WIDTH, MINUTES = 64, 3.0


class Training(NamedTuple):
    learner: fmeta.Learner
    sample: object
    meta_batch: int
    optimizer: fmeta.Optimizer
    gradient: object = None


class Method(NamedTuple):
    train: object  # data -> Training, or None where nothing is trained
    test: object  # ways, shots -> learner
    steps: int | None = None  # inner steps in the test; None for learners that take none
    meta: object = None  # state.meta, domain it was trained on -> the test learner's meta
    start: str | None = None  # the model whose encoder training begins with
    share: float = 1.0  # of the minutes
    published: tuple = ()  # 5-way 1-shot, 5-shot, 20-way 1-shot, in the paper


def encoder(**options):
    return conv4(None, **{"width": WIDTH, **options})


def classifier(ways=5, **options):
    return conv4(ways, **{"width": WIDTH, **options})


def few(data, ways, shots=1, query=1):
    return episodes(data, ways=ways, shots=shots, query=query, rotate=True)


def stepping(build, *, steps=3, meta_batch=16, lr=1e-3, gradient=None, shots=1, query=1, **more):
    """A learner with an inner loop and a head of five classes."""

    def train(data):
        return Training(build(), few(data, 5, shots, query), meta_batch, fmeta.adam(lr), gradient)

    return Method(train, lambda ways, shots: build(), steps, **more)


def comparing(build, ways=20, meta_batch=1, lr=1e-3, **more):
    """A learner without a head: trained on tasks of more ways than it is tested on, but for relation."""

    def train(data):
        return Training(build(ways), few(data, ways, 1, 5), meta_batch, fmeta.adam(lr))

    return Method(train, lambda ways, shots: build(ways), **more)


def of_maml(model=None, steps=1, lr=2.0):
    model = model or classifier()
    return fmeta.maml(model, fmeta.cross_entropy, optimizer=fmeta.sgd(lr), steps=steps, metrics=ACCURACY)


def maml_20(data):
    learner = of_maml(classifier(20), 1, 2.0)
    return Training(learner, few(data, 20), 4, fmeta.adam(1e-3))


def own(name, rate, steps, **more):
    kind = {"optimizer": fmeta.sgd(rate), "steps": steps, "metrics": ACCURACY, **more}
    return lambda: getattr(fmeta, name)(classifier(), fmeta.cross_entropy, **kind)


def cavia():
    return fmeta.cavia(
        classifier(film=32),
        fmeta.cross_entropy,
        context=32,
        condition=lambda x, context: (x, context),
        optimizer=fmeta.sgd(1.0),
        steps=2,
        metrics=ACCURACY,
    )


def reptile(examples):
    return fmeta.reptile(
        classifier(),
        fmeta.cross_entropy,
        optimizer=fmeta.adam(1e-3, b1=0.0),
        steps=5,
        batch=min(10, examples),
        metrics=ACCURACY,
    )


def train_reptile(data):
    return Training(reptile(50), few(data, 5, 10, 1), 5, fmeta.sgd(0.5))


def plus_plus():
    return fmeta.maml_plus_plus(classifier(), fmeta.cross_entropy, lr=0.4, steps=3, metrics=ACCURACY)


def relation(ways):
    return fmeta.relation(encoder(), mlp([2 * WIDTH, 64, 1]), ways=ways, metrics=ACCURACY)


def task_encoder(ways):
    return fmeta.task_encoder(encoder(width=32), encoder(film=32), ways=ways, metrics=ACCURACY)


def mann():
    return fmeta.mann(encoder(norm="group", width=32), ways=5, features=32)


def train_mann(data):
    learner = mann()
    return Training(learner, stream(few(data, 5, 1, 9), ways=5), 16, fmeta.adam(1e-3))


def pretraining(head):
    def train(data):
        model = with_head(encoder(), len(data.names), features=WIDTH, head=head)
        return Training(fmeta.supervised(model), batches(data, size=64, rotate=True), 1, fmeta.adam(1e-3))

    return train


def calibrated(meta, source):
    """The encoder's weights with running statistics of the training images."""
    data = domain(source, "train")
    return encoder(norm="frozen").calibrate(meta["encoder"], batches(data, size=2048)(fmeta.key(4), 1).query.x[0])


def fine_tune(adapt="head", head="linear", optimizer=None, steps=100):
    def build(ways, shots):
        kind = {"ways": ways, "adapt": adapt, "head": head, "metrics": ACCURACY}
        return fmeta.fine_tune(encoder(norm="frozen"), optimizer=optimizer or fmeta.adam(0.01), steps=steps, **kind)

    return build


def warm_maml():
    return of_maml(with_head(encoder(), 5, features=WIDTH), 1, 0.5)


LINEAR, COSINE = "pretraining, linear head", "pretraining, cosine head"
METHODS = {
    "scratch: the support set alone": Method(
        None,
        lambda ways, shots: fmeta.maml(
            classifier(ways), fmeta.cross_entropy, optimizer=fmeta.adam(2e-3), steps=20, metrics=ACCURACY
        ),
        20,
    ),
    "maml": stepping(of_maml, published=(98.7, 99.9, 95.8)),
    "fomaml": stepping(of_maml, gradient=fmeta.first_order(), published=(98.3, 99.2, 89.4)),
    "reptile": Method(train_reptile, lambda ways, shots: reptile(ways * shots), 20, published=(97.7, 99.5, 89.4)),
    "anil": stepping(own("anil", 2.0, 1, adapt="head.*")),
    "boil": stepping(own("boil", 2.0, 1)),
    "meta_sgd": stepping(
        lambda: fmeta.meta_sgd(classifier(), fmeta.cross_entropy, lr=1.0, steps=1, metrics=ACCURACY),
        steps=1,
        published=(99.5, 99.9, 95.9),
    ),
    "meta_curvature": stepping(own("meta_curvature", 1.0, 1)),
    "cavia": stepping(cavia, steps=2),
    "imaml": stepping(own("imaml", 0.1, 5, damping=2.0), steps=5, published=(99.2, 99.7, 94.5)),
    "maml_plus_plus": stepping(plus_plus, meta_batch=8, published=(99.5, 99.9, 97.7)),
    "protomaml": comparing(
        lambda ways: fmeta.protomaml(encoder(), ways=ways, optimizer=fmeta.sgd(0.1), steps=1, metrics=ACCURACY),
        steps=1,
    ),
    "protonet": comparing(
        lambda ways: fmeta.protonet(encoder(), ways=ways, metrics=ACCURACY), published=(98.8, 99.7, 96.0)
    ),
    "protonet, cosine": comparing(
        lambda ways: fmeta.protonet(encoder(), ways=ways, distance="cosine", metrics=ACCURACY)
    ),
    "protonet, TaskNorm": comparing(
        lambda ways: fmeta.in_context(fmeta.protonet(encoder(norm="task"), ways=ways, metrics=ACCURACY))
    ),
    "protonet, group norm": comparing(lambda ways: fmeta.protonet(encoder(norm="group"), ways=ways, metrics=ACCURACY)),
    "matching": comparing(
        lambda ways: fmeta.matching(encoder(), ways=ways, scale=10.0, metrics=ACCURACY), published=(98.1, 98.9, 93.8)
    ),
    "matching, full context": comparing(
        lambda ways: fmeta.matching(encoder(), ways=ways, scale=10.0, full_context=WIDTH, reads=3, metrics=ACCURACY)
    ),
    "relation": comparing(relation, 5, 4, published=(99.6, 99.8, 97.6)),
    "ridge": comparing(lambda ways: fmeta.ridge(encoder(), ways=ways, damping=1.0, metrics=ACCURACY)),
    "task_encoder": comparing(task_encoder),
    "mann": Method(train_mann, lambda ways, shots: mann(), published=(82.8, 94.9)),
    LINEAR: Method(pretraining("linear"), fine_tune(), meta=calibrated),
    "pretraining, full fine-tune": Method(
        LINEAR, fine_tune("all", optimizer=fmeta.adam(1e-3), steps=20), 20, meta=calibrated
    ),
    COSINE: Method(pretraining("cosine"), fine_tune(head="cosine"), meta=calibrated),
    "pretraining, then maml": Method(
        lambda data: Training(warm_maml(), few(data, 5), 16, fmeta.adam(1e-3)),
        lambda ways, shots: warm_maml(),
        3,
        start=LINEAR,
        share=0.5,
    ),
    "maml, 20-way": Method(maml_20, lambda ways, shots: of_maml(classifier(20)), 3, published=(None, None, 95.8)),
}
FROM_GLYPHS = ("maml", "protonet", COSINE)
TWENTY = ("protonet", "matching", LINEAR, COSINE, "maml, 20-way")
ALONE = ("maml", "protonet", "protonet, TaskNorm", "protonet, group norm", "matching")


def domain(name, split):
    return glyphs(split) if name == "glyphs" else omniglot(split, data_dir=OPTIONS.data_dir)


def trained(name, source):
    """The weights after so many minutes, and how many steps that were."""
    method, minutes = METHODS[name], OPTIONS.minutes * METHODS[name].share
    if method.train is None:
        return method.test(5, 1).init(fmeta.key(OPTIONS.seed)), 0
    if isinstance(method.train, str):
        return trained(method.train, source)
    plan = method.train(domain(source, "train"))
    learner = plan.learner
    if method.start is not None:
        learner = fmeta.starting_from(learner, {"encoder": weights_of(method.start, source, minutes)["encoder"]})
    return fitted(learner, plan, folder(name, source, minutes), minutes)


def weights_of(name, source, minutes):
    plan = METHODS[name].train(domain(source, "train"))
    return fitted(plan.learner, plan, folder(name, source, minutes), minutes)[0]


def folder(name, source, minutes):
    plain = "".join(c if c.isalnum() else "-" for c in f"{name}-{source}")
    return cache_folder() / "families" / f"{plain}-{minutes:g}-{OPTIONS.seed}"


def fitted(learner, plan, where, minutes):
    trainer = fmeta.trainer(learner, plan.optimizer, plan.gradient)
    key = fmeta.key(OPTIONS.seed)
    state = trainer.init(fold(key, 0))
    if checkpoints(where):
        step = checkpoints(where)[-1][0]
        return load_checkpoint(where / f"{step:08d}", state).meta, step
    spent, step, shown = 0.0, 0, time.perf_counter()
    while spent < 60 * minutes:
        start = time.process_time()
        state, info = trainer.step(state, plan.sample(fold(key, 1 + step), plan.meta_batch))
        spent += time.process_time() - start
        step += 1
        if time.perf_counter() - shown > 30:
            shown = time.perf_counter()
            print(f"  step {step}, loss {info.loss:.3f}, {spent:.0f} s", flush=True)
    if int(state.bad) >= 0:
        raise SystemExit(f"{where.name}: not finite at step {int(state.bad)}")
    save_checkpoint(where, state, step)
    return state.meta, step


def test_tasks(target, ways, shots):
    sample = few(domain(target, "test"), ways, shots, 5)
    return sample(
        fold(fmeta.key(2026), 100 * ways + shots), OPTIONS.test_tasks if ways == 5 else OPTIONS.test_tasks // 3
    )


def measured(name, source, meta, target, ways, shots):
    method = METHODS[name]
    if method.meta is not None:
        meta = method.meta(meta, source)
    learner = method.test(ways, shots)
    if name == "mann":
        streams = stream(few(domain(target, "test"), 5, 1, 9), ways=5)(fmeta.key(2026), OPTIONS.test_tasks)
        result = fmeta.evaluate(learner, meta, streams)
        instance = "instance 2" if shots == 1 else "instance 6"
        return {"accuracy": result.mean(instance)[0], "interval95": result.interval(instance)[0], "of": instance}
    steps = None if method.steps is None or learner.inner is None else (method.steps,)
    alone = name in ALONE and target == "omniglot" and (ways, shots) == (5, 1)
    result = fmeta.evaluate(
        learner, meta, test_tasks(target, ways, shots), steps=steps, ways=ways, inductive=alone, chunk=50
    )
    found = {"accuracy": result.mean("accuracy")[0], "interval95": result.interval("accuracy")[0]}
    if alone:
        found |= {"alone": result.mean("accuracy alone")[0], "gap interval95": result.interval("accuracy gap")[0]}
    calibration = result.calibration.summary()
    return found | {"f1": result.mean("f1")[0], "calibration error": calibration["pooled"][0]}


def cells(name, source):
    """(target, ways, shots) of the tests of a model."""
    if source == "glyphs":
        return [("omniglot", 5, 1), ("glyphs", 5, 1)]
    if name == "maml, 20-way":
        return [("omniglot", 20, 1)]
    found = [("omniglot", 5, 1), ("omniglot", 5, 5), ("glyphs", 5, 1)]
    return found + [("omniglot", 20, 1)] * (name in TWENTY)


def results():
    return "families" if OPTIONS.minutes == MINUTES else f"families-{OPTIONS.minutes:g}"


def load():
    path = RESULTS / f"{results()}.json"
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return stored["models"] if stored["minutes"] == OPTIONS.minutes and stored["seed"] == OPTIONS.seed else {}


def fill():
    plan = [(n, "omniglot") for n in METHODS] + [(n, "glyphs") for n in FROM_GLYPHS]
    for name, source in plan:
        label = name if source == "omniglot" else f"{name}, on {source}"
        if OPTIONS.only and label not in OPTIONS.only:
            continue
        row = load().get(label, {"cells": {}})
        missing = [c for c in cells(name, source) if " ".join(map(str, c)) not in row["cells"]]
        if not missing:
            continue
        print(label, flush=True)
        meta, steps = trained(name, source)
        row |= {"meta-steps": steps, "published": METHODS[name].published if source == "omniglot" else ()}
        for cell in missing:
            row["cells"][" ".join(map(str, cell))] = found = measured(name, source, meta, *cell)
            print(f"  {cell}: {100 * found['accuracy']:.2f}% ± {100 * found['interval95']:.2f}", flush=True)
            models = load() | {label: row}  # another process may fill other rows
            write(
                results(),
                {
                    **PROTOCOL,
                    "test tasks": OPTIONS.test_tasks,
                    "minutes": OPTIONS.minutes,
                    "seed": OPTIONS.seed,
                    "models": models,
                },
            )


PROTOCOL = {
    "data": "Omniglot, Finn's characters (1,100 / 100 / 423), rotated; glyphs, split by script",
    "network": f"conv4-{WIDTH}, stride 2, batch statistics unless named otherwise",
    "tests": "5 query images per class; 20-way on a third of the tasks; mann: 2nd and 6th time a class is seen",
    "minutes are": "of processor time on one core, data drawing included",
}


def show():
    columns = ["omniglot 5 1", "omniglot 5 5", "omniglot 20 1", "glyphs 5 1"]
    print(f"{'':32}" + "".join(f"{c:>18}" for c in columns))
    for name, row in load().items():
        texts = []
        for column in columns:
            cell = row["cells"].get(column)
            texts.append(f"{100 * cell['accuracy']:.1f} ± {100 * cell['interval95']:.1f}" if cell else "")
        print(f"{name:32}" + "".join(f"{t:>18}" for t in texts), row.get("published", ""))


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--test-tasks", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    OPTIONS = options()
    torch.set_num_threads(1)
    if not OPTIONS.show:
        fill()
    show()
