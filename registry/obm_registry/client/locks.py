"""Locks between processes: a file that one holds at a time, given back by the system when its holder dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from obm_registry.durable import disk_errors


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, after whoever holds it now.

    Args:
        path: the lock file, made when it is not there; its folder exists.

    Raises:
        ObmError: `io` or `disk_full`.
    """
    lock = filelock.FileLock(path, is_singleton=False, thread_local=False)
    with disk_errors(str(path)):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of `path` if nobody does; says whether it is held."""
    lock = filelock.FileLock(path, is_singleton=False, thread_local=False)
    try:
        with disk_errors(str(path)):
            lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
