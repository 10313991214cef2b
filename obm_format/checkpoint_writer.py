"""Write a checkpoint folder that transformers loads: all of it or nothing, in any order of tensors.

The specs are known before the first byte, so every tensor has its place at once; a temporary folder beside
the target becomes the target in one rename. Never holds a tensor, never overwrites a folder that holds
something.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from obm_format.checkpoint import INDEX_SUFFIX, WEIGHTS, is_side_file
from obm_format.errors import CheckpointError, UsageError, from_os_error
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import TensorSpec

SHARD_NBYTES = 5_000_000_000
HEADER_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: index of its file, and the offset of its first byte."""

    spec: TensorSpec
    shard: int
    offset: int


class CheckpointWriter:
    """A checkpoint folder in the making; nothing appears at the target before `commit`.

    Args:
        target: the folder to make; it must not exist, or be empty.
        specs: every tensor that will be written.
        shard_nbytes: most bytes of tensors in one file, but for single tensors above it.
        metadata: `__metadata__` of each file; transformers wants `format`.

    Raises:
        UsageError: two tensors of one name (`duplicate_name`).
        CheckpointError: the target holds something (`exists`), its parent is missing (`not_found`), or the
            disk has no room for it (`disk_full`).
    """

    def __init__(
        self,
        target: Path,
        specs: Iterable[TensorSpec],
        *,
        shard_nbytes: int = SHARD_NBYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.target = Path(target)
        refuse_occupied(self.target)
        shards = _distribute(specs, shard_nbytes)
        self._names = _file_names(len(shards))
        self._placed = {place.spec.name: place for place in _places(shards, metadata)}
        self._written = dict.fromkeys(self._placed, 0)
        self._descriptors: list[int] = []
        # 40 characters: at most 160 bytes of the 255 that a name may have
        self._folder = self.target.parent / f".{self.target.name[:40]}.{secrets.token_hex(8)}.partial"
        try:
            with self._os_errors():
                self._create(shards, metadata)
        except BaseException:
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
        place = self._placed.get(name)
        if place is None:
            raise UsageError("not_found", "the checkpoint being written has no such tensor", where=name)
        shape = place.spec.shape
        fits = words.ndim == len(shape) and words.shape[1:] == shape[1:]
        fits = fits and (not shape or first_row + words.shape[0] <= shape[0])
        if not fits or words.dtype != words_dtype(place.spec.dtype) or not words.flags.c_contiguous:
            raise UsageError("bad_shape", "words do not fit the tensor", where=name, expected=shape, got=words.shape)
        row_nbytes = place.spec.nbytes // shape[0] if words.ndim and shape[0] else 0
        data = words.reshape(-1).view(np.uint8).data
        with self._os_errors():
            _pwrite_all(self._descriptors[place.shard], data, place.offset + first_row * row_nbytes)
        self._written[name] += words.nbytes

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
            self._close()
            if len(self._names) > 1:
                _write_file(self._folder / f"model{INDEX_SUFFIX}", self._index())
            sync_folder(self._folder)
            self._folder.rename(self.target)
            sync_folder(self.target.parent)

    def abort(self) -> None:
        """Remove what was written; nothing happens after `commit`."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _create(self, shards: list[list[TensorSpec]], metadata: Mapping[str, str] | None) -> None:
        self._folder.mkdir()
        for name, specs in zip(self._names, shards, strict=True):
            header = _header(specs, metadata)
            # mode 0666 less the umask: a shared folder stays readable
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            self._descriptors.append(descriptor)
            _allocate(descriptor, len(header) + sum(spec.nbytes for spec in specs))
            _pwrite_all(descriptor, memoryview(header), 0)

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _index(self) -> bytes:
        total = sum(place.spec.nbytes for place in self._placed.values())
        placed = {name: self._names[self._placed[name].shard] for name in sorted(self._placed)}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        return (json.dumps(index, indent=2) + "\n").encode()

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


def _distribute(specs: Iterable[TensorSpec], shard_nbytes: int) -> list[list[TensorSpec]]:
    """Tensors sorted by name, cut into shards; in each, wide elements first, so that all are aligned."""
    shards: list[list[TensorSpec]] = [[]]
    filled, previous = 0, None
    for spec in sorted(specs, key=lambda spec: spec.name):
        if spec.name == previous:
            raise UsageError("duplicate_name", "a tensor is to be written twice", where=spec.name)
        if shards[-1] and filled + spec.nbytes > shard_nbytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled, previous = filled + spec.nbytes, spec.name
    return [sorted(shard, key=lambda spec: (-spec.dtype.itemsize, spec.name)) for shard in shards]


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _places(shards: list[list[TensorSpec]], metadata: Mapping[str, str] | None) -> Iterator[_Place]:
    for number, specs in enumerate(shards):
        offset = len(_header(specs, metadata))
        for spec in specs:
            yield _Place(spec, number, offset)
            offset += spec.nbytes


def _header(specs: list[TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON of a safetensors header, padded so that the data begin at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))}
    offset = 0
    for spec in specs:
        table[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


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
