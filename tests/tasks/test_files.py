"""What the sources keep on disk: whole or not at all, whatever the locale, and said where it cannot be."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fmeta
from fmeta import InputError
from fmeta.tasks import _cache
from fmeta.tasks._cache import cached_images, cached_names

NAMES = ["ä/猫", "[/b]x"]


def make():
    return torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3), NAMES


def refuse():
    raise AssertionError("made again")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "[cache] ü"))
    return tmp_path / "[cache] ü"


def test_what_was_made_is_kept(cache):
    first, names = cached_images("x", make)
    again, kept = cached_images("x", refuse)
    assert names == kept == cached_names("x", refuse) == NAMES
    assert torch.equal(first, again)
    assert [path.name for path in cache.iterdir()] == ["x.safetensors"]


def test_names_alone_are_made_too(cache):
    assert cached_names("x", make) == NAMES
    assert torch.equal(cached_images("x", refuse)[0], make()[0])


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"not safetensors at all", None])
def test_a_file_that_is_no_cache_is_made_again(cache, content):
    cached_images("x", make)
    path = cache / "x.safetensors"
    if content is None:  # another program's: no names in it
        from safetensors.torch import save_file

        save_file({"weights": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    assert cached_names("x", make) == NAMES
    assert torch.equal(cached_images("x", refuse)[0], make()[0])


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_write_that_fails_leaves_nothing_and_names_the_file(cache, monkeypatch, failing):
    def fail(*args):
        if failing == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_cache if failing == "save_file" else os, failing, fail)
        with pytest.raises(InputError, match=r"cannot keep .*x.safetensors: .*No space left.*set FMETA_CACHE"):
            cached_images("x", make)
    assert not list(cache.iterdir())
    cached_images("x", make)


def test_a_cache_folder_that_is_a_file_is_named(cache):
    cache.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot keep .*x.safetensors"):
        cached_images("x", make)


READS_ALL_KINDS = """
import pathlib, sys
from PIL import Image
import fmeta
folder = pathlib.Path(sys.argv[1])
(folder / "images").mkdir()
rows = [("%d.png" % i, "n0%d" % i) for i in range(2)]
for name, label in rows:
    Image.new("RGB", (9, 9), (9, 9, 9)).save(folder / "images" / name)
    (folder / "pets" / label).mkdir(parents=True)
    Image.new("RGB", (9, 9), (9, 9, 9)).save(folder / "pets" / label / name)
text = "filename,label,note\\n" + "".join(f"{name},{label}\\u732b,\\u00fc\\n" for name, label in rows)
(folder / "val.csv").write_bytes(text.encode("utf-8"))
data = fmeta.tasks.mini_imagenet("validation", data_dir=folder, whole=False)
assert data.names == ("n00\\u732b", "n01\\u732b"), ascii(data.names)
assert fmeta.tasks.mini_imagenet("validation", data_dir=folder, whole=False).names == data.names
assert fmeta.tasks.image_folder(folder / "pets", size=4).names == ("n00", "n01")
"""


def test_files_are_utf_8_whatever_the_locale(tmp_path, cache):
    """In a process whose locale is ASCII."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "FMETA_CACHE": str(tmp_path / "c")}
    done = subprocess.run(
        [sys.executable, "-c", READS_ALL_KINDS, str(tmp_path)], env=os.environ | plain, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:].decode()


def test_every_text_file_names_its_encoding():
    """Without one it is the locale's, which is ASCII in many containers."""
    for path in Path(fmeta.tasks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
            image = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "Image"
            if name in ("open", "read_text", "write_text") and not binary and not image:
                assert "encoding" in {k.arg for k in node.keywords}, f"{path.name}: line {node.lineno}"
