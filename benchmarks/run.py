"""Benchmarks: each case against a plain copy of the same bytes, timed around every repeat, after a check of its bits.

    python benchmarks/run.py CASE... [--threads N] [--repeats N] [--json]

A ratio is the median, over repeats, of the copy's time over the case's own time for the same number of bytes; 1 is
as fast as copying. Nothing is timed before its result was found equal to the reference kernels'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import CASES, Case

NOISE = 0.20  # a copy whose own time varies by more says that the machine is busy


@dataclass(frozen=True)
class Row:
    """One case's figures, as the JSON names them."""

    case: str
    dtype: str
    kernel: str
    threads: int
    output: str
    bytes: int
    seconds: list[float]
    memcpy_seconds: list[float]
    ratio: float
    exact: bool
    noisy: bool


def main() -> int:
    """Run the cases named on the command line; exit status 1 if a result is not exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="+", choices=sorted(CASES), metavar="CASE", help=", ".join(sorted(CASES)))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(name, arguments.threads, arguments.repeats) for name in arguments.cases]
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
    else:
        for row in rows:
            noisy = "  (busy machine)" if row.noisy else ""
            median = statistics.median(row.seconds)
            print(f"{row.case:24} {row.bytes / 1e6:9.0f} MB {median * 1e3:9.1f} ms  ratio {row.ratio:.2f}{noisy}")
    return 0 if all(row.exact for row in rows) else 1


def measure(name: str, threads: int, repeats: int) -> Row:
    """Check one case, then time it `repeats` times between copies of as many bytes."""
    case: Case = CASES[name](threads)
    exact = case.check()
    copy = Copy(case.nbytes, threads)
    copy(), case.run(0)  # first calls compile and fault memory in
    own, copies = [], []
    for repeat in range(repeats):
        before = timed(copy)
        own.append(timed(lambda repeat=repeat: case.run(repeat)))
        copies.append((before + timed(copy)) / 2)
    ratios = [theirs / ours for theirs, ours in zip(copies, own, strict=True)]
    spread = (max(copies) - min(copies)) / statistics.median(copies)
    return Row(
        case=name,
        dtype=case.dtype,
        kernel=case.kernel,
        threads=threads,
        output="warm",
        bytes=case.nbytes,
        seconds=own,
        memcpy_seconds=copies,
        ratio=statistics.median(ratios),
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


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
