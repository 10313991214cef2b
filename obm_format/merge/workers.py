"""Work on many items in a few threads that stop together: at the first failure, or when the caller is interrupted.

Knows nothing of merging. Results never depend on the number of threads, only the order in which work is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Stopped(Exception):
    """Another thread failed, or nobody waits for the result any more."""


class Stop:
    """A wish to stop that threads look for now and then."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Make the wish."""
        self._event.set()

    def check(self) -> None:
        """Give up if somebody wishes so.

        Raises:
            Stopped: somebody does.
        """
        if self._event.is_set():
            raise Stopped


def run_all(items: Sequence[_Item], work: Callable[[_Item], None], threads: int, stop: Stop) -> None:
    """Call `work` for every item, begun in order; `stop` is set when one fails.

    Raises:
        BaseException: what the first of the failed items in order raised, once no thread works any more.
    """
    if threads == 1 or len(items) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="obm-merge") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            _settle(futures, stop)
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, Stopped):
            raise error


def in_order(
    items: Sequence[_Item], work: Callable[[_Item], _Result], threads: int, stop: Stop
) -> Generator[tuple[_Item, _Result]]:
    """Each item with its result, in order, while up to `threads` items behind it are worked on.

    Raises:
        BaseException: what `work` raised for the next item.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="obm-merge") as pool:
        coming: list[Future[_Result]] = []
        try:
            for place, item in enumerate(items):
                while len(coming) < threads and place + len(coming) < len(items):
                    coming.append(pool.submit(work, items[place + len(coming)]))
                yield item, coming.pop(0).result()
        finally:
            _settle(coming, stop)


def _settle(futures: Sequence[Future[_Result]], stop: Stop) -> None:
    """Let nothing begin any more, and let what has begun stop unless all of it is well."""
    if all(future.done() and not future.cancelled() and future.exception() is None for future in futures):
        return
    stop.set()
    for future in futures:
        future.cancel()
