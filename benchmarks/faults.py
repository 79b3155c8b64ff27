"""What can go wrong in a long run, done to real runs, and how each ended.

python benchmarks/faults.py [--kills 20] [--data-dir PATH]     prints outcome by outcome, writes results/faults.json

Every fault is a function that breaks something, asserts that nothing was lost, and returns the outcome in words. The
tests run the same functions. `--data-dir` is a folder with Omniglot's archives, for the damaged ones.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from _report import write
from safetensors.torch import load

import fmeta
from fmeta.training._checkpoint import checkpoints, sealed

STEPS = 160
SMALL = f"--iterations {STEPS} --save-every 20 --log-every 10 --hidden 64 64 --meta-batch 4 --eval-tasks 10".split()
SMALL += ["--eval-steps", "0", "1", "--compile", "none", "--outer-schedule", "constant"]
HEARS = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # Ctrl-C: a background job may not


def start(*words, launcher=("-m", "fmeta"), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed is free
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *launcher, *map(str, words)], env=environment, **streams, **options)


def finish(process, expected=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, f"exit status {process.returncode}: {output}"
    return output


def undisturbed(folder):
    """A run that was left alone, made once."""
    run = folder / "undisturbed"
    if not run.exists():
        finish(start("train", *SMALL, "--run-dir", run))
    return run


def steps_of(run):
    return [step for step, _ in checkpoints(run / "checkpoints")]


def final(run):
    """The bits of the last state, and all that the run told but for the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]
    evaluation = (run / "evaluation.json").read_bytes()
    return (run / "checkpoints" / f"{STEPS:08d}" / "state.safetensors").read_bytes(), told, evaluation


def begun(folder, steps=60):
    """A run of so many steps, to go on with."""
    run = folder / "run"
    finish(start("train", *SMALL, "--iterations", steps, "--run-dir", run))
    return run


def resumed(run, *words):
    return finish(start("train", "--resume", "--run-dir", run, "--iterations", STEPS, *words))


def struck(run, reached, strike, attempts=5):
    """The exit status and output of a run that `strike(process)` ended after so many steps.

    Begun anew where the run was over first, as can be where this process has to wait for a processor.
    """
    for _ in range(attempts):
        process, deadline = start("train", *SMALL, "--run-dir", run, **HEARS), time.monotonic() + 200
        while process.poll() is None and not (steps_of(run) and steps_of(run)[-1] >= reached):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        strike(process)
        output, _ = process.communicate(timeout=300)
        if process.returncode and not (steps_of(run) and steps_of(run)[-1] >= STEPS):
            return process.returncode, output
        shutil.rmtree(run)
    raise AssertionError(f"{attempts} runs were over before they could be struck: {output}")


def killed(folder, kills=3, seed=0):
    """SIGKILL at random moments of one run after another, every other time while a checkpoint is being written."""
    whole, generator, same, lost = final(undisturbed(folder)), random.Random(seed), 0, []
    for number in range(kills):
        run = folder / f"killed-{number}"

        def strike(process, run=run, saving=number % 2):
            deadline = time.monotonic() + 200
            if saving:
                while process.poll() is None and not any((run / "checkpoints").glob("*.tmp")):
                    assert time.monotonic() < deadline
            else:
                time.sleep(0.05 * generator.random())
            process.kill()

        status, output = struck(run, 20 * generator.randrange(1, STEPS // 20 - 1), strike)
        assert status == -signal.SIGKILL, f"exit status {status}: {output}"
        kept, told = steps_of(run)[-1], (run / "metrics.jsonl").read_text().splitlines()
        lost.append(int(json.loads(told[-1])["step"]) - kept if told[-1].endswith("}") else 0)
        resumed(run)
        same += final(run) == whole
    assert same == kills, f"{same} of {kills} runs ended with the same bits"
    return f"resumed bit-exact {same} of {kills}; at most {max(lost)} logged steps were done again"


def interrupted(folder, times=2, seed=1):
    """Ctrl-C and SIGTERM, by turns, at random moments of one run after another: not even a step is lost."""
    whole, generator, same = final(undisturbed(folder)), random.Random(seed), 0
    for number in range(times):
        run, asked = folder / f"interrupted-{number}", (signal.SIGINT, signal.SIGTERM)[number % 2]

        def strike(process, asked=asked):
            time.sleep(0.05 * generator.random())
            process.send_signal(asked)
            if asked == signal.SIGTERM:  # which launchers pass on while the scheduler sends it too
                time.sleep(0.002)
                process.send_signal(asked)

        status, output = struck(run, 20 * generator.randrange(1, 4), strike)
        assert status == 128 + asked, f"exit status {status}: {output}"
        assert "go on with: fmeta train --resume" in output, output
        told = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert told <= steps_of(run)[-1] + 1  # struck after the line, that step is not done yet
        resumed(run)
        same += final(run) == whole
    assert same == times, f"{same} of {times} runs ended with the same bits"
    return f"saved at their step; resumed bit-exact, metrics too, {same} of {times}"


def disk_full(folder):
    """No file may grow past 30 kB, and a checkpoint needs more."""
    run = begun(folder)
    before = (run / "checkpoints" / "00000060" / "state.safetensors").read_bytes()
    assert len(before) > 40_000
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))}
    output = finish(start("train", "--resume", "--run-dir", run, "--iterations", STEPS, **limit), 1)
    assert "could not be written" in output, output
    assert "the last whole checkpoint is that of step 60" in output, output
    assert (run / "checkpoints" / "00000060" / "state.safetensors").read_bytes() == before
    assert not any((run / "checkpoints").glob("*.tmp"))
    resumed(run)
    assert final(run) == final(undisturbed(folder))
    return "stopped with its reason; the last checkpoint stayed whole; resumed bit-exact"


def not_writable(folder):
    """A folder that an ordinary user may not write in."""
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    for parent in (folder, *folder.parents[:-1]):
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o555)
    code = (
        "import os, sys\nfrom fmeta.cli import main\n"
        f"main(['train', *{SMALL}, '--iterations', '1', '--run-dir', {str(folder / 'open')!r}])\n"  # imports it all
        "os.getuid() or os.setuid(65534)\n"  # root may write anywhere
        f"sys.exit(main(['train', *{SMALL}, '--run-dir', {str(closed / 'run')!r}]))"
    )
    output = finish(start(launcher=("-c", code)), 2)
    assert "expected a folder that can be written" in output, output
    assert not any(closed.iterdir())
    return "refused before anything was trained"


def damaged_checkpoint(folder):
    """Truncated, one bit flipped, of another fmeta, of another recipe: the message names it, and its cure works."""
    run, whole = begun(folder, 60), final(undisturbed(folder))
    path = run / "checkpoints" / "00000060"
    other = folder / "other"
    finish(start("train", *SMALL, "--iterations", 60, "--hidden", 8, "--run-dir", other))
    state, facts = path / "state.safetensors", path / "checkpoint.json"
    good = {file: file.read_bytes() for file in (state, facts)}
    flipped = bytearray(good[state])
    flipped[len(flipped) // 2] ^= 1
    damages = {
        "truncated": {state: good[state][:-100]},
        "a bit flipped": {state: bytes(flipped)},
        "facts cut short": {facts: good[facts][:20]},
        "a bit of the facts flipped": {facts: good[facts].replace(b'"since": 0', b'"since": 1')},
        "a newer format": {facts: good[facts].replace(b'"format": 2', b'"format": 99')},
        "another recipe's": {p: (other / p.relative_to(run)).read_bytes() for p in (state, facts)},
        "empty": {state: b""},
    }
    for name, files in damages.items():
        for file, content in (good | files).items():
            file.write_bytes(content)
        output = finish(start("train", "--resume", "--run-dir", run, "--iterations", STEPS), 2)
        assert "00000060" in output, f"{name}: {output}"
        assert "expected" in output, f"{name}: {output}"
        assert (good | files)[state] == state.read_bytes(), f"{name}: the file was touched"
    shutil.rmtree(path)  # the cure: an older checkpoint, or the beginning
    resumed(run)
    assert final(run) == whole
    return f"refused by name {len(damages)} of {len(damages)} ({', '.join(damages)}); without it resumed bit-exact"


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled_checkpoint(folder):
    """A pickle that would run code, in place of the tensors, with its checksum fitted."""
    run, touched = begun(folder), folder / "touched"
    path = run / "checkpoints" / "00000060"
    content = pickle.dumps(_Evil(touched))
    (path / "state.safetensors").write_bytes(content)
    facts = dict(checkpoints(run / "checkpoints"))[60]
    (path / "checkpoint.json").write_bytes(sealed(facts | {"sha256": hashlib.sha256(content).hexdigest()}))
    output = finish(start("train", "--resume", "--run-dir", run, "--iterations", STEPS), 2)
    assert "damaged" in output, output
    assert not touched.exists()
    pickle.loads(content)  # it would have
    assert touched.exists()
    return "refused, not executed"


def damaged_archive(folder, data_dir=None):
    """Omniglot's archive truncated, with bits flipped, and with entries whose paths climb out of their folder."""
    if data_dir is None:
        return None
    outcomes = []
    found = next(Path(data_dir).rglob("images_evaluation.zip"), None)
    plain = next(p for p in Path(data_dir).rglob("images_evaluation") if p.is_dir()) if found is None else None
    made = folder / "images_evaluation.zip"
    if found is None:  # the data is unpacked here: pack some of it
        with zipfile.ZipFile(made, "w") as archive:
            for file in sorted(plain.rglob("*.png"))[:200]:
                archive.write(file, file.relative_to(plain.parent))
    else:
        shutil.copy(found, made)
    content = made.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 3] ^= 255
    for name, damaged in {"truncated": content[: len(content) // 2], "bits flipped": bytes(flipped)}.items():
        outcomes.append(_reads_archive(folder / name.replace(" ", "-"), damaged))
    climbing = folder / "climbing.zip"
    shutil.copy(made, climbing)
    with zipfile.ZipFile(climbing, "a") as archive:
        first = archive.read(next(n for n in archive.namelist() if n.endswith(".png")))
        archive.writestr("images_evaluation/../../../escaped.png", first)
        archive.writestr("/escaped/absolute.png", first)
    _reads_archive(folder / "nest" / "ed" / "climbing", climbing.read_bytes(), may_load=True)
    assert not any("escaped" in str(p) for p in folder.rglob("*")), "a path climbed out"
    assert not Path("/escaped").exists()
    return "truncated and flipped refused by name; entries that climb wrote nothing"


def _reads_archive(data, content, may_load=False):
    data.mkdir(parents=True)
    for part in ("images_background", "images_evaluation"):
        (data / f"{part}.zip").write_bytes(content)
    code = f"import fmeta; fmeta.tasks.omniglot('test', protocol='lake', data_dir={str(data)!r})"
    environment = {**os.environ, "FMETA_CACHE": str(data / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "InputError" in done.stderr or (may_load and done.returncode == 0), done.stderr
    return done.returncode


def ranks_run(folder, *launches):
    """Processes of torchrun that train one run, and where each worker leaves its number, so that it can be found."""
    run, log = folder / "ranks", folder / "pids"
    log.mkdir()
    (folder / "worker.py").write_text(
        "import os, pathlib, sys\n"
        f"pathlib.Path({str(log)!r}, os.environ['RANK']).write_text(f'{{os.getpid()}} {{os.getppid()}}')\n"
        "from fmeta.cli import main\nsys.exit(main())\n"
    )
    torchrun, begun = ("-m", "torch.distributed.run", "--max-restarts", "3"), []
    for launch in launches:
        words = (folder / "worker.py", "train", *SMALL, "--run-dir", run)
        begun.append(start(*words, launcher=(*torchrun, *launch)))
    deadline = time.monotonic() + 200
    while not (steps_of(run) and steps_of(run)[-1] >= 60):
        for process in begun:
            assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return run, log, begun


def near_undisturbed(run, folder):
    """How far the last parameters are from those of one process that was left alone."""
    (state, told, _), (single, told_single, _) = final(run), final(undisturbed(folder))
    assert {line["step"] for line in told} >= {line["step"] for line in told_single}
    ours, theirs = load(state), load(single)
    worst = max(float((ours[n] - t).abs().max() / t.abs().max()) for n, t in theirs.items() if n.startswith("meta"))
    assert worst < 1e-3, worst  # float32, other orders of summation, 160 steps
    return f"state within {worst:.0e} of one process's"


def worker_killed(folder):
    """One of two processes under torchrun dies; torchrun starts both anew, and they go on from the last checkpoint."""
    run, log, (process,) = ranks_run(folder, ("--standalone", "--nproc-per-node", "2"))
    worker, _ = (log / "1").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    finish(process)
    return f"both started anew from the last checkpoint and ended at step {STEPS}; {near_undisturbed(run, folder)}"


def node_lost(folder):
    """One of two nodes, each a torchrun of its own that meets the other by rendezvous, dies with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meet = ("--nnodes", "1:2", "--nproc-per-node", "1", "--local-addr", "127.0.0.1", "--rdzv-id", "two-nodes")
    meet += ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    # the host first, so that it is rank 0: torchrun of torch 2.11 fails where the node of rank 0 is the one lost
    hosting = [("--rdzv-conf", f"is_host={host},last_call_timeout=15,keep_alive_interval=1") for host in (1, 0)]
    run, log, (host, guest) = ranks_run(folder, *[(*meet, *conf) for conf in hosting])
    workers = [file.read_text().split() for file in log.iterdir()]
    assert {int(agent) for _, agent in workers} == {host.pid, guest.pid}
    guest.kill()
    for worker, agent in workers:
        if int(agent) == guest.pid:
            os.kill(int(worker), signal.SIGKILL)
    guest.communicate()
    finish(host)
    return f"the other went on from the last checkpoint, alone, to step {STEPS}; {near_undisturbed(run, folder)}"


def out_of_memory(folder):
    """Twelve tasks where there is room for about half of them."""
    code = (
        "import resource, fmeta\n"
        "learner = fmeta.maml(fmeta.models.mlp([1, 128, 128, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=5)\n"
        "sample = fmeta.tasks.sinusoid(shots=4000, query=4000)\n"
        "given = {'key': fmeta.key(0), 'iterations': 1}\n"
        "fmeta.fit(learner, fmeta.adam(1e-3), sample, meta_batch=1, **given)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))\n"
        "try:\n    fmeta.fit(learner, fmeta.adam(1e-3), sample, meta_batch=12, **given)\n"
        "except fmeta.OutOfMemoryError as error:\n    message = str(error)\n"
        "print(message)\n"
        "size = int(message.split('chunked(unrolled(), ')[1].split(')')[0])\n"
        "gradient = fmeta.chunked(fmeta.unrolled(), max(1, size // 2))\n"
        "fmeta.fit(learner, fmeta.adam(1e-3), sample, meta_batch=12, gradient=gradient, **given)\n"
        "print('trained')\n"
    )
    output = finish(start(launcher=("-c", code)))
    assert "12 tasks in a meta-step" in output, output
    assert output.strip().endswith("trained"), output
    return output.split("Estimates, run eager: ")[1].split(". Take")[0] + "; in chunks it trained"


def bad_task(folder):
    """One task of each meta-batch is NaN: training stops, or by option leaves it out and counts it."""
    learner = fmeta.maml(fmeta.models.mlp([1, 8, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    waves = fmeta.tasks.sinusoid()

    begin = fmeta.fold(fmeta.fold(fmeta.key(0), "tasks"), 0)

    def sample(key, count):
        tasks = waves(key, count)
        second = (torch.arange(count) == 1) & (key != begin)  # the first batch is looked at before any step
        y = torch.where(second[:, None, None], float("nan"), tasks.support.y)
        return tasks._replace(support=tasks.support._replace(y=y))

    given = {"key": fmeta.key(0), "iterations": 20, "meta_batch": 4, "logging": fmeta.Logging(10)}
    seen = []
    message = "it trained on"
    try:
        fmeta.fit(learner, fmeta.adam(1e-3), sample, run_dir=folder / "stops", **given)
    except fmeta.NonFiniteError as error:
        message = str(error)
    assert "fmeta.skipping" in message, message
    told = [lambda step, values: seen.append(values)]
    given |= {"gradient": fmeta.skipping(), "logging": fmeta.Logging(10, told)}
    state = fmeta.fit(learner, fmeta.adam(1e-3), sample, **given)
    assert int(state.step) == 20
    assert [line["skipped"] for line in seen] == [9, 10]
    return "stopped at its step; with skipping() 20 steps, 19 tasks left out and counted"


def two_processes(folder):
    """A second process on the folder of a run."""
    run = folder / "run"
    first = start("train", *SMALL, "--iterations", 100000, "--run-dir", run, **HEARS)
    deadline = time.monotonic() + 200
    while not steps_of(run):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = finish(start("train", "--resume", "--run-dir", run, "--iterations", 100000), 2)
    assert "another process is training in this folder" in second, second
    assert first.poll() is None
    _interrupt(first)
    deadline = time.monotonic() + 200
    third, reached = start("train", "--resume", "--run-dir", run, **HEARS), steps_of(run)[-1]
    while steps_of(run)[-1] < reached + 40:
        assert third.poll() is None, third.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _interrupt(third)
    return "the second refused, the first undisturbed; after it ended the folder is free"


def _interrupt(process):
    process.send_signal(signal.SIGINT)
    finish(process, 130)


FAULTS = {
    "SIGKILL at random moments, and while a checkpoint is written": killed,
    "Ctrl-C and SIGTERM at random moments": interrupted,
    "disk full during a checkpoint": disk_full,
    "a run folder that cannot be written": not_writable,
    "a truncated, bit-flipped or foreign checkpoint": damaged_checkpoint,
    "a damaged archive, and one with paths that climb out": damaged_archive,
    "a pickle offered as a checkpoint": pickled_checkpoint,
    "a worker killed under torchrun": worker_killed,
    "a node lost under torchrun": node_lost,
    "out of memory": out_of_memory,
    "NaN in one task of a meta-batch": bad_task,
    "two processes on one run folder": two_processes,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    outcomes = {}
    with tempfile.TemporaryDirectory() as base:
        for number, (name, fault) in enumerate(FAULTS.items()):
            folder = Path(base, str(number))
            folder.mkdir()
            more = {
                killed: {"kills": options.kills},
                interrupted: {"times": options.kills},
                damaged_archive: {"data_dir": options.data_dir},
            }.get(fault, {})
            try:
                outcomes[name] = fault(folder, **more) or "not run: needs --data-dir"
            except AssertionError as error:
                outcomes[name] = f"FAILED: {error}"
            print(f"{name}: {outcomes[name]}", flush=True)
    write("faults", {"kills": options.kills, "outcomes": outcomes})
    return any(outcome.startswith("FAILED") for outcome in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
