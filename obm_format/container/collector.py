"""Keeps Python's garbage collector from looking through objects that are being made and will all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_left_alone() -> Iterator[None]:
    """No look for garbage inside, by whichever thread, unless another thread that came first leaves before.

    Half a million objects of a long header would be looked through again and again while they grow, for a quarter of
    the time of parsing it, and none is garbage. Whoever finds the collector off leaves it off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
