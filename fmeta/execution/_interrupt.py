"""Ctrl-C in the middle of torch.func."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator

from fmeta.core._torch import LEVEL_EDGES, level_depth, pop_levels


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets a KeyboardInterrupt or SystemExit of a signal's handler out as what it is, and leaves torch.func usable.

    A signal between the push of a level of torch.func and the `with` that pops it leaves the level there. The levels
    around it then find it in place of their own, and each raises an error that says so; and no tensor could be read
    any more. Here the levels are taken off, and what the signal raised comes out, from that error.
    """
    depth, handled = level_depth(), sys.exception()
    try:
        yield
    except BaseException as error:
        asked, meant = None, False  # meant: somebody raised another error `from` it
        for before in _chain(error, handled):
            _close_struck(before)
            if isinstance(before, KeyboardInterrupt | SystemExit) and not meant:
                asked = asked or before
            meant = meant or before.__suppress_context__
        pop_levels(depth)
        if asked is None or asked is error:
            raise
        raise asked from error


def _chain(error: BaseException | None, handled: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came after, but for one that was being handled on entry."""
    while error is not None and error is not handled:
        yield error
        error = error.__context__


def _close_struck(error: BaseException) -> None:
    """Closes the generators of `with` statements that were struck just before or after their body: the last reference
    to them is in the traceback, and they would pop a level of somebody else's whenever that is dropped."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in LEVEL_EDGES:
            with contextlib.suppress(Exception):  # a level that is gone
                frame.f_locals["self"].gen.close()
