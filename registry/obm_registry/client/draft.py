"""An expert's file while its segments come in: several at once, in any order, and again after a kill.

Beside the draft lies a file of marks: how many bytes of each segment are written. A mark is moved after the bytes
that it counts, so that a killed process leaves at most bytes that are not counted. Nothing is believed: a segment
counts when it hashes to its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from obm_format.errors import RegistryError
from obm_format.progress import Progress
from obm_registry.client.http import Patience
from obm_registry.client.transfer import Meter, run_all
from obm_registry.durable import disk_errors, sync_folder
from obm_registry.manifest.oci import Descriptor

Fetch = Callable[[Descriptor, int], Iterator[bytes]]
"""Gives the bytes of a blob from an offset on, in chunks."""

_MARK = struct.Struct("<Q")
_READ_NBYTES = 1 << 20


class Draft:
    """A draft; the caller holds the lock of its artifact.

    Args:
        path: the draft's file; one that is there is gone on with.
        marks: the file of marks; without it the draft is hashed to see what it has.
        segments: the blobs, which laid end to end are the file.
    """

    def __init__(self, path: Path, marks: Path, segments: Sequence[Descriptor]) -> None:
        self.path = path
        self._marks_path = marks
        self._segments = segments
        self._offsets = list(itertools.accumulate((s.size for s in segments), initial=0))

    def __enter__(self) -> Self:
        with disk_errors(str(self.path)):
            known = self._marks_path.exists() and self._marks_path.stat().st_size == len(self._segments) * _MARK.size
            had = self.path.stat().st_size if self.path.exists() else 0
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            os.ftruncate(self._file, self._offsets[-1])
            with self._marks_path.open("r+b" if known else "w+b") as file:
                if not known:
                    # written, not only made so long: a mark for which the disk has no place would end the process
                    file.write(bytes(len(self._segments) * _MARK.size))
                    file.flush()
                self._marks = mmap.mmap(file.fileno(), len(self._segments) * _MARK.size)
        if not known:
            for i, segment in enumerate(self._segments):
                self._mark(i, max(0, min(segment.size, had - self._offsets[i])))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._marks.close()
        os.close(self._file)

    def fill(self, fetch: Fetch, progress: Progress, patience: Patience) -> int:
        """Fetch what is missing, a few segments at once.

        Returns:
            The number of bytes that came.

        Raises:
            RegistryError: `blob_damaged`, `network`; what arrived stays in the draft.
        """
        meter = Meter(progress, "pull", self._offsets[-1])

        def job(i: int) -> Callable[[], int]:
            return lambda: self._fill_segment(i, fetch, meter, patience)

        with disk_errors(str(self.path)):
            return run_all([job(i) for i in range(len(self._segments))], meter)

    def _fill_segment(self, i: int, fetch: Fetch, meter: Meter, patience: Patience) -> int:
        segment, received, failures = self._segments[i], 0, 0
        algorithm, _, expected = segment.digest.partition(":")
        total, done = hashlib.new(algorithm), 0
        for chunk in self._written(i):
            total.update(chunk)
            done += len(chunk)
        meter.add(done)
        while True:
            try:
                if done < segment.size:
                    for chunk in fetch(segment, done):
                        self._write(chunk, self._offsets[i] + done)
                        done += len(chunk)
                        self._mark(i, done)
                        total.update(chunk)
                        received += len(chunk)
                        meter.add(len(chunk))
                if total.hexdigest() == expected:
                    return received
                error = _damaged(segment, f"{algorithm}:{total.hexdigest()}")
                total, done = hashlib.new(algorithm), 0
                self._mark(i, 0)
            except RegistryError as failure:
                if failure.reason != "network":
                    raise
                error = failure
            failures += 1
            if failures >= patience.attempts:
                raise error
            patience.wait(failures - 1)

    def _write(self, chunk: bytes, offset: int) -> None:
        """Write all of it: a disk that is nearly full takes a part and says nothing."""
        left = memoryview(chunk)
        while left:
            taken = os.pwrite(self._file, left, offset)
            left, offset = left[taken:], offset + taken

    def _written(self, i: int) -> Iterator[bytes]:
        """The bytes of a segment that the draft has."""
        (mark,) = _MARK.unpack_from(self._marks, i * _MARK.size)
        offset, stop = self._offsets[i], self._offsets[i] + min(mark, self._segments[i].size)
        while offset < stop:
            chunk = os.pread(self._file, min(_READ_NBYTES, stop - offset), offset)
            yield chunk
            offset += len(chunk)

    def _mark(self, i: int, nbytes: int) -> None:
        _MARK.pack_into(self._marks, i * _MARK.size, nbytes)

    def finish(self, target: Path) -> None:
        """Make the draft `target`; every segment was filled."""
        with disk_errors(str(target)):
            self.path.replace(target)
            self._marks_path.unlink(missing_ok=True)
            sync_folder(target.parent)

    def discard(self) -> None:
        """Remove the draft: its segments are right, and still no expert."""
        with contextlib.suppress(OSError):
            self.path.unlink()
            self._marks_path.unlink()


def _damaged(segment: Descriptor, got: str) -> RegistryError:
    return RegistryError(
        "blob_damaged",
        "a segment does not hash to its digest",
        where=segment.digest,
        got=f"{got[:24]}...",
        hint="pull again; if it stays so, the registry needs a check",
    )
