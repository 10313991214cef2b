"""Which parts, alphas and digests a tensor record has, and how large they are: pure arithmetic on records.

Both the container (which lays parts out) and the codecs (which fill them) build on it, so that neither knows
the other. Never touches bytes of a file. Source: obm-1 clauses 6 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from obm_format.model import (
    CHUNK_NBYTES,
    SUM_NBYTES,
    SUMS_FROM_NBYTES,
    AffineParams,
    AlphaLayout,
    Granularity,
    Manifest,
    RawParams,
    RtvqParams,
    SignParams,
    SparseParams,
    TensorRecord,
    TernParams,
    XdeltaParams,
)

SPARSE_BLOCK = 65_536  # obm-1 clause 6.8: elements per position block


class PartLayout(NamedTuple):
    """One part before it has a place in the file.

    Args:
        suffix: what follows `#` in the part's name.
        nbytes: bytes without padding.
        raw_nbytes: size before compression when the part is in zstd frames, else None.
    """

    suffix: str
    nbytes: int
    raw_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class PartData:
    """The bytes of one part, as a codec makes them and the container writes them.

    Args:
        suffix: what follows `#` in the part's name.
        chunks: C-contiguous buffers (of an array: its `data`) whose bytes, one after the other, are the part.
        framed: whether every chunk is one zstd frame (clause 8.2).
    """

    suffix: str
    chunks: Sequence[bytes | bytearray | memoryview]
    framed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the part without padding."""
        return sum(memoryview(chunk).nbytes for chunk in self.chunks)


def default_rows(shape: tuple[int, ...]) -> int:
    """Rows of the matrix view by default: shape[0], or 1 below two dimensions (clause 6.1)."""
    return shape[0] if len(shape) >= 2 else 1


def columns(record: TensorRecord, rows: int) -> int:
    """Columns of the matrix view with `rows` rows."""
    return record.encoded_numel // rows if rows else 0


def _packed_nbytes(numel: int, rows: int, bits: int) -> int:
    """Bytes of `numel` codes in `rows` rows (clause 6.2)."""
    return rows * packed_row_nbytes(numel // rows if rows else 0, bits)


def packed_row_nbytes(cols: int, bits: int) -> int:
    """Bytes of one row of `cols` codes of `bits` bits: rows end on a byte (clause 6.2)."""
    return (cols * bits + 7) // 8


def alphas_per_plane(alpha: AlphaLayout, rows: int, cols: int) -> int:
    """Number of alphas of one plane over a matrix of `rows` x `cols` (clause 6.3)."""
    match alpha.granularity:
        case Granularity.MATRIX:
            return 1
        case Granularity.ROW:
            return rows
        case Granularity.GROUP:
            return rows * -(-cols // alpha.group)
        case Granularity.BLOCK:
            return sum(count for count, _ in alpha.blocks)


def alpha_nbytes(record: TensorRecord) -> int:
    """Bytes that a record takes in the alpha pool (clause 7.5)."""
    match record.params:
        case SignParams(alpha=alpha, rows=rows, planes=planes):
            return planes * alphas_per_plane(alpha, rows, columns(record, rows)) * alpha.dtype.itemsize
        case TernParams(alpha=alpha, rows=rows):
            return alphas_per_plane(alpha, rows, columns(record, rows)) * alpha.dtype.itemsize
        case AffineParams() | RtvqParams():
            return 8
        case _:
            return 0


def part_layouts(record: TensorRecord) -> list[PartLayout]:
    """The parts of a record in file order; parts of zero bytes do not exist (clause 6, table of parts)."""
    layouts = _encoding_parts(record, record.encoded_numel)
    if record.grown_rows:
        row_nbytes = math.prod(record.spec.shape[1:]) * record.spec.dtype.itemsize
        layouts.append(PartLayout("tail", record.grown_rows * row_nbytes))
    return [layout for layout in layouts if layout.nbytes]


def _encoding_parts(record: TensorRecord, numel: int) -> list[PartLayout]:
    match record.params:
        case SignParams(rows=rows, planes=planes):
            nbytes = _packed_nbytes(numel, rows, 1)
            return [PartLayout(f"bits{plane}", nbytes) for plane in range(planes)]
        case XdeltaParams(zstd_nbytes=nbytes):
            return [PartLayout("data", nbytes, numel * record.spec.dtype.itemsize)]
        case RawParams(value_dtype=dtype, zstd_nbytes=None):
            return [PartLayout("data", numel * dtype.itemsize)]
        case RawParams(value_dtype=dtype, zstd_nbytes=int(nbytes)):
            return [PartLayout("data", nbytes, numel * dtype.itemsize)]
        case TernParams(rows=rows):
            nbytes = _packed_nbytes(numel, rows, 1)
            return [PartLayout("bits0", nbytes), PartLayout("mask", nbytes)]
        case AffineParams(bits=bits, rows=rows) | RtvqParams(bits=bits, rows=rows):
            return [PartLayout("codes", _packed_nbytes(numel, rows, bits))]
        case SparseParams(nnz=nnz, value_dtype=dtype):
            counts = PartLayout("counts", -(-numel // SPARSE_BLOCK) * 4 if nnz else 0)
            return [counts, PartLayout("index", nnz * 2), PartLayout("values", nnz * dtype.itemsize)]
        case _:
            return []


def frame_count(raw_nbytes: int) -> int:
    """Number of zstd frames of a framed part of `raw_nbytes` uncompressed bytes (clause 8.2)."""
    return -(-raw_nbytes // CHUNK_NBYTES)


def sum_count(layout: PartLayout) -> int:
    """Number of 1 MiB sums of a part: 0 unless it is unframed and above 8 MiB (clause 8.3)."""
    if layout.raw_nbytes is not None or layout.nbytes <= SUMS_FROM_NBYTES:
        return 0
    return -(-layout.nbytes // SUM_NBYTES)


def leading_digest_count(record: TensorRecord) -> int:
    """Number of digests of a record in front of its parts': backbone tensor, rebuilt tensor (clause 7.4)."""
    return (record.base is not None) + record.is_exact


def pool_sizes(manifest: Manifest, layouts: Sequence[Sequence[PartLayout]] | None = None) -> dict[str, int]:
    """Bytes of each pool, by name; absent pools have 0 (clauses 7.3 to 7.5 and 8).

    Args:
        manifest: the manifest.
        layouts: the parts of each of its records, where they are at hand.
    """
    digests = alphas = frames = sums = 0
    for record, parts in zip(manifest.tensors, layouts or map(part_layouts, manifest.tensors), strict=True):
        digests += 32 * (leading_digest_count(record) + len(parts))
        alphas += alpha_nbytes(record)
        for part in parts:
            if part.raw_nbytes is not None:
                frames += 36 * frame_count(part.raw_nbytes)
            else:
                sums += 32 * sum_count(part)
    for attachment in manifest.attachments:
        digests += 32
        sums += 32 * sum_count(PartLayout("", attachment.nbytes))
    return {"digests": digests, "alphas": alphas, "frames": frames, "sums": sums}
