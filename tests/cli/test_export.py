"""`fmeta export`: plain PyTorch takes the weights of a run, and computes the same with them."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import fmeta
from fmeta.cli import main
from fmeta.core import key, uniform
from fmeta.core.tree import named_leaves
from fmeta.runs import load, open_run

SINUSOID = ["sinusoid", "--hidden", "8", "6", "--compile", "none"]
GLYPHS = ["glyphs", "--width", "8", "--drawings", "4", "--ways", "3"]
EVERY = ["--iterations", "4", "--save-every", "2", "--meta-batch", "2", "--eval-tasks", "2", "--eval-steps", "1"]
RUNS = {
    "sinusoid": SINUSOID,
    "meta_sgd": [*SINUSOID, "--learner", "meta_sgd"],
    "maml": [*GLYPHS, "--inner-lr", "0.1"],
    "protonet": [*GLYPHS, "--learner", "protonet", "--network", "pool"],
    "transfer": [*GLYPHS, "--learner", "transfer"],
}


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden1, self.hidden2, self.head = nn.Linear(1, 8), nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.hidden2(self.hidden1(x).relu()).relu())


class Conv4(nn.Module):
    """With a head and strides, or without a head and with pooling."""

    def __init__(self, ways):
        super().__init__()
        for i in range(1, 5):
            stride = 1 if ways is None else 2
            self.add_module(f"conv{i}", nn.Conv2d(1 if i == 1 else 8, 8, 3, stride=stride, padding=1))
            self.add_module(f"norm{i}", nn.BatchNorm2d(8, track_running_stats=False))
        self.head = None if ways is None else nn.Linear(8, ways)

    def forward(self, x):
        for i in range(1, 5):
            x = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(x)).relu()
            x = F.max_pool2d(x, 2) if self.head is None else x
        return x.flatten(1) if self.head is None else self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs, by name."""
    found = {name: tmp_path_factory.mktemp("runs") / name for name in RUNS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, options in RUNS.items():
            assert main(["train", *options, *EVERY, "--no-tensorboard", "--run-dir", str(found[name])]) == 0
        yield found


def export(run, file, *options):
    """The weights in the file, as plain PyTorch reads them."""
    assert main(["export", str(run), "--to", "torch", "--out", str(file), *options]) == 0
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "outputs", "network", "shape", "tolerance"),
    [
        ("sinusoid", "head", Perceptron(), (50, 1), 1e-6),
        ("maml", "head", Conv4(3), (12, 1, 28, 28), 1e-5),
        ("protonet", "features", Conv4(None), (12, 1, 28, 28), 1e-5),
    ],
)
def test_the_same_network_in_plain_pytorch_takes_the_weights_and_predicts_the_same(
    runs, tmp_path, name, outputs, network, shape, tolerance
):
    network.load_state_dict(export(runs[name], tmp_path / "weights.pt"), strict=True)
    trained = load(runs[name])
    x = uniform(key(7), shape, -2.0, 2.0)
    expected = trained.experiment.offer().network(outputs).apply(trained.meta, x)
    with torch.no_grad():
        found = network.eval()(x)
    assert expected.std() > 1e-2  # so that the tolerance means something
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_parts_of_meta_keep_their_path(runs, tmp_path):
    weights = export(runs["meta_sgd"], tmp_path / "rates.pt")
    meta = load(runs["meta_sgd"]).meta
    names = [f"{layer}.{part}" for layer in ("hidden1", "hidden2", "head") for part in ("weight", "bias")]
    assert weights.keys() == {f"{part}.{name}" for part in ("params", "lr") for name in names}
    for name in names:
        assert torch.equal(weights[f"params.{name}"], meta.params[name])
        assert torch.equal(weights[f"lr.{name}"], meta.lr[name])
    nested = export(runs["transfer"], tmp_path / "nested.pt")
    assert {"encoder.conv1.weight", "encoder.norm4.bias", "head.weight", "head.bias"} <= nested.keys()


@pytest.mark.parametrize("name", RUNS)
def test_both_formats_hold_meta_and_nothing_else(runs, name, tmp_path):
    """Exact, and without memory that belongs to other tensors."""
    weights = export(runs[name], tmp_path / "weights.pt")
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(runs[name]), "--to", "safetensors", "--out", str(file)]) == 0
    meta = named_leaves(load(runs[name]).meta)
    assert type(weights) is dict
    with safe_open(file, "pt") as stored:
        assert weights.keys() == set(stored.keys()) == meta.keys()
        for n, tensor in weights.items():
            assert torch.equal(tensor, meta[n])
            assert torch.equal(stored.get_tensor(n), meta[n])
            assert (tensor.device.type, tensor.is_contiguous()) == ("cpu", True)
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_safetensors_say_where_they_come_from(runs, tmp_path):
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(runs["protonet"]), "--to", "safetensors", "--out", str(file)]) == 0
    with safe_open(file, "pt") as stored:
        facts = stored.metadata()
    options = json.loads(facts.pop("options"))
    assert facts == {"fmeta": fmeta.__version__, "recipe": "glyphs", "learner": "protonet", "step": "4"}
    assert options == json.loads(json.dumps(open_run(runs["protonet"]).experiment.options()))


@pytest.mark.parametrize(("form", "suffix"), [("torch", "pt"), ("safetensors", "safetensors")])
def test_the_printed_lines_load_the_file_where_fmeta_cannot_be_imported(runs, tmp_path, capfd, form, suffix):
    out = tmp_path / f"it's {{mine}}.{suffix}"
    capfd.readouterr()
    assert main(["export", str(runs["sinusoid"]), "--to", form, "--out", str(out)]) == 0
    said, *lines = capfd.readouterr().out.splitlines()
    assert said == f"{out}: 6 tensors, 77 numbers, of meta-step 4"
    assert len(lines) == 2
    program = ["import sys", "sys.modules['fmeta'] = None", *lines, "print(sum(t.numel() for t in weights.values()))"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "77\n", done.stderr


def test_the_checkpoint_is_chosen_by_step_or_as_best(runs, tmp_path):
    steps = sorted(int(p.name) for p in (runs["sinusoid"] / "checkpoints").iterdir())
    for which in ("best", "last", *map(str, steps)):
        weights = export(runs["sinusoid"], tmp_path / f"{which}.pt", "--checkpoint", which)
        meta = load(runs["sinusoid"], checkpoint=which).meta
        assert all(torch.equal(weights[n], meta[n]) for n in meta)


def test_neither_the_device_nor_the_data_of_the_run_is_needed(runs, tmp_path):
    """Neither decides the run, so that recipe.json may say another."""
    shutil.copytree(runs["protonet"], tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    stored["run"]["options"]["device"] = "cuda:99"
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(stored))
    weights = export(tmp_path / "run", tmp_path / "weights.pt")
    assert weights.keys() == load(runs["protonet"]).meta.keys()


def test_without_a_file_it_lies_in_the_run_and_is_replaced(runs):
    run = runs["sinusoid"]
    before, names = set(run.iterdir()), load(run).meta.keys()
    files = {"torch": (run / "weights.pt", torch.load), "safetensors": (run / "weights.safetensors", load_file)}
    for form, (file, read) in files.items():
        for options in ([], [], ["--out", str(run / ".." / run.name / file.name)]):
            assert main(["export", str(run), "--to", form, *options]) == 0
            assert read(file).keys() == names
            file.write_bytes(b"old")
    assert set(run.iterdir()) - before == {file for file, _ in files.values()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--checkpoint", "7"], "export --checkpoint 7: not in "),
        (["--checkpoint", "lst"], "did you mean 'last'"),
        (["--out", "mine.pt"], "export --out mine.pt: the file is there already"),
        (["--out", "."], "export --out .: "),
        (["--out", "missing/weights.pt"], "export --out missing/weights.pt: "),
        (["--out", "mine.pt/weights.pt"], "export --out mine.pt/weights.pt: "),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(runs, tmp_path, monkeypatch, capfd, options, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").write_bytes(b"mine")
    assert main(["export", str(runs["meta_sgd"]), "--to", "torch", *options]) == 2
    message = capfd.readouterr().err
    assert named in message
    assert message.count("\n") == 1
    assert (tmp_path / "mine.pt").read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.pt"]
    assert not (runs["meta_sgd"] / "weights.pt").exists()


def test_what_cannot_be_replaced_is_an_error_that_leaves_nothing_behind(runs, capfd):
    """A folder in the place of the file: the rename fails after the file was written."""
    taken = runs["transfer"] / "weights.pt"
    taken.mkdir()
    before = set(runs["transfer"].iterdir())
    assert main(["export", str(runs["transfer"]), "--to", "torch"]) == 2
    assert "expected a place that can be written" in capfd.readouterr().err
    assert set(runs["transfer"].iterdir()) == before
    taken.rmdir()


def test_no_run_no_checkpoint_and_a_damaged_one_are_refused(runs, tmp_path, capfd):
    assert main(["export", str(tmp_path), "--to", "torch"]) == 2
    assert "no recipe.json there" in capfd.readouterr().err
    (tmp_path / "recipe.json").write_bytes((runs["sinusoid"] / "recipe.json").read_bytes())
    assert main(["export", str(tmp_path), "--to", "torch"]) == 2
    assert "it is empty" in capfd.readouterr().err
    (tmp_path / "checkpoints" / "00000004").mkdir(parents=True)
    assert main(["export", str(tmp_path), "--to", "torch"]) == 2
    assert "damaged" in capfd.readouterr().err
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--to", "onnx"], "export --to onnx: known: torch, safetensors"), ([], "export: expected --to")],
)
def test_another_format_is_refused_by_name(runs, capfd, options, named):
    assert main(["export", str(runs["sinusoid"]), *options]) == 2
    assert named in capfd.readouterr().err
