"""Blobs as objects in a bucket: `<prefix><first two digits of the key>/<key>`; what is still coming is on a local disk.

An object in a bucket cannot be appended to, so bytes gather in a file until they are whole and hashed, and only then
go to the bucket. Never overwrites an object of another blob: keys are new. Source: ADR 0050.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from obm_format.errors import ObmError, RegistryError
from obm_registry.blobs.base import CHUNK_NBYTES, ObjectWriter, StoredObject, damaged, is_key
from obm_registry.blobs.local import LocalBlobs
from obm_registry.bucket import Bucket

_OWN = {"blob_damaged", "disk_full", "io"}  # of the local disk, and ours


class S3Blobs:
    """A `BlobStore` in a bucket.

    Args:
        bucket: the bucket.
        prefix: what its keys begin with, "" or text that ends in `/`.
        incoming: a folder on a local disk for bytes that are not whole yet.
    """

    def __init__(self, bucket: Bucket, prefix: str, incoming: Path) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._incoming = LocalBlobs(incoming)

    @contextlib.contextmanager
    def create(self, key: str) -> Iterator[ObjectWriter]:
        """Take the bytes of a new object; see `BlobStore.create`."""
        if self._nbytes_there(key) is not None:
            raise RegistryError("io", "the key was used before", where=f"object {key}")
        with self._incoming.create(key) as writer:
            yield writer
        try:
            self.finish(key)
        except BaseException:
            self.delete(key)
            raise

    @contextlib.contextmanager
    def resume(self, key: str, durable: Callable[[], int]) -> Iterator[ObjectWriter]:
        """Append to an object; see `BlobStore.resume`."""
        if self._incoming.nbytes(key) is None and self._nbytes_there(key) is not None:
            # it was finished, and then no row could be written: back to where bytes can be appended
            with self._incoming.create(key) as back:
                for chunk in self._from_bucket(key, 0, None):
                    back.write(chunk)
        with self._incoming.resume(key, durable) as writer:
            yield writer

    def finish(self, key: str) -> None:
        """Move what has come into the bucket; see `BlobStore.finish`."""
        nbytes = self._incoming.nbytes(key)
        if nbytes is None:
            return
        with _storage_errors(key):
            self._bucket.put_sized(self._key(key), self._incoming.read(key), nbytes)
        self._incoming.delete(key)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes of an object; see `BlobStore.read`."""
        if self._incoming.nbytes(key) is not None:
            yield from self._incoming.read(key, start, stop)
        elif stop is None or start < stop:
            yield from self._from_bucket(key, start, stop)

    def _from_bucket(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        left = None if stop is None else stop - start
        with _storage_errors(key):
            for chunk in self._bucket.read(self._key(key), start, stop):
                piece = chunk if left is None else chunk[:left]
                left = None if left is None else left - len(piece)
                yield from (piece[at : at + CHUNK_NBYTES] for at in range(0, len(piece), CHUNK_NBYTES))
                if left == 0:
                    return
        if left:
            raise damaged(key, "the object is too short")

    def local_path(self, key: str) -> None:
        """None: objects are elsewhere; see `BlobStore.local_path`."""

    def link(self, key: str, seconds: int) -> str | None:
        """Where the bucket itself gives the object out; see `BlobStore.link`."""
        with _storage_errors(key):
            return self._bucket.link(self._key(key), seconds)

    def nbytes(self, key: str) -> int | None:
        """Size of an object; see `BlobStore.nbytes`."""
        here = self._incoming.nbytes(key)
        return self._nbytes_there(key) if here is None else here

    def _nbytes_there(self, key: str) -> int | None:
        with _storage_errors(key):
            return self._bucket.nbytes(self._key(key))

    def delete(self, key: str) -> None:
        """Remove an object; see `BlobStore.delete`."""
        self._incoming.delete(key)
        with _storage_errors(key):
            self._bucket.remove(self._key(key))

    def objects(self) -> Iterator[StoredObject]:
        """Every object; see `BlobStore.objects`."""
        coming = {found.key: found for found in self._incoming.objects()}
        yield from coming.values()
        with _storage_errors("list"):
            for found in self._bucket.objects(self._prefix):
                key = found.key.rpartition("/")[2]
                if is_key(key) and found.key == self._key(key) and key not in coming:
                    yield StoredObject(key=key, nbytes=found.nbytes, written_at=found.written_at)

    def close(self) -> None:
        """Close all connections; see `BlobStore.close`."""
        self._bucket.close()

    def _key(self, key: str) -> str:
        if not is_key(key):
            raise damaged(key, "malformed storage key")
        return f"{self._prefix}{key[:2]}/{key}"


@contextlib.contextmanager
def _storage_errors(key: str) -> Iterator[None]:
    """Turn what a bucket refuses into trouble of the store: its credentials are not those of who pushes or pulls.

    Raises:
        RegistryError: `blob_damaged` when there is no such object, `io` for everything else.
    """
    try:
        yield
    except ObmError as error:
        if error.reason == "blob_unknown":
            raise damaged(key, "the object is missing") from error
        if error.reason in _OWN:
            raise
        raise RegistryError("io", f"the bucket: {error}", where=f"object {key}") from error
