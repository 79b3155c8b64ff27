"""The command line: words in, tables and pages out. It knows no domain and no learner by name."""

from fmeta.cli._app import main

__all__ = ["main"]
