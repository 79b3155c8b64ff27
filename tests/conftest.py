"""Options and fixtures of the whole suite."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # pytest-xdist runs one worker per core


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run every compiled pair, not the covering subset")


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: runs with --thorough only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--thorough"):
        return
    kept = [item for item in items if "thorough" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "thorough" in item.keywords])
    items[:] = kept


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Decoded data goes to a folder of this test session, not to the user's cache."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def omniglot_dir():
    """The real archives, which live beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "omniglot"
    if not folder.exists():
        pytest.skip("needs Omniglot in ../shared/data/omniglot")
    return folder


def pytest_terminal_summary(terminalreporter):
    """How many examples hypothesis drew for the laws, over all workers."""
    reports = terminalreporter.stats.get("passed", [])
    drawn = [value for r in reports for name, value in r.user_properties if name == "hypothesis examples"]
    if drawn:
        terminalreporter.write_line(f"laws held for {sum(drawn)} hypothesis examples of {len(drawn)} kinds of learner")
