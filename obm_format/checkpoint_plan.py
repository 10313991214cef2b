"""Which files a checkpoint folder will have: their names, their headers, and the place of every tensor.

Decided by the tensors alone, so that the same tensors give the same files everywhere. Never reads or writes one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from obm_format.checkpoint import INDEX_SUFFIX
from obm_format.errors import UsageError
from obm_format.model import TensorSpec

SHARD_NBYTES = 5_000_000_000
STEM = "model"  # of the files of a dense checkpoint, and of nothing else
INDEX = f"{STEM}{INDEX_SUFFIX}"
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One safetensors file before its first byte.

    Args:
        name: its name.
        header: length and JSON of the header, padded so that the tensors begin at a multiple of 8.
        specs: its tensors in file order.
    """

    name: str
    header: bytes
    specs: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(spec.nbytes for spec in self.specs)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins, in bytes from the beginning of the file."""
        return tuple(itertools.accumulate((spec.nbytes for spec in self.specs[:-1]), initial=len(self.header)))


def plan_files(
    specs: Iterable[TensorSpec],
    *,
    stem: str = STEM,
    shard_nbytes: int = SHARD_NBYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[PlannedFile]:
    """The files for tensors: sorted by name, cut into files; in each, wide elements first, so that all are aligned.

    Args:
        specs: every tensor.
        stem: what the names of the files begin with.
        shard_nbytes: most bytes of tensors in one file, but for single tensors above it.
        metadata: `__metadata__` of each file; transformers wants `format`.

    Raises:
        UsageError: two tensors of one name (`duplicate_name`).
    """
    shards = _distribute(specs, shard_nbytes)
    names = _file_names(stem, len(shards))
    return [
        PlannedFile(name, _header(shard, metadata), tuple(shard)) for name, shard in zip(names, shards, strict=True)
    ]


def index_json(files: Sequence[PlannedFile]) -> bytes:
    """The bytes of the index, which says in which of several files a tensor lies."""
    total = sum(spec.nbytes for file in files for spec in file.specs)
    placed = dict(sorted((spec.name, file.name) for file in files for spec in file.specs))
    return (json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2) + "\n").encode()


def _distribute(specs: Iterable[TensorSpec], shard_nbytes: int) -> list[list[TensorSpec]]:
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


def _file_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _header(specs: list[TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
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
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
