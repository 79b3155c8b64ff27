"""What comes in and does not fit: the error that every part of fmeta raises for it. Needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What came in does not fit. The message names the call, what came, what was expected, and the cure."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that lists the known words, the closest first: for errors about unknown names."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)
