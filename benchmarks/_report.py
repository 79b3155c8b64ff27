"""What every benchmark shares: facts about the machine, timing, and the result file."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

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


def interleaved(functions, repeats, calls):
    """Median seconds per call of each function, measured in turn after a warm-up, so that drift hits all alike."""
    for f in functions.values():
        for _ in range(3):
            f()
    taken = {name: [] for name in functions}
    for _ in range(repeats):
        for name, f in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                f()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append((time.perf_counter() - start) / calls)
    return {name: {"median": statistics.median(t), "min": min(t)} for name, t in taken.items()}
