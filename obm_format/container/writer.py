"""Write a file: spool the parts as they come, then header, pools and parts in one go, in place at once.

A reader never sees half a file: the target changes by a rename. Source: obm-1 clauses 2, 7 and 8; the sizes
of parts are those of `layout`.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from obm_format.container.header import Header, encode_header, parse_header
from obm_format.container.names import check_attachment_name
from obm_format.digest import sha256
from obm_format.errors import FormatError, ObmError, UsageError
from obm_format.layout import PartData, PartLayout, alpha_nbytes, frame_count, part_layouts, sum_count
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.model import POOL_NAMES, SUM_NBYTES, Manifest, Pool, TensorRecord, padded

if TYPE_CHECKING:
    from types import TracebackType

_COPY_NBYTES: Final = 1 << 20
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class _Sums:
    """SHA-256 of each run of 1 MiB of a stream (obm-1 clause 8.3)."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._nbytes = 0
        self._sums: list[bytes] = []

    def update(self, data: memoryview) -> None:
        while data:
            piece, data = data[: SUM_NBYTES - self._nbytes], data[SUM_NBYTES - self._nbytes :]
            self._hasher.update(piece)
            self._nbytes += len(piece)
            if self._nbytes == SUM_NBYTES:
                self._cut()

    def _cut(self) -> None:
        self._sums.append(self._hasher.digest())
        self._hasher = hashlib.sha256()
        self._nbytes = 0

    def finish(self) -> bytes:
        if self._nbytes:
            self._cut()
        return b"".join(self._sums)


class ContainerWriter:
    """One file in the making. Leaving its `with` block without `commit` leaves nothing behind.

    Args:
        path: the target; its folder must exist. An existing file stays as it is until `commit`.
        limits: the limits that the file must keep.

    Raises:
        ObmError: the folder does not exist (`not_found`) or cannot be written (`io`, `disk_full`), or the target
            is a folder or a device (`io`).
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> None:
        self._path = Path(path)
        self._limits = limits
        self._records: list[TensorRecord] = []
        self._pools: dict[str, list[bytes]] = {name: [] for name in POOL_NAMES}
        self._attachments: dict[str, bytes] = {}
        if not self._path.parent.is_dir():
            raise ObmError("not_found", "the folder to write to does not exist", where=str(self._path.parent))
        refuse_special(self._path)
        with self._system_errors():
            # Without a name, so that it is gone with the process however that ends.
            self._spool: IO[bytes] | None = tempfile.TemporaryFile(dir=self._path.parent, buffering=0)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Give up what was added; nothing is left on disk. Does nothing after `commit`."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def add(
        self,
        record: TensorRecord,
        parts: Sequence[PartData],
        *,
        alphas: bytes,
        base_sha256: bytes | None,
        out_sha256: bytes | None,
    ) -> None:
        """Add a tensor, in the order of names.

        Args:
            record: what the manifest will say of it.
            parts: its parts in the order of clause 6; those of zero bytes may be left out.
            alphas: what goes into the alpha pool (clause 7.5); empty where the encoding has none.
            base_sha256: digest of the backbone tensor; None exactly in mode added.
            out_sha256: digest of the rebuilt tensor; None exactly where it is not exact.

        Raises:
            FormatError: parts, alphas or digests are not those that the record implies (reason `part_table`).
            ObmError: the disk is full or fails (`disk_full`, `io`).
        """
        layouts = part_layouts(record)
        parts = [part for part in parts if part.nbytes]
        _check_parts(record, parts, layouts, len(alphas))
        _check_digests(record, base_sha256, out_sha256)
        self._pools["digests"] += [digest for digest in (base_sha256, out_sha256) if digest is not None]
        self._pools["alphas"].append(alphas)
        for part, layout in zip(parts, layouts, strict=True):
            self._add_part(part, layout)
        self._records.append(record)

    def attach(self, name: str, data: bytes) -> None:
        """Add an attachment, in any order.

        Args:
            name: its name, clause 5.9.
            data: its bytes.

        Raises:
            FormatError: the name is outside its grammar (`bad_name`) or used (`duplicate_name`); too many or
                too large (`limit_exceeded`).
        """
        check_attachment_name(name, "attach")
        if name in self._attachments:
            raise FormatError("duplicate_name", "an attachment of this name was added", where=name)
        # obm-1 clause 3.1
        if len(data) > self._limits.attachment_nbytes or len(self._attachments) >= self._limits.attachments:
            raise FormatError(
                "limit_exceeded",
                "the attachment is too large, or one too many",
                where=name,
                expected=f"at most {self._limits.attachments} of {self._limits.attachment_nbytes} bytes",
                got=f"{len(data)} bytes",
            )
        self._attachments[name] = bytes(data)

    def commit(self, manifest: Manifest) -> Header:
        """Write the file and put it in place.

        Args:
            manifest: its `tensors` are the added records, its `attachments` the attached ones.

        Returns:
            the header as a reader parses it.

        Raises:
            FormatError: the manifest is not one that a reader accepts.
            ObmError: the disk is full or fails (`disk_full`, `io`).
            UsageError: the manifest names other records or attachments than were added.
        """
        self._check_manifest(manifest)
        for attachment in manifest.attachments:
            self._add_part(PartData("", [self._attachments[attachment.name]]), PartLayout("", attachment.nbytes))
        pools = {name: b"".join(self._pools[name]) for name in POOL_NAMES}
        facts = {name: Pool(nbytes=len(data), sha256=sha256(data)) for name, data in pools.items() if data}
        head = encode_header(manifest, facts, self._limits)
        # What a reader would refuse is never put in place.
        header = parse_header(head, file_nbytes=None, limits=self._limits)
        with self._system_errors():
            self._publish([head, *map(_pad, pools.values())], header.file_nbytes)
        self.abort()
        return header

    def _check_manifest(self, manifest: Manifest) -> None:
        attached = [(item.name, item.nbytes) for item in manifest.attachments]
        added = sorted((name, len(data)) for name, data in self._attachments.items())
        if self._spool is None or list(manifest.tensors) != self._records or attached != added:
            raise UsageError(
                "usage",
                "the manifest names other tensors or attachments than were added, or the writer is closed",
                where=str(self._path),
                expected=f"{len(self._records)} tensors and {len(added)} attachments, as added",
                got=f"{len(manifest.tensors)} tensors and {len(attached)} attachments",
            )

    # --- bytes ----------------------------------------------------------------------------------------------

    def _add_part(self, part: PartData, layout: PartLayout) -> None:
        """Spool one part; its digest, frames and sums go into the pools (obm-1 clauses 7.4, 8.2, 8.3)."""
        whole = hashlib.sha256()
        sums = _Sums() if sum_count(layout) else None
        for chunk in part.chunks:
            data = memoryview(chunk)
            if not data.nbytes:
                continue
            data = data.cast("B")
            whole.update(data)
            if sums:
                sums.update(data)
            if part.framed:
                self._pools["frames"] += [len(data).to_bytes(4, "little"), sha256(data)]
            self._write(data)
        self._write(memoryview(bytes(padded(layout.nbytes) - layout.nbytes)))
        self._pools["digests"].append(whole.digest())
        if sums:
            self._pools["sums"].append(sums.finish())

    def _write(self, data: memoryview) -> None:
        if self._spool is None:
            raise UsageError("usage", "the writer is closed", where=str(self._path))
        with self._system_errors():
            _write_all(self._spool.fileno(), data)

    def _publish(self, front: list[bytes], file_nbytes: int) -> None:
        """Header, pools and spool into a file beside the target; flushed, then renamed."""
        # 40 characters: at most 160 bytes of the 255 that a name may have
        temporary = self._path.with_name(f".{self._path.name[:40]}.{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:  # from before the file is there: an interrupt may come while it is made
            # The system applies the umask to this mode; `tempfile` would give 0600.
            target = os.open(temporary, flags, 0o666)
            try:
                for data in front:
                    _write_all(target, memoryview(data))
                if self._spool is not None:
                    _copy_all(self._spool.fileno(), target, file_nbytes - sum(map(len, front)))
                os.fsync(target)
            finally:
                os.close(target)
            temporary.replace(self._path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self._path.parent)

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        """Turn what the operating system says into reasons."""
        try:
            yield
        except OSError as error:
            reason = "disk_full" if error.errno in _NO_SPACE else "io"
            raise ObmError(reason, f"cannot write: {error.strerror}", where=str(self._path)) from error


def refuse_special(target: Path) -> None:
    """Refuse to put a file in the place of a folder, a device or a pipe, such as /dev/null.

    Raises:
        ObmError: `io`.
    """
    if target.exists() and not target.is_file():
        raise ObmError("io", "there is something that is no regular file", where=str(target), hint="name another file")


def _check_parts(record: TensorRecord, parts: Sequence[PartData], layouts: Sequence[PartLayout], alphas: int) -> None:
    """Refuse parts and alphas of other names, sizes or frames than the record implies (clauses 6.5, 7.5)."""
    expected = [(item.suffix, item.nbytes, item.raw_nbytes is not None) for item in layouts]
    got = [(part.suffix, part.nbytes, part.framed) for part in parts]
    frames_fit = all(
        item.raw_nbytes is None or frame_count(item.raw_nbytes) == len(part.chunks)
        for part, item in zip(parts, layouts, strict=False)
    )
    if got != expected or alphas != alpha_nbytes(record) or not frames_fit:
        raise FormatError(
            "part_table",
            "the parts are not those that the record implies",
            where=record.name,
            expected=f"{expected} and {alpha_nbytes(record)} bytes of alphas",
            got=f"{got} and {alphas} bytes of alphas",
        )


def _check_digests(record: TensorRecord, base: bytes | None, out: bytes | None) -> None:
    """Refuse digests where the record has none, and their lack where it has some (obm-1 clause 7.4)."""
    for what, digest, wanted in (
        ("backbone", base, record.base is not None),
        ("rebuilt", out, record.is_exact),
    ):
        if (digest is not None) != wanted or (digest is not None and len(digest) != 32):
            raise FormatError(
                "part_table",
                f"the digest of the {what} tensor is missing or too much",
                where=record.name,
                expected="32 bytes" if wanted else "none",
                got="none" if digest is None else f"{len(digest)} bytes",
            )


def _pad(data: bytes) -> bytes:
    return data + bytes(padded(len(data)) - len(data))


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _copy_all(source: int, target: int, nbytes: int) -> None:
    """Copy the first `nbytes` bytes of `source` to the end of `target`."""
    # Not by `copy_file_range`: for bytes that change their place in a page it copies too, page by page, and the
    # page cache then holds the file in so small pieces that every reader is slower.
    buffer = memoryview(mmap.mmap(-1, _COPY_NBYTES))
    done = 0
    while done < nbytes:
        count = os.preadv(source, [buffer[: nbytes - done]], done)
        if not count:
            raise OSError(errno.EIO, "the spool ended early")
        _write_all(target, buffer[:count])
        done += count


def _sync_folder(folder: Path) -> None:
    """Make the rename last; a system that cannot flush a folder has done what it can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
