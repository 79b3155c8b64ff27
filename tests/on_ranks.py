"""What each process of a group does in `test_ranks.py`: `python on_ranks.py FOLDER`, with RANK and WORLD_SIZE."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import grouped
from own_trainers import WAVES, collecting, remembering

import fmeta
from fmeta.core import key
from fmeta.core.tree import tree_leaves
from fmeta.training._ranks import OtherRankError, Ranks


def train(*, bad_tasks=(), **options):
    """Six meta-steps on five sine waves each, in float64, whose `bad_tasks` have infinite targets."""
    net = fmeta.models.mlp([1, 6, 1], torch.tanh)
    model = net._replace(init=lambda k: {name: p.to(torch.float64) for name, p in net.init(k).items()})
    learner = fmeta.maml(model, fmeta.mse, optimizer=fmeta.sgd(0.02), steps=2, metrics={"absolute": _error})
    waves = fmeta.tasks.sinusoid(shots=4, query=4, dtype=torch.float64)

    def sample(key, count):
        tasks = waves(key, count)
        shift = torch.zeros(count, 1, 1, dtype=torch.float64)
        for number in bad_tasks:
            shift[number] = torch.inf
        return tasks._replace(support=tasks.support._replace(y=tasks.support.y + shift))

    given = {"key": key(3), "iterations": 6, "meta_batch": 5, "log_every": 2, "save_every": 3} | options
    return fmeta.fit(learner, fmeta.adam(0.01), sample, **grouped(**given))


OWN = {"memory": remembering, "host": collecting}


def own(trainer):
    return fmeta.fit(trainer, WAVES, key=key(3), iterations=4, meta_batch=5, logging=fmeta.Logging(2))


def _error(prediction, y):
    return (prediction - y).abs().mean(-1)


def main(folder):
    rank, count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    meet = f"file://{folder / f'met-by-{count}'}"  # no port that another test may take
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
    result = {"kept": tree_leaves(train(run_dir=folder / "ranks"))}
    if dist.get_world_size() == 2:
        result["resumed"] = tree_leaves(train(run_dir=folder / "half", resume=True))
        result["whole"] = tree_leaves(train(scope="whole"))
        for bad_tasks in [(0,), (0, 1), (1, 4)]:
            seen = []
            state = train(
                bad_tasks=bad_tasks,
                gradient=fmeta.skipping(),
                loggers=[lambda _, values, to=seen: to.append(values)],
            )
            result["skipped", bad_tasks] = tree_leaves(state), [(v["skipped"], v["loss"]) for v in seen]
        validate = _by_rank_0 if rank == 0 else None
        judged = None if validate is None else fmeta.Validation(validate, every=2, patience=3)
        result["stopped"] = int(train(iterations=50, validate=judged).step)
        try:
            train(log_every=2 + rank)
        except fmeta.InputError as error:
            result["other call"] = str(error)
        for name, made in OWN.items():
            result[name] = tree_leaves(own(made()))
        result["differ"] = _differing(rank)
        try:
            train(run_dir=folder / "ranks")
        except (fmeta.InputError, OtherRankError) as error:
            result["refused"] = type(error).__name__, str(error)
        try:
            with Ranks.present().together(torch.device("cpu")):
                assert rank == 0, "no data on this node"
        except (AssertionError, OtherRankError) as error:
            result["failed"] = type(error).__name__, str(error)
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()  # gloo of torch 2.11 may abort where one leaves while another still talks
    dist.destroy_process_group()


def _by_rank_0(meta):
    assert dist.get_rank() == 0
    return 1.0


def _differing(rank):
    state = {"w": torch.ones(3, dtype=torch.float64), "n": torch.tensor(1)}
    Ranks.present().check_same(state, 1)
    state["w"][2] += rank * 2.3e-16
    try:
        Ranks.present().check_same(state, 2)
    except fmeta.RanksDifferError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
