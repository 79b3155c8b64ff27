"""The command line: words in, tables and pages out. It knows no domain and no learner by name.

What a command does is a call of `fmeta.runs`; here its words are understood, without torch, and what came out is shown.

    >>> from fmeta.cli import main
    >>> main(["train", "sinusoid", "--context", "9"])  # says on stderr who takes it
    2
"""

from fmeta.cli._app import main

__all__ = ["main"]
