"""Hash every byte of many parts: two threads, large sequential reads, no part held whole.

Source: obm-1 clauses 2.3, 7.2, 14.2. Knows parts and digests only, nothing of manifests.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from obm_format.container.sources import Source
from obm_format.errors import FormatError
from obm_format.model import Part
from obm_format.progress import Progress

THREADS: Final = 2
_READ_NBYTES: Final = 2 << 20
_RUN_NBYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One thing that is wrong with a file.

    Args:
        reason: a reason code.
        where: the part or tensor concerned.
        detail: one line for people.
    """

    reason: str
    where: str
    detail: str

    @classmethod
    def of(cls, error: FormatError, where: str) -> Defect:
        """The defect that an error reports; `where` serves errors that name no place."""
        return cls(reason=error.reason, where=error.where or where, detail=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One part and the digest that its bytes must have."""

    part: Part
    sha256: bytes


class _Meter:
    """Adds up the bytes that several threads have done, and tells the caller."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self._progress("verify", self._done, self._total)


def verify_parts(source: Source, checks: Sequence[Check], *, collect: bool, progress: Progress) -> list[Defect]:
    """Hash the parts of `checks` and look at their padding.

    Args:
        source: the file.
        checks: parts in file order, without holes between them.
        collect: find all defects; otherwise stop after the first neighbours that have any.
        progress: told the bytes done, from the threads that hash; may raise to stop.

    Returns:
        defects in file order.

    Raises:
        ObmError: the source cannot be read (reasons `io`, `network`).
    """
    meter = _Meter(progress, sum(check.part.padded_nbytes for check in checks))
    runs, pages = list(_runs(checks)), _Pages()
    if len(runs) == 1:
        return _verify_run(source, runs[0], meter, pages)
    defects: list[Defect] = []
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="obm-verify")
    try:
        # A part is hashed by one thread: the longest first, or the others wait for it at the end.
        longest = sorted(range(len(runs)), key=lambda place: _nbytes(runs[place]), reverse=True)
        jobs = {place: pool.submit(_verify_run, source, runs[place], meter, pages) for place in longest}
        for place in range(len(runs)):
            defects += jobs[place].result()
            if defects and not collect:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    return defects


def _nbytes(run: Sequence[Check]) -> int:
    return sum(check.part.padded_nbytes for check in run)


def _runs(checks: Iterable[Check]) -> Iterator[list[Check]]:
    """Cut the parts into runs of neighbours, one job each: a job per part would be too many."""
    run: list[Check] = []
    nbytes = 0
    for check in checks:
        if run and nbytes + check.part.padded_nbytes > _RUN_NBYTES:
            yield run
            run, nbytes = [], 0
        run.append(check)
        nbytes += check.part.padded_nbytes
    if run:
        yield run


def _verify_run(source: Source, run: Sequence[Check], meter: _Meter, pages: _Pages) -> list[Defect]:
    """Hash neighbouring parts with reads that do not care where one part ends."""
    defects: list[Defect] = []
    blocks = _Blocks(source, run, meter, pages)
    for check in run:
        hasher = hashlib.sha256()
        try:
            for data in blocks.take(check.part.nbytes):
                hasher.update(data)
            pad_is_zero = not any(map(any, blocks.take(check.part.padded_nbytes - check.part.nbytes)))
        except FormatError as error:
            return [*defects, Defect.of(error, check.part.name)]
        defects += _judge(check, hasher.digest(), pad_is_zero=pad_is_zero)
    return defects


class _Pages(threading.local):
    """A buffer for each thread, which begins with a page and is kept from run to run.

    Allocated memory often begins 16 bytes behind a page, and there some processors read a file at a sixth of the speed.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(mmap.mmap(-1, _READ_NBYTES))


class _Blocks:
    """The bytes of neighbouring parts: where they lie in memory, or read in large pieces into one buffer."""

    def __init__(self, source: Source, run: Sequence[Check], meter: _Meter, pages: _Pages) -> None:
        self._source = source
        self._meter = meter
        self._pages = pages
        self._at = run[0].part.offset
        self._stop = run[-1].part.offset + run[-1].part.padded_nbytes
        self._block = memoryview(b"")

    def take(self, nbytes: int) -> Iterator[memoryview]:
        """The next bytes, in pieces that are good until the next one is asked for.

        Raises:
            FormatError: the file ends before (`truncated`).
        """
        while nbytes:
            if not self._block:
                self._block = self._next(min(_READ_NBYTES, self._stop - self._at))
                self._at += len(self._block)
                self._meter.add(len(self._block))
            piece, self._block = self._block[:nbytes], self._block[nbytes:]
            nbytes -= len(piece)
            yield piece

    def _next(self, nbytes: int) -> memoryview:
        view = self._source.view(self._at, nbytes)
        if view is None:
            view = self._pages.buffer[:nbytes]
            self._source.read_into(self._at, view)
        return view


def _judge(check: Check, digest: bytes, *, pad_is_zero: bool) -> Iterator[Defect]:
    try:
        # obm-1 clause 14.1: digests before padding
        check_digest(check, digest)
        check_padding(check.part.name, pad_is_zero=pad_is_zero)
    except FormatError as error:
        yield Defect.of(error, check.part.name)


def check_digest(check: Check, digest: bytes) -> None:
    """Refuse a part that hashes to another digest than the header fixes (obm-1 clause 7.2).

    Raises:
        FormatError: reason `part_digest`.
    """
    if digest != check.sha256:
        raise FormatError(
            "part_digest",
            "the part does not hash to its digest",
            where=check.part.name,
            expected=check.sha256.hex(),
            got=digest.hex(),
            hint="fetch or copy the file again",
        )


def check_padding(name: str, *, pad_is_zero: bool) -> None:
    """Refuse a part whose padding is not zero (obm-1 clause 2.3).

    Raises:
        FormatError: reason `pad_not_zero`.
    """
    if not pad_is_zero:
        raise FormatError("pad_not_zero", "a padding byte is not zero", where=name)
