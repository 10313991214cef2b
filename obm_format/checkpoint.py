"""Safetensors checkpoints (a folder of shards, or one file), read lazily through a memory map.

Never unpickles anything, never writes, and never needs torch: what it hands out are words (unsigned integers
of the element's width). Header rules: the safetensors format, strictly (no holes, no overlap, no duplicate
names).
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from obm_format import digest
from obm_format.errors import CheckpointError, from_os_error
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import DType, TensorSpec
from obm_format.progress import Progress, silent

HEADER_NBYTES = 100_000_000  # the ceiling that the safetensors library sets
CONFIG_NBYTES = 16 << 20
RANK = 64

WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SIDE_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
    }
)

_LFS_POINTER = b"version https://git-lfs"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SIDE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONVERT = "load it in a sandbox and save it again with save_pretrained(..., safe_serialization=True)"


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of a checkpoint with the digest of its bytes: a row of the backbone's tensor table."""

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    sha256: bytes


def is_side_file(name: str) -> bool:
    """Whether a file of this name may lie beside weights: configuration, tokenizer, chat template."""
    return name in SIDE_FILES or (name.endswith(".model") and _SIDE_NAME.fullmatch(name) is not None)


class Checkpoint:
    """An open checkpoint; get one from `open_checkpoint`.

    Args:
        path: what was opened, a folder or a file.
        shards: the mapped files, whose tensor names are disjoint.
    """

    def __init__(self, path: Path, shards: list[Shard]) -> None:
        self.path = path
        self._shards = shards
        self._home: dict[str, Shard] = {name: shard for shard in shards for name in shard.entries}
        self.tensors: Mapping[str, TensorSpec] = {
            name: self._home[name].entries[name].spec for name in sorted(self._home)
        }
        self.metadata: Mapping[str, str] = shards[0].metadata if len(shards) == 1 else {}
        self._sha256: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the maps; a map whose arrays are still in use goes when they go."""
        for shard in self._shards:
            shard.close()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def words(self, name: str, rows: slice | None = None) -> Words:
        """The words of one tensor, or of some of its rows.

        Args:
            name: a key of `tensors`.
            rows: rows of the first dimension, with step 1; None for all.

        Returns:
            Read-only, aligned, C-contiguous array of unsigned words: a view of the map wherever the file
            aligns it.
        """
        entry = self._home[name].entries[name]
        array = np.frombuffer(self._home[name].view(name), words_dtype(entry.spec.dtype))
        shaped = array.reshape(entry.spec.shape)
        if rows is not None:
            shaped = shaped[rows]
        if not shaped.flags.aligned:
            shaped = shaped.copy()
            shaped.flags.writeable = False
        return shaped

    def release(self, name: str) -> None:
        """Tell the system that the pages of a tensor are not needed any more; they stay readable."""
        self._home[name].release(name)

    def sha256(self, name: str) -> bytes:
        """The 32-byte digest of a tensor's bytes (obm-1 clause 7.4), computed once. May run in any thread."""
        known = self._sha256.get(name)
        if known is None:
            known = self._sha256[name] = digest.sha256(self._home[name].view(name))
        return known

    def identity(self) -> tuple[str, ...]:
        """One line per file, which changes when the file does: name, size, time of the last change, number."""
        return tuple(shard.identity for shard in self._shards)

    def known_sha256(self, name: str) -> bytes | None:
        """The digest of a tensor's bytes if it was computed already."""
        return self._sha256.get(name)

    def remember_sha256(self, name: str, sha256: bytes) -> None:
        """Keep a digest that somebody computed while reading all of `words(name)`."""
        self._sha256[name] = sha256

    def table(self, progress: Progress = silent) -> tuple[TensorRow, ...]:
        """Every tensor with its digest, sorted by name; hashes in two threads what was not hashed before."""
        done, total = 0, self.nbytes
        with ThreadPoolExecutor(2) as pool:
            digests = pool.map(self.sha256, self.tensors)
            try:
                rows = []
                for spec, value in zip(self.tensors.values(), digests, strict=True):
                    rows.append(TensorRow(spec.name, spec.dtype.name, spec.shape, value))
                    done += spec.nbytes
                    progress("hash", done, total)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return tuple(rows)

    def fingerprint(self, progress: Progress = silent) -> str:
        """The content fingerprint, 64 hexadecimal digits (obm-1 clause 10.1)."""
        return digest.fingerprint(self.table(progress))

    def config(self) -> dict[str, object] | None:
        """The folder's config.json; None where there is none, and for a single file."""
        path = self.path / "config.json"
        if not path.is_file():
            return None
        return _read_object(path, CONFIG_NBYTES)

    @property
    def architecture(self) -> str:
        """Model class name from the configuration, or ""."""
        names = (self.config() or {}).get("architectures")
        first = names[0] if isinstance(names, list) and names else ""
        return first if isinstance(first, str) and _ARCHITECTURE.fullmatch(first) else ""

    def side_files(self) -> list[Path]:
        """Files of the folder that travel with the weights, sorted; none for a single file."""
        if not self.path.is_dir():
            return []
        return sorted(entry for entry in self.path.iterdir() if is_side_file(entry.name) and entry.is_file())


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint folder or one safetensors file; reads headers only.

    In a folder `model.safetensors` goes first, then an index of shards, then the only model among
    `*.safetensors`.

    Args:
        path: a Hugging Face checkpoint folder, or a safetensors file (which then stands alone: no
            configuration).

    Raises:
        CheckpointError: nothing there (`not_found`), no weights (`no_weights`), pickles only
            (`pickle_refused`), a malformed file or index (`bad_checkpoint`), a dtype that obm does not know
            (`unsupported_dtype`).
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError("not_found", "no such file or folder", where=str(path))
    shards: list[Shard] = []
    try:
        if path.is_dir():
            files, placed = _folder_files(path)
        else:
            _refuse_pickle_file(path)
            files, placed = [path], None
        shards.extend(Shard.open(file) for file in files)
        _check_disjoint(shards)
        if placed is not None:
            _check_index(path, shards, placed)
        return Checkpoint(path, shards)
    except BaseException:
        for shard in shards:
            shard.close()
        raise


# --- one file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and the range of the file that holds it."""

    spec: TensorSpec
    start: int
    stop: int


class Shard:
    """One mapped safetensors file."""

    def __init__(
        self, path: Path, mapped: mmap.mmap, header: tuple[dict[str, Entry], dict[str, str]], identity: str
    ) -> None:
        self.path = path
        self.identity = identity
        self._map = mapped
        self._view = memoryview(mapped)
        self.entries, self.metadata = header

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file and parse its header."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
        except OSError as error:
            raise from_os_error(error, str(path)) from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise _bad(path, "is not a regular file")
            if facts.st_size < 8:
                raise _bad(path, "is too short for a safetensors file", got=f"{facts.st_size} bytes")
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        identity = f"{path.name} {facts.st_size} {facts.st_mtime_ns} {facts.st_dev} {facts.st_ino}"
        try:
            return cls(path, mapped, parse_safetensors_header(mapped, path), identity)
        except BaseException:
            mapped.close()
            raise

    def view(self, name: str) -> memoryview:
        """The bytes of one tensor."""
        entry = self.entries[name]
        return self._view[entry.start : entry.stop]

    def release(self, name: str) -> None:
        """Give back the pages that lie wholly inside one tensor."""
        entry = self.entries[name]
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Unmap, unless arrays still look at the map."""
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            return


def parse_safetensors_header(data: mmap.mmap | bytes, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Parse the header of a whole safetensors file.

    Args:
        data: the file, at least 8 bytes.
        path: for error messages.

    Returns:
        Tensors by name, in file order, with absolute byte ranges; and the `__metadata__` strings.

    Raises:
        CheckpointError: `bad_checkpoint` or `unsupported_dtype`.
    """
    if data[: len(_LFS_POINTER)] == _LFS_POINTER:
        raise _bad(path, "is a Git LFS pointer, not the weights", hint="run `git lfs pull` in that folder")
    nbytes = int.from_bytes(data[:8], "little")
    if nbytes > len(data) - 8:
        raise _bad(path, "is truncated: the header is longer than the file", expected=8 + nbytes, got=len(data))
    if nbytes > HEADER_NBYTES:
        raise _bad(path, "has a header above the limit", expected=f"at most {HEADER_NBYTES}", got=nbytes)
    table = _parse_object(bytes(data[8 : 8 + nbytes]), path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "has a __metadata__ that is not an object of strings")
    if metadata.get("format") == "obm":
        raise _bad(path, "is an expert, not a checkpoint", hint="materialize it, or name a checkpoint folder")
    entries = [_parse_entry(name, entry, 8 + nbytes, path) for name, entry in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_ranges(entries, 8 + nbytes, len(data), path)
    return {entry.spec.name: entry for entry in entries}, metadata


def _parse_entry(name: str, entry: object, data_start: int, path: Path) -> Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"has a malformed entry for tensor {name!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # JSON can write half a character, UTF-8 cannot
        raise _bad(path, f"has a name that is no text: {name!r}")
    shape, offsets, dtype_name = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _is_sizes(shape) or len(shape) > RANK or not _is_sizes(offsets) or len(offsets) != 2:
        raise _bad(path, f"has a malformed shape or range for tensor {name!r}")
    if not isinstance(dtype_name, str) or dtype_name not in DType.__members__:
        raise CheckpointError(
            "unsupported_dtype",
            f"tensor {name!r} has a dtype that obm does not know",
            where=str(path),
            got=dtype_name,
        )
    spec = TensorSpec(name, DType[dtype_name], tuple(shape))
    start, stop = offsets
    if stop - start != spec.nbytes:
        raise _bad(path, f"gives tensor {name!r} another size than its shape", expected=spec.nbytes, got=stop - start)
    return Entry(spec, data_start + start, data_start + stop)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _check_ranges(entries: list[Entry], start: int, file_nbytes: int, path: Path) -> None:
    for before, entry in itertools.pairwise([None, *entries]):
        expected = before.stop if before else start
        if entry is not None and entry.start != expected:
            raise _bad(path, f"has a hole or an overlap before tensor {entry.spec.name!r}")
    end = entries[-1].stop if entries else start
    if end > file_nbytes:
        raise _bad(path, "is truncated", expected=f"{end} bytes", got=f"{file_nbytes}")
    if end < file_nbytes:
        raise _bad(path, "has bytes after the last tensor", expected=f"{end} bytes", got=f"{file_nbytes}")


# --- a folder -----------------------------------------------------------------------------------------------


def _folder_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a folder, and the index that says which tensor lies where, if there is one."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], None
    indexes = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    index = folder / f"model{INDEX_SUFFIX}"
    if index in indexes or len(indexes) == 1:
        return _indexed_files(index if index in indexes else indexes[0])
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        _refuse_folder(folder)
    if len(files) > 1 and not _is_shard_set(files):
        names = ", ".join(file.name for file in files[:4])
        raise _bad(folder, f"holds several safetensors files and no index: {names}", hint="name one of the files")
    if files[0].name.startswith("adapter_model"):
        raise CheckpointError(
            "no_weights",
            "holds a PEFT adapter, not a full checkpoint",
            where=str(folder),
            hint="merge it into its base model first (merge_and_unload) and save that",
        )
    return files, None


def _indexed_files(index: Path) -> tuple[list[Path], dict[str, str]]:
    placed = _read_object(index, HEADER_NBYTES).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise _bad(index, "has no weight_map from tensor names to file names")
    names = sorted(set(placed.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise _bad(index, "names a shard that is no safetensors file of this folder", got=repr(name))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise _bad(index, f"names shards that are not there: {', '.join(missing[:4])}", hint="download them again")
    return [index.parent / name for name in names], placed


def _check_index(folder: Path, shards: list[Shard], placed: dict[str, str]) -> None:
    for shard in shards:
        for name in shard.entries:
            if placed.get(name) != shard.path.name:
                raise _bad(shard.path, f"holds tensor {name!r}, which the index does not place there")
    found = {name for shard in shards for name in shard.entries}
    lost = sorted(placed.keys() - found)
    if lost:
        raise _bad(folder, f"lacks tensor {lost[0]!r}, which the index places in {placed[lost[0]]}")


def _check_disjoint(shards: list[Shard]) -> None:
    seen: dict[str, Path] = {}
    for shard in shards:
        for name in shard.entries:
            if name in seen:
                raise _bad(shard.path, f"holds tensor {name!r}, which {seen[name].name} holds too")
            seen[name] = shard.path
    if not seen:
        raise CheckpointError("no_weights", "the safetensors file holds no tensor", where=str(shards[0].path))


def _is_shard_set(files: list[Path]) -> bool:
    """Whether files are all of `STEM-0000i-of-0000n.safetensors`."""
    found = [_SHARD.fullmatch(file.name) for file in files]
    stems = {(match["stem"], match["count"]) for match in found if match}
    return all(found) and len(stems) == 1 and len(files) == int(stems.pop()[1])


def _refuse_folder(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_SUFFIXES)
    weights = [name for name in pickles if name not in {"training_args.bin", "optimizer.pt", "scheduler.pt"}]
    if weights:
        raise CheckpointError(
            "pickle_refused", f"holds only pickled weights ({weights[0]})", where=str(folder), hint=_CONVERT
        )
    raise CheckpointError(
        "no_weights",
        "holds no safetensors weights",
        where=str(folder),
        hint="name the folder that holds model.safetensors",
    )


def _refuse_pickle_file(path: Path) -> None:
    if path.suffix in _PICKLE_SUFFIXES:
        raise CheckpointError("pickle_refused", "is a pickled checkpoint", where=str(path), hint=_CONVERT)


# --- JSON ---------------------------------------------------------------------------------------------------


def _read_object(path: Path, limit: int) -> dict[str, object]:
    nbytes = path.stat().st_size
    if nbytes > limit:
        raise _bad(path, "is above the limit", expected=f"at most {limit} bytes", got=nbytes)
    return _parse_object(path.read_bytes(), path)


def _parse_object(data: bytes, path: Path) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise _bad(path, f"holds the key {twice!r} twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "a safetensors file"
        raise _bad(path, f"is not {kind}, or is damaged") from error
    if not isinstance(value, dict):
        raise _bad(path, "holds JSON that is not an object")
    return value


def _bad(
    path: Path, message: str, *, expected: object = None, got: object = None, hint: str | None = None
) -> CheckpointError:
    return CheckpointError("bad_checkpoint", message, where=str(path), expected=expected, got=got, hint=hint)
