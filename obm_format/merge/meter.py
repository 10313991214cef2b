"""What a merge took and did: seconds per phase, bytes, private memory, and what rounding swallowed.

Seconds are those of the threads that worked: phases that overlap add up to more than the clock on the wall.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PHASES = ("survey", "read", "decode", "merge", "write", "measure")
_STATUS = Path("/proc/self/status")


class Meter:
    """The figures of one pass; may be fed from several threads."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.bytes_read = 0
        self.moved = 0
        self.comparable = 0
        self.peak_private_bytes = 0
        self._absorbed: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to a phase, and look at the memory at its end."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            private = private_bytes()
            with self._lock:
                self.seconds[name] += spent
                self.peak_private_bytes = max(self.peak_private_bytes, private)

    def count_moved(self, moved: int, elements: int) -> None:
        """Note how many of `elements` elements with a counterpart in the backbone have other bits than it."""
        self.moved += moved
        self.comparable += elements

    def count_absorbed(self, expert: str, swallowed: int, nonzero: int) -> None:
        """Note how many of an expert's `nonzero` values rounding to the output dtype swallows."""
        counts = self._absorbed.setdefault(expert, [0, 0])
        counts[0] += swallowed
        counts[1] += nonzero

    @property
    def moved_fraction(self) -> float:
        """Share of the elements with a counterpart in the backbone whose bits are not its, 0 to 1."""
        return self.moved / self.comparable if self.comparable else 0.0

    def absorbed_fraction(self, expert: str) -> float:
        """Share of the expert's non-zero approximate values that rounding swallows, 0 to 1."""
        swallowed, nonzero = self._absorbed.get(expert, (0, 0))
        return swallowed / nonzero if nonzero else 0.0


def private_bytes() -> int:
    """Bytes of memory that are this process's own: mapped files do not count.

    Linux: `RssAnon` of /proc/self/status, now. Elsewhere the high-water mark of all resident memory, which is
        more.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"RssAnon:"):
                return int(line.split()[1]) * 1024
    import resource  # only POSIX has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
