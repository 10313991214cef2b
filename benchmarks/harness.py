"""How a case is timed: after a check of its bits, between two runs of its limit, in one process, on as many threads.

The limit is a plain copy of the same bytes, or what the case names instead; ratio = limit / own, 1 is as fast as the
limit. A run is marked as noisy where the copies differ by more than 20 % among themselves.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NOISE = 0.20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Args:
        dtype: of the elements.
        kernel: who computes.
        nbytes: every input read once and every output written once.
        check: whether the result is right, bit for bit.
        run: do it once; the number counts the repeats, so that buffers can rotate.
        limit: what it is held against; None for a copy of `nbytes`.
        limit_name: what that is.
        output: `warm` memory, `fresh` memory, or `file`.
    """

    dtype: str
    kernel: str
    nbytes: int
    check: Callable[[], bool]
    run: Callable[[int], object]
    limit: Callable[[], object] | None = None
    limit_name: str = "memcpy"
    output: str = "warm"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case's figures, as the JSON names them."""

    case: str
    dtype: str
    kernel: str
    threads: int
    output: str
    bytes: int
    seconds: list[float]
    first_seconds: float
    memcpy_seconds: list[float]
    limit: str
    limit_seconds: list[float]
    ratio: float
    spread: float
    load: float
    exact: bool
    noisy: bool

    def line(self) -> str:
        """What people read."""
        own, limit = (statistics.median(seconds) * 1e3 for seconds in (self.seconds, self.limit_seconds))
        noisy = f"  busy machine: copies differ by {self.spread:.0%}" if self.noisy else ""
        return (
            f"{self.case:22} {self.bytes / 1e6:7.0f} MB {own:8.1f} ms  {self.limit} {limit:8.1f} ms"
            f"  ratio {self.ratio:.2f}  load {self.load:.1f}{noisy}"
        )


def measure(name: str, case: Case, threads: int, repeats: int) -> Row:
    """Check a case, then time it `repeats` times between its limit."""
    exact = case.check()
    copy = Copy(case.nbytes, threads)
    limit = case.limit or copy
    first = timed(lambda: case.run(0))
    copy(), limit()
    own, limits, copies = [], [], []
    for repeat in range(repeats):
        copies.append(timed(copy))
        before = timed(limit)
        own.append(timed(lambda repeat=repeat: case.run(repeat)))
        limits.append((before + timed(limit)) / 2)
    spread = (max(copies) - min(copies)) / statistics.median(copies)
    return Row(
        case=name,
        dtype=case.dtype,
        kernel=case.kernel,
        threads=threads,
        output=case.output,
        bytes=case.nbytes,
        seconds=own,
        first_seconds=first,
        memcpy_seconds=copies,
        limit=case.limit_name,
        limit_seconds=limits,
        ratio=statistics.median(theirs / ours for theirs, ours in zip(limits, own, strict=True)),
        spread=spread,
        load=os.getloadavg()[0],
        exact=exact,
        noisy=spread > NOISE,
    )


class Copy:
    """A plain copy that moves `nbytes` in all, read and written, on `threads` threads."""

    def __init__(self, nbytes: int, threads: int) -> None:
        self._source = np.ones(nbytes // 2, np.uint8)
        self._target = np.zeros(nbytes // 2, np.uint8)
        self._bounds = np.linspace(0, nbytes // 2, threads + 1).astype(int)
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """Copy once."""
        list(self._pool.map(self._part, range(len(self._bounds) - 1)))

    def _part(self, i: int) -> None:
        part = slice(self._bounds[i], self._bounds[i + 1])
        np.copyto(self._target[part], self._source[part])


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_bytecode() -> dict[str, str]:
    """The environment for commands that start as installed ones do: modules are compiled once, and kept."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": os.getloadavg(),
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
