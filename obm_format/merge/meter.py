"""What a merge took: seconds per phase, bytes, private memory; and the figures of what it did.

Seconds are those of the threads that worked: phases that overlap add up to more than the clock on the wall.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from obm_format.merge.figures import Figures

PHASES = ("survey", "read", "decode", "merge", "write", "measure")
_STATUS = Path("/proc/self/status")
_LOOK_SECONDS = 0.005  # a look at the memory costs some 20 microseconds


class Meter:
    """The figures of one pass; may be fed from several threads."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.bytes_read = 0
        self.idle_private_bytes = private_bytes()
        self.peak_private_bytes = self.idle_private_bytes
        self.figures: dict[str, Figures] = {}
        self._looked = 0.0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to a phase, and look at the memory at its end if nobody did so just now."""
        start = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            private = private_bytes() if now - self._looked > _LOOK_SECONDS else 0
            with self._lock:
                self.seconds[name] += now - start
                if private:
                    self._looked = now
                    self.peak_private_bytes = max(self.peak_private_bytes, private)

    def add_read(self, nbytes: int) -> None:
        """Note bytes of backbone and experts that went in."""
        with self._lock:
            self.bytes_read += nbytes

    def add_figures(self, name: str, figures: Figures) -> None:
        """Note what happened to the tensor called `name` in the output."""
        with self._lock:
            self.figures[name] = figures

    @property
    def total(self) -> Figures:
        """The figures of all tensors together."""
        total = Figures()
        for figures in self.figures.values():
            total.add(figures)
        return total


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
