"""Where the bytes of a file come from: a path, a memory map, a buffer, or a range fetcher.

A source gives exactly the bytes asked for or raises; it never interprets them. Reads are checked against the
size before anything is allocated, and may come from several threads at once.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, runtime_checkable

from obm_format.errors import FormatError, ObmError

if TYPE_CHECKING:
    from types import TracebackType


@runtime_checkable
class Source(Protocol):
    """Random access to the bytes of one file.

    Args:
        name: what messages call it.
        nbytes: size of the file in bytes, fixed when the source was opened.
    """

    name: str
    nbytes: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset`.

        Raises:
            FormatError: the file has fewer bytes (reason `truncated`).
            ObmError: the bytes cannot be had (reasons `io`, `network`).
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes from `offset`; raises as `read`."""
        ...

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """The bytes where they lie, if that is in memory: not a copy, so they may change; raises as `read`."""
        ...

    def close(self) -> None:
        """Give back what the source holds; may be called twice."""
        ...


AnySource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Source
"""What `open_source` takes: a path, the bytes themselves, or a source."""


class _Base:
    """What all sources share: name, size, the bounds check, and `with`."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.name = name
        self.nbytes = nbytes

    def check_range(self, offset: int, nbytes: int) -> None:
        """Refuse a read that leaves the file, before memory is taken for it."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise self.truncated(offset, nbytes, max(0, self.nbytes - offset))

    def truncated(self, offset: int, wanted: int, got: int) -> FormatError:
        """The error for a read that came back short."""
        return FormatError(
            "truncated",
            f"the file ends before byte {offset + wanted}",
            where=self.name,
            expected=f"{wanted} bytes at offset {offset}",
            got=f"{got} bytes",
            hint="fetch or copy the file again",
        )

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Source.read`."""
        raise NotImplementedError

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Source.read_into`."""
        buffer[:] = self.read(offset, buffer.nbytes)

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """See `Source.view`."""
        del offset, nbytes
        return None

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_regular(path: Path) -> tuple[int, int]:
    """File descriptor and size of a regular file; the open never waits, not even for a FIFO."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise ObmError("not_found", "there is no such file", where=str(path)) from error
    except OSError as error:
        raise ObmError("io", f"cannot open: {error.strerror}", where=str(path)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ObmError("io", "not a regular file", where=str(path), hint="name a plain file")
    return descriptor, status.st_size


class PathSource(_Base):
    """A regular file, read with `pread`: safe on files that shrink and on network file systems.

    Args:
        path: the file.

    Raises:
        ObmError: no such file (`not_found`); not a regular file or not readable (`io`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor, nbytes = _open_regular(Path(path))
        super().__init__(os.fspath(path), nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Source.read`."""
        self.check_range(offset, nbytes)
        try:
            data = os.pread(self._descriptor, nbytes, offset)
            # The system may give less than asked for (Linux: 2 GiB at most): go on until it gives nothing.
            if 0 < len(data) < nbytes:
                data = self._read_rest(bytearray(data), offset, nbytes)
        except OSError as error:
            raise ObmError("io", f"cannot read: {error.strerror}", where=self.name) from error
        if len(data) < nbytes:
            raise self.truncated(offset, nbytes, len(data))
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Source.read_into`; copies nothing on the way."""
        self.check_range(offset, buffer.nbytes)
        done = 0
        try:
            while done < buffer.nbytes:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
                if not count:
                    raise self.truncated(offset, buffer.nbytes, done)
                done += count
        except OSError as error:
            raise ObmError("io", f"cannot read: {error.strerror}", where=self.name) from error

    def _read_rest(self, data: bytearray, offset: int, nbytes: int) -> bytes:
        while len(data) < nbytes:
            more = os.pread(self._descriptor, nbytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return bytes(data)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MappedSource(_Base):
    """A regular file, read through a memory map: no system call per read.

    Reads still copy, so that bytes whose digest was checked cannot change afterwards. A file that another
    process cuts short while it is mapped kills this process (SIGBUS), where `PathSource` raises `truncated`.

    Args:
        path: the file.

    Raises:
        ObmError: no such file (`not_found`); not a regular file or not readable (`io`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        descriptor, nbytes = _open_regular(Path(path))
        try:
            # An empty file cannot be mapped, and nothing of it can be read.
            self._map = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ) if nbytes else None
        except OSError as error:
            raise ObmError("io", f"cannot map: {error.strerror}", where=os.fspath(path)) from error
        finally:
            os.close(descriptor)
        super().__init__(os.fspath(path), nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Source.read`."""
        self.check_range(offset, nbytes)
        return self._map[offset : offset + nbytes] if self._map is not None else b""

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """See `Source.view`."""
        self.check_range(offset, nbytes)
        return None if self._map is None else memoryview(self._map)[offset : offset + nbytes]

    def close(self) -> None:
        """Unmap the file, with the last view of it if there is one."""
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()


class BytesSource(_Base):
    """Bytes that are already in memory.

    Args:
        data: the whole file; not copied.
        name: what messages call it.
    """

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self._view = memoryview(data).cast("B")
        super().__init__(name, self._view.nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Source.read`."""
        self.check_range(offset, nbytes)
        return bytes(self._view[offset : offset + nbytes])

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """See `Source.view`."""
        self.check_range(offset, nbytes)
        return self._view[offset : offset + nbytes]


class RangeSource(_Base):
    """Bytes that a function fetches: an HTTP range request, an object store, blobs laid end to end.

    Args:
        nbytes: size of the whole file.
        fetch: gives the bytes of (offset, nbytes); called from several threads at once.
        name: what messages call it.
    """

    def __init__(self, nbytes: int, fetch: Callable[[int, int], bytes], name: str) -> None:
        super().__init__(name, nbytes)
        self._fetch = fetch

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Source.read`."""
        self.check_range(offset, nbytes)
        data = self._fetch(offset, nbytes)
        if len(data) < nbytes:
            raise self.truncated(offset, nbytes, len(data))
        if len(data) > nbytes:
            raise ObmError(
                "network",
                "the other side sent more bytes than were asked for",
                where=self.name,
                expected=nbytes,
                got=len(data),
            )
        return data


def open_source(source: AnySource, *, mapped: bool = False) -> Source:
    """The source for a path, for bytes, or the source itself.

    Args:
        source: a path, the bytes of a file, or a `Source`, which is returned as it is.
        mapped: map a path into memory instead of reading it.

    Raises:
        ObmError: no such file (`not_found`); not a regular file or not readable (`io`).
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesSource(source)
    if isinstance(source, str | os.PathLike):
        return MappedSource(source) if mapped else PathSource(source)
    return source
