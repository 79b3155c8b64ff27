"""The speed benchmarks at small sizes: the peers do the same work, and gpu.py runs to its end on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _work

    return _work


@pytest.mark.parametrize("name", ["sinusoid-1", "sinusoid-5", "conv4", "omniglot"])
def test_every_peer_computes_the_same_meta_gradient(work, name):
    problem = work.TINY[name]
    meta, tasks = problem.meta(torch.float64), problem.data(torch.float64)
    expected = {n: g.clone() for n, g in work.autograd_loop(problem, meta, tasks)().items()}
    scale = max(float(g.abs().max()) for g in expected.values())
    peers = {"fmeta, eager": None, "higher": "higher", "TorchOpt": "torchopt", "JAX": "jax"}
    for peer, package in peers.items():
        if package is not None:
            try:
                __import__(package)
            except ImportError:
                continue  # a peer of the extra "bench"
        found = work.PEERS[peer](problem, meta, tasks)()
        for parameter, g in expected.items():
            assert float((torch.tensor(found[parameter].tolist(), dtype=g.dtype) - g).abs().max()) < 1e-10 * scale, peer


def test_the_arithmetic_is_that_of_the_formulas(work):
    """Finn's Omniglot net: 5.31 MFLOP an image, and second over first order 1.99 in his protocol."""
    problem = work.WORKS["omniglot"]
    first, second = (work.arithmetic(problem, gradient) for gradient in ("first_order", "unrolled"))
    assert second / first == pytest.approx(1.99, abs=0.01)
    assert (first / 10 + 2 * 9 * 64 * 14 * 14) / 3 == pytest.approx(5.31e6, rel=0.01)


def test_gpu_runs_on_a_cpu_at_small_sizes(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "gpu.py",
        "--device",
        "cpu",
        "--tiny",
        "--iterations",
        "3",
        "--repeats",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for said in ("float32, eager", "float32, compiled", "sampling:", "'iterations': 3"):
        assert said in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_gpu_without_cuda_says_so(tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no CUDA device here; --device cpu --tiny" in done.stderr
