"""Write a checkpoint folder that transformers loads: all of it or nothing, in any order of tensors.

The specs are known before the first byte, so every tensor has its place at once; a partial folder beside the
target becomes the target in one rename, and its files have no names that a loader would look for until then.
Never holds a tensor, never overwrites a folder that holds something.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from obm_format.checkpoint import INDEX_SUFFIX, is_side_file
from obm_format.checkpoint_journal import JOURNAL, Entry, Journal, PageSums
from obm_format.checkpoint_plan import SHARD_NBYTES, STEM, PlannedFile, index_json, plan_files
from obm_format.errors import CheckpointError, UsageError, from_os_error
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import TensorSpec

PART_SUFFIX = ".part"
_READ_NBYTES = 4 << 20
_SYNC_FILE_RANGE_WRITE = 2
_WRITEBACK_NBYTES = 1 << 20  # smaller pieces are not worth a call


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: index of its file, and the offset of its first byte."""

    spec: TensorSpec
    shard: int
    offset: int


class CheckpointWriter:
    """A checkpoint folder in the making; nothing appears at the target before `commit`.

    Tensors may be written from several threads, each tensor by one.

    Args:
        target: the folder to make; it must not exist, or be empty.
        specs: every tensor that will be written.
        stem: what the names of the files begin with; another one where they are no dense checkpoint.
        shard_nbytes: most bytes of tensors in one file, but for single tensors above it.
        metadata: `__metadata__` of each file; transformers wants `format`.
        binding: digest of all that decides the content of the tensors. With it, tensors that a killed process
            `finish`ed are taken over (`finished`) if it had the same binding; without it nothing is.

    Raises:
        UsageError: two tensors of one name (`duplicate_name`).
        CheckpointError: the target holds something (`exists`), its parent is missing (`not_found`), another
            process is writing it (`busy`), or the disk has no room for it (`disk_full`).
    """

    def __init__(
        self,
        target: Path,
        specs: Iterable[TensorSpec],
        *,
        stem: str = STEM,
        shard_nbytes: int = SHARD_NBYTES,
        metadata: Mapping[str, str] | None = None,
        binding: str | None = None,
    ) -> None:
        self.target = Path(target)
        refuse_occupied(self.target)
        self._index = f"{stem}{INDEX_SUFFIX}"
        self._files = plan_files(specs, stem=stem, shard_nbytes=shard_nbytes, metadata=metadata)
        self._placed = {place.spec.name: place for place in _places(self._files)}
        self._written = dict.fromkeys(self._placed, 0)
        self._descriptors: list[int] = []
        self._journal: Journal | None = None
        self._is_over = False
        self._folder = self.target.parent / _partial_name(self.target.name, fixed=binding is not None)
        self.finished: dict[str, Mapping[str, object]] = {}
        try:
            with self._os_errors():
                if binding is None:
                    self._folder.mkdir()
                else:
                    self._journal = Journal(self._folder, binding)
                self._create()
        except BaseException:
            if binding is None or self._journal is not None:  # else the folder may be another process's
                self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, name: str, words: Words, *, first_row: int = 0) -> None:
        """Write a tensor, or some of its rows; each row is to be written once.

        Args:
            name: one of the specs' names.
            words: C-contiguous words of the tensor's width; its shape, or that of rows of it.
            first_row: where these rows begin.

        Raises:
            UsageError: words that do not fit (`bad_shape`), or a name that is not expected (`not_found`).
        """
        shape = self._place(name).spec.shape
        fits = words.ndim == len(shape) and words.shape[1:] == shape[1:] and words.flags.c_contiguous
        fits = fits and (not shape or first_row + words.shape[0] <= shape[0])
        if not fits:
            raise _bad_words(name, shape, words.shape)
        self.write_flat(name, words.reshape(-1), first_row * math.prod(shape[1:]))

    def write_flat(self, name: str, words: Words, first: int = 0) -> None:
        """Write some elements of a tensor; each is to be written once.

        Args:
            name: one of the specs' names.
            words: flat, C-contiguous words of the tensor's width.
            first: the place of the first of them in the flat tensor.

        Raises:
            UsageError: words that do not fit (`bad_shape`), or a name that is not expected (`not_found`).
        """
        place = self._place(name)
        dtype = words_dtype(place.spec.dtype)
        fits = words.ndim == 1 and words.dtype == dtype and words.flags.c_contiguous
        if not fits or not 0 <= first <= place.spec.numel - words.size:
            raise _bad_words(name, place.spec.shape, words.shape)
        with self._os_errors():
            offset = place.offset + first * dtype.itemsize
            _pwrite_all(self._descriptors[place.shard], words.view(np.uint8).data, offset)
            begin_writeback(self._descriptors[place.shard], offset, words.nbytes)
        self._written[name] += words.nbytes

    def finish(self, name: str, sums: str, note: Mapping[str, object]) -> None:
        """Note that a tensor is written whole, so that it survives a kill.

        Args:
            name: one of the specs' names.
            sums: `PageSums` of its bytes.
            note: what `finished` is to give to the process that continues; JSON.
        """
        if self._journal is not None:
            with self._os_errors():
                self._journal.add(name, sums, note)

    def _place(self, name: str) -> _Place:
        place = self._placed.get(name)
        if place is None:
            raise UsageError("not_found", "the checkpoint being written has no such tensor", where=name)
        return place

    def write_side_file(self, name: str, data: bytes) -> None:
        """Put a configuration or tokenizer file beside the weights; the last one of a name wins.

        Raises:
            UsageError: the name is not on the allowlist (`bad_name`).
        """
        if not is_side_file(name):
            raise UsageError("bad_name", "no such file may lie beside weights", where=str(self.target), got=name)
        with self._os_errors():
            _write_file(self._folder / name, data)

    def copy_side_file(self, source: Path) -> None:
        """Copy a file of another checkpoint, under the rules of `write_side_file`."""
        self.write_side_file(source.name, source.read_bytes())

    def commit(self) -> None:
        """Make the folder appear, complete and on disk.

        Raises:
            UsageError: a tensor was not written whole (`usage`).
            CheckpointError: the target holds something by now (`exists`), or the disk fails (`disk_full`,
                `io`).
        """
        for name, place in self._placed.items():
            if self._written[name] != place.spec.nbytes:
                raise UsageError(
                    "usage",
                    "a tensor was not written whole",
                    where=name,
                    expected=place.spec.nbytes,
                    got=self._written[name],
                )
        refuse_occupied(self.target)
        with self._os_errors():
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            if len(self._files) > 1:
                _write_file(self._folder / self._index, index_json(self._files))
            for file in self._files:
                (self._folder / (file.name + PART_SUFFIX)).rename(self._folder / file.name)
            if self._journal is not None:
                self._journal.remove()
            sync_folder(self._folder)
            self._folder.rename(self.target)
            self._is_over = True
            self._close()
            sync_folder(self.target.parent)

    def abort(self) -> None:
        """Remove what was written; nothing happens after `commit`."""
        if not self._is_over:
            self._is_over = True
            shutil.rmtree(self._folder, ignore_errors=True)
        self._close()

    def _create(self) -> None:
        paths = [self._folder / (file.name + PART_SUFFIX) for file in self._files]
        if self._journal is not None and self._journal.entries:
            undo_renames(self._folder, self._files)
            if all(map(_is_begun, paths, self._files)):
                _remove_others(self._folder, {JOURNAL, *(path.name for path in paths)})
                self._descriptors = [os.open(path, os.O_RDWR) for path in paths]
                self._take_over(self._journal.entries)
                return
        if self._journal is not None:
            self._journal.restart()
            _remove_others(self._folder, {JOURNAL})
        for path, file in zip(paths, self._files, strict=True):
            # mode 0666 less the umask: a shared folder stays readable
            self._descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            _allocate(self._descriptors[-1], file.nbytes)
            _pwrite_all(self._descriptors[-1], memoryview(file.header), 0)

    def _take_over(self, entries: Mapping[str, Entry]) -> None:
        """Trust the tensors that an earlier process finished, as far as their bytes have the sums it noted."""
        for name, entry in entries.items():
            place = self._placed.get(name)
            if place is not None and _sums(self._descriptors[place.shard], place) == entry.sums:
                self.finished[name] = entry.note
                self._written[name] = place.spec.nbytes

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._journal is not None:
            self._journal.close()

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise from_os_error(error, str(self.target)) from error


def refuse_occupied(target: Path) -> None:
    """Refuse a target of a whole folder that holds something, or has no parent.

    Raises:
        CheckpointError: `exists`, `not_found`.
    """
    # `.` and `..` are no names that a folder could be renamed to
    nameless = target.name in ("", "..")
    if nameless or target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise CheckpointError(
            "exists",
            "the output exists already",
            where=str(target),
            hint="name another folder, or remove it",
        )
    if not target.parent.is_dir():
        raise CheckpointError("not_found", "the parent folder does not exist", where=str(target.parent))


def _partial_name(target: str, *, fixed: bool) -> str:
    """What the partial folder of a target is called: hidden, at most 190 bytes, and `fixed` or never twice the same."""
    token = hashlib.sha256(target.encode()).hexdigest()[:16] if fixed else secrets.token_hex(8)
    return f".{target[:40]}.{token}.partial"


def _bad_words(name: str, expected: object, got: object) -> UsageError:
    return UsageError("bad_shape", "words do not fit the tensor", where=name, expected=expected, got=got)


def undo_renames(folder: Path, files: Iterable[PlannedFile]) -> None:
    """Take back what a process did that was killed while it made the files of a partial folder final."""
    for file in files:
        if (folder / file.name).exists():
            (folder / file.name).rename(folder / (file.name + PART_SUFFIX))


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def _is_begun(path: Path, planned: PlannedFile) -> bool:
    """Whether a file has the size and the header that are planned."""
    try:
        with path.open("rb") as file:
            is_whole = os.fstat(file.fileno()).st_size == planned.nbytes
            return is_whole and file.read(len(planned.header)) == planned.header
    except FileNotFoundError:
        return False


def _sums(descriptor: int, place: _Place) -> str:
    """`PageSums` of a tensor as it lies in its file."""
    sums = PageSums()
    for start in range(0, place.spec.nbytes, _READ_NBYTES):
        data = os.pread(descriptor, min(_READ_NBYTES, place.spec.nbytes - start), place.offset + start)
        sums.update(np.frombuffer(data, np.uint8))
    return sums.hexdigest()


def _places(files: Sequence[PlannedFile]) -> Iterator[_Place]:
    for number, file in enumerate(files):
        for spec, offset in zip(file.specs, file.offsets, strict=True):
            yield _Place(spec, number, offset)


def _allocate(descriptor: int, nbytes: int) -> None:
    """Give a file its size, and where the system can, its blocks: a full disk shows before the work."""
    os.ftruncate(descriptor, nbytes)
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call of that name, which Python does not have."""
    found = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


def begin_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the disk begin with what was written, so that the sync at the end finds little left; a hint, no more."""
    if _START_WRITEBACK is not None and nbytes >= _WRITEBACK_NBYTES:
        _START_WRITEBACK(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


_START_WRITEBACK = _sync_file_range()


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let what was made or renamed in a folder survive a power cut; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
