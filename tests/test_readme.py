"""What README shows is true."""

import re
from pathlib import Path

import fmeta
from fmeta.testing import strategies

GRADIENTS = [
    "unrolled()", "adjoint()", "truncated(last)", "first_order()", "implicit(solve)", "difference()",
    "evolution(sigma, pairs)",
]  # fmt: skip
TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_library_example_runs_as_printed(capsys):
    """With fewer meta-steps and eager, the words unchanged otherwise."""
    code = BLOCKS[0].replace("range(1000)", "range(3)").replace("fmeta.compile(trainer.step)", "trainer.step")
    assert code != BLOCKS[0]
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
    exec(code, {})
    assert capsys.readouterr().out.startswith("[")


def test_maml_as_printed_is_maml():
    from helpers import LEARNERS, distance, regressor, vectors

    scope = {"fmeta": fmeta}
    exec(next(b for b in BLOCKS if b.startswith("def maml")), scope)
    mine = scope["maml"](regressor(), fmeta.mse, optimizer=fmeta.sgd(0.1), steps=3)
    theirs = LEARNERS["maml"].learner
    key = fmeta.key(0)
    meta, tasks = theirs.init(key), vectors(key)
    assert distance(fmeta.meta_grad(mine)(meta, tasks), fmeta.meta_grad(theirs)(meta, tasks)) < 1e-12


def test_every_learner_and_meta_gradient_has_a_row():
    for name in strategies.KINDS:
        assert f"| `{name}` |" in TEXT or name == "maml-masked"
    for name in GRADIENTS:
        assert f"| `{name}` |" in TEXT
