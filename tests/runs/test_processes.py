"""The processes that torchrun started, and how they end."""

import signal

import pytest

from fmeta.runs._processes import ended_by_sigterm


def test_sigterm_ends_in_order_even_where_it_comes_twice_or_is_taken_for_another_error():
    before, done = signal.getsignal(signal.SIGTERM), []

    def saves():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("saved")

    def masks():
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise RuntimeError("INTERNAL ASSERT FAILED") from None

    for work in (saves, masks):
        try:
            with pytest.raises(SystemExit) as caught, ended_by_sigterm():
                work()
            assert caught.value.code == 143
            signal.raise_signal(signal.SIGTERM)  # while Python ends, which takes a while with torch
        finally:
            signal.signal(signal.SIGTERM, before)
    assert done == ["saved"]
    with pytest.raises(RuntimeError, match="of its own"), ended_by_sigterm():
        raise RuntimeError("of its own")
    assert signal.getsignal(signal.SIGTERM) is before
