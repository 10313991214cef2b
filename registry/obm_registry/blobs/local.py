"""Blobs as files in a folder: `<root>/<first two digits of the key>/<key>`.

Never overwrites a file: keys are new, and a file is made with O_EXCL.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from obm_format.errors import RegistryError
from obm_registry.blobs.base import CHUNK_NBYTES, ObjectWriter, StoredObject, damaged, is_key
from obm_registry.durable import disk_errors, sync_folder

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl


class LocalBlobs:
    """A `BlobStore` in a folder on a local disk.

    Args:
        root: the folder; made when it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with disk_errors(str(root)):
            root.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def create(self, key: str) -> Iterator[ObjectWriter]:
        """Take the bytes of a new object; see `BlobStore.create`."""
        path = self._path(key)
        with disk_errors(f"object {key}"):
            path.parent.mkdir(exist_ok=True)
            file = path.open("xb")
            try:
                with file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                sync_folder(path.parent)
                sync_folder(self._root)  # another process may have made the shelf and not yet come this far
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def resume(self, key: str, durable: Callable[[], int]) -> Iterator[ObjectWriter]:
        """Append to an object; see `BlobStore.resume`."""
        path = self._path(key)
        with disk_errors(f"object {key}"):
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file, _alone(file, key):
                nbytes = durable()
                if os.fstat(file.fileno()).st_size < nbytes:
                    raise damaged(key, "the object is shorter than what had arrived")
                file.truncate(nbytes)
                try:
                    yield file
                finally:
                    file.flush()
                    os.fsync(file.fileno())
                    sync_folder(path.parent)
                    sync_folder(self._root)

    def finish(self, key: str) -> None:
        """Nothing is left to do: it was durable before; see `BlobStore.finish`."""

    def link(self, key: str, seconds: int) -> None:
        """None: nobody else gives out local files; see `BlobStore.link`."""

    def close(self) -> None:
        """Nothing is held; see `BlobStore.close`."""

    def local_path(self, key: str) -> Path:
        """The file of an object; see `BlobStore.local_path`."""
        return self._path(key)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes of an object; see `BlobStore.read`."""
        with disk_errors(f"object {key}"):
            try:
                file = self._path(key).open("rb")
            except FileNotFoundError as error:
                raise damaged(key, "the object is missing") from error
            with file:
                yield from _chunks(file, key, start, stop)

    def nbytes(self, key: str) -> int | None:
        """Size of an object; see `BlobStore.nbytes`."""
        with disk_errors(f"object {key}"):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        """Remove an object; see `BlobStore.delete`."""
        with disk_errors(f"object {key}"):
            self._path(key).unlink(missing_ok=True)

    def objects(self) -> Iterator[StoredObject]:
        """Every object; see `BlobStore.objects`."""
        with disk_errors(str(self._root)):
            for path in sorted(self._root.glob("??/*")):
                if not is_key(path.name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # somebody may delete while we look
                    status = path.stat()
                    yield StoredObject(key=path.name, nbytes=status.st_size, written_at=status.st_mtime_ns // 1_000_000)

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise damaged(key, "malformed storage key")
        return self._root / key[:2] / key


@contextlib.contextmanager
def _alone(file: BinaryIO, key: str) -> Iterator[None]:
    """Hold the one lock on an open file, or refuse."""
    if fcntl is None:  # Windows: the catalog still lets only one of two writers record what it wrote
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RegistryError("busy", "somebody else is sending this upload", where=f"object {key}") from error
    yield  # closing the file gives the lock back


def _chunks(file: BinaryIO, key: str, start: int, stop: int | None) -> Iterator[bytes]:
    file.seek(start)
    left = None if stop is None else stop - start
    while left is None or left > 0:
        chunk = file.read(CHUNK_NBYTES if left is None else min(left, CHUNK_NBYTES))
        if not chunk:
            if left is None:
                return
            raise damaged(key, "the object is too short")
        if left is not None:
            left -= len(chunk)
        yield chunk
