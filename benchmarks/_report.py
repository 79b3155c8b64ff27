"""What every benchmark shares: facts about the machine, time, memory, and the result file."""

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import fmeta

RESULTS = Path(__file__).parent / "results"


def machine():
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def write(name, result):
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"fmeta": fmeta.__version__, "machine": machine(), **result}, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(functions, repeats, calls):
    """Seconds per call of each function: median, least and quartiles of `repeats` means over `calls`.

    Measured in turn after a warm-up, so that drift hits all alike.
    """
    for f in functions.values():
        for _ in range(3):
            f()
    taken = {name: [] for name in functions}
    for _ in range(repeats):
        for name, f in functions.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                f()
            synchronize()
            taken[name].append((time.perf_counter() - start) / calls)
    return {
        name: {"median": statistics.median(t), "min": min(t), "quartiles": np.quantile(t, (0.25, 0.75)).tolist()}
        for name, t in taken.items()
    }


def peak_bytes(work, warm_up, device="cpu"):
    """What two calls of `work` add to the memory at their peak, after a warm-up that loads the code.

    On a CPU this is resident memory, so it wants a process of its own: `fresh`.
    """
    # where memory runs out, the system is to end this process and no other
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    warm_up()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before, peak = _resident(), _peak_resident
    for _ in range(2):
        work()
    return max(0, peak() - before)


def _resident():
    import psutil

    return psutil.Process().memory_info().rss


def _peak_resident():
    if sys.platform == "linux":  # where ru_maxrss would begin with the peak of the parent process
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fresh(*arguments, timed=False, **environment):
    """The JSON that `python *arguments` prints last, in a process of its own: (value, None), or (None, why not)."""
    setting = {**os.environ, **environment}
    if not timed:
        # glibc then hands freed tensors back at once, which takes time; left alone it keeps some, and the peak wanders
        # by hundreds of MiB
        setting["MALLOC_MMAP_THRESHOLD_"] = "16384"
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=setting)
    if done.returncode < 0:
        return None, f"ended by signal {-done.returncode}" + (", as when memory runs out" * (done.returncode == -9))
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), None
