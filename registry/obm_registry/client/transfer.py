"""Move blobs in parallel: a few threads, one account of the bytes, and the first failure stops all.

Never knows what the blobs are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from obm_format.errors import ObmError, RegistryError
from obm_format.progress import Progress
from obm_registry.client.store import ReadFrom, Store
from obm_registry.manifest.oci import Descriptor, digest_of

THREADS = 4


class Meter:
    """Counts the bytes of one phase from several threads, and tells a `Progress`.

    Args:
        progress: told of every step; when it raises, the work stops.
        phase: name of the phase.
        total: bytes of the phase in all.
    """

    def __init__(self, progress: Progress, phase: str, total: int) -> None:
        self._progress = progress
        self._phase = phase
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def add(self, nbytes: int) -> None:
        """Count bytes.

        Raises:
            ObmError: `interrupted`, the work was stopped elsewhere.
        """
        if self.stopped.is_set():
            raise ObmError("interrupted", "the transfer was stopped")
        with self._lock:
            self._done = min(self._total, self._done + nbytes)
            self._progress(self._phase, self._done, self._total)

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, each counted as it passes."""
        for chunk in chunks:
            self.add(len(chunk))
            yield chunk


def run_all(jobs: Sequence[Callable[[], int]], meter: Meter) -> int:
    """Run jobs in threads and add up what they give.

    Args:
        jobs: each gives a number of bytes.
        meter: stopped when one fails, so that the others do not go on.

    Raises:
        BaseException: the first failure, after every other job has ended.
    """
    with ThreadPoolExecutor(max(1, min(THREADS, len(jobs)))) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
        except BaseException:
            meter.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if failed:
            meter.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise _cause(failed + [e for f in futures if not f.cancelled() and (e := f.exception()) is not None])
    return sum(future.result() for future in futures)


def _cause(errors: list[BaseException]) -> BaseException:
    """The error that stopped the others, rather than one of those that were stopped."""
    for error in errors:
        if not (isinstance(error, ObmError) and error.reason == "interrupted"):
            return error
    return errors[0]


def push_blobs(store: Store, repository: str, blobs: Sequence[tuple[Descriptor, ReadFrom]], progress: Progress) -> int:
    """Send the blobs that a repository lacks.

    Args:
        store: where to.
        repository: which.
        blobs: each with a function that gives its bytes; the same digest twice is sent once.
        progress: told how many bytes are there.

    Returns:
        The number of bytes that went out.
    """
    meter = Meter(progress, "push", sum(blob.size for blob, _ in blobs))

    def job(blob: Descriptor, read: ReadFrom) -> Callable[[], int]:
        def run() -> int:
            if store.has_blob(repository, blob.digest):
                meter.add(blob.size)
                return 0
            return store.put_blob(repository, blob, lambda start: meter.counted(read(start)))

        return run

    unique = {blob.digest: (blob, read) for blob, read in blobs}
    return run_all([job(blob, read) for blob, read in unique.values()], meter)


def read_whole(store: Store, repository: str, blob: Descriptor, max_nbytes: int) -> bytes:
    """A small blob, checked against its digest.

    Raises:
        RegistryError: `limit_exceeded`, `blob_damaged`, and what the store raises.
    """
    if blob.size > max_nbytes:
        raise RegistryError(
            "limit_exceeded", "the blob is too large", where=blob.digest, expected=max_nbytes, got=blob.size
        )
    body = b"".join(store.read_blob(repository, blob))
    own = digest_of(body, blob.digest.partition(":")[0])
    if own != blob.digest:
        raise RegistryError("blob_damaged", "the blob has other bytes", where=repository, expected=blob.digest, got=own)
    return body
