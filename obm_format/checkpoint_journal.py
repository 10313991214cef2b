"""The journal of an unfinished checkpoint folder: which tensors are in it whole, and how to know that again.

A process that is killed leaves its partial folder behind; the next one for the same target continues there if what
it makes is the same, and trusts no tensor whose bytes do not have the sum that the journal names. Never reads or
writes weights. Source: ADR 0024.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt

from obm_format.errors import CheckpointError

JOURNAL = "journal"
PAGE_NBYTES = 4096
_VERSION = 1
_MOST_NBYTES = 256 << 20


class PageSums:
    """A digest of a stream of bytes for faults of machines: SHA-256 over the 64-bit sum of each 4 KiB page.

    It finds pages that were lost, torn, stale or swapped, at nearly the speed of memory; it is no defence against
    somebody who means harm.
    """

    def __init__(self) -> None:
        self._sums = hashlib.sha256()
        self._rest = b""

    def update(self, data: npt.NDArray[np.uint8]) -> None:
        """Take in the next bytes, flat."""
        if self._rest:
            missing = PAGE_NBYTES - len(self._rest)
            self._rest += data[:missing].tobytes()
            data = data[missing:]
            if len(self._rest) < PAGE_NBYTES:
                return
            self._add(np.frombuffer(self._rest, np.uint8))
        whole = data.size // PAGE_NBYTES * PAGE_NBYTES
        self._add(data[:whole])
        self._rest = data[whole:].tobytes()

    def hexdigest(self) -> str:
        """64 hexadecimal digits; may be asked for at any time."""
        total = self._sums.copy()
        total.update(self._rest)
        return total.hexdigest()

    def _add(self, pages: npt.NDArray[np.uint8]) -> None:
        words = pages.view("<u8").reshape(-1, PAGE_NBYTES // 8)
        self._sums.update(words.sum(axis=1, dtype=np.uint64).tobytes())


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished tensor: the sum of its bytes, and what whoever wrote it wants to know again."""

    sums: str
    note: Mapping[str, object]


class Journal:
    """The open journal of a partial folder, which belongs to this process until it is closed.

    Args:
        folder: the partial folder; made if it is missing.
        binding: digest of all that decides the content. A journal of another one is started anew.

    Raises:
        CheckpointError: another process has the folder (`busy`).
        OSError: it cannot be made or read.
    """

    def __init__(self, folder: Path, binding: str) -> None:
        self._path = folder / JOURNAL
        self._head = _line({"version": _VERSION, "binding": binding})
        self._lock = hold_folder(folder)
        try:
            self.entries: Mapping[str, Entry] = MappingProxyType(_read(self._path, self._head))
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # as where the work is given up later
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restart(self) -> None:
        """Forget all entries: what is in the folder is not ours."""
        self.entries = MappingProxyType({})
        os.ftruncate(self._file, 0)
        os.write(self._file, self._head)

    def add(self, name: str, sums: str, note: Mapping[str, object]) -> None:
        """Note that a tensor is in the folder whole. May be called from several threads."""
        os.write(self._file, _line({"name": name, "sums": sums, "note": dict(note)}))

    def remove(self) -> None:
        """Take the journal out of the folder, which stays this process's own."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder back; may be called twice."""
        if self._lock >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._lock = -1


def hold_folder(folder: Path) -> int:
    """A descriptor of the folder at this path, made if it is missing, that no other process has as long as it is open.

    Raises:
        CheckpointError: another process has the folder (`busy`).
        OSError: it cannot be made or opened.
    """
    was_there = folder.exists()
    try:
        return _hold(folder)
    except (OSError, KeyboardInterrupt):
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which keeps it where another process has begun in it
        raise


def _hold(folder: Path) -> int:
    # another process may just have moved the folder away that was opened here
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise CheckpointError(
                "busy",
                "another process is writing this checkpoint",
                where=str(folder),
                hint="wait for it, or name another folder",
            ) from error
        os.close(descriptor)


def _read(path: Path, head: bytes) -> dict[str, Entry]:
    """The entries of a journal; none where it is missing, damaged, or another one's."""
    try:
        if path.stat().st_size > _MOST_NBYTES:
            return {}
        first, *lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    if first + b"\n" != head:
        return {}
    found = {}
    for line in lines[:-1]:  # what follows the last LF is torn
        entry = _parse(line)
        if entry is not None:
            found[entry[0]] = entry[1]
    return found


def _parse(line: bytes) -> tuple[str, Entry] | None:
    try:
        content = json.loads(line)
        name, sums, note = content["name"], content["sums"], content["note"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(name, str) and isinstance(sums, str) and isinstance(note, dict)):
        return None
    return name, Entry(sums, note)


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode() + b"\n"
