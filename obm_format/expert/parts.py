"""The parts of one record as codecs read them, and the rows of a tensor as spans of elements.

Source: obm-1 clauses 5.6 and 9.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from obm_format.codecs.base import FrameInfo, Span
from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch, UsageError
from obm_format.layout import alpha_nbytes, default_rows, part_layouts
from obm_format.model import SUMS_FROM_NBYTES, AffineParams, SignParams, TensorRecord, ZeroParams


class HasContainer(Protocol):
    """What parts are read from: an open file."""

    container: Container


class RecordParts:
    """A `PartReader` over one record of a container.

    Args:
        container: the file.
        record: one of its records, or what `first_planes` makes of one.
    """

    def __init__(self, container: Container, record: TensorRecord) -> None:
        self._container = container
        self._record = record

    @classmethod
    def of(cls, expert: HasContainer, record: TensorRecord) -> Self:
        """The parts of a record of an open expert."""
        return cls(expert.container, record)

    def part(self, suffix: str) -> memoryview:
        """See `PartReader.part`."""
        return self._container.part(self._record, suffix)

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        """See `PartReader.part_range`."""
        return self._container.part_range(self._record, suffix, start, stop)

    def frames(self, suffix: str) -> Sequence[FrameInfo]:
        """See `PartReader.frames`."""
        return self._container.frames(self._record, suffix)

    def frame(self, suffix: str, index: int) -> bytes:
        """See `PartReader.frame`."""
        return self._container.frame(self._record, suffix, index)

    def alphas(self) -> bytes:
        """See `PartReader.alphas`."""
        return self._container.alphas(self._record)[: alpha_nbytes(self._record)]


class HeldParts(RecordParts):
    """A `PartReader` that keeps what cannot be verified in ranges, so that many ranges cost one look at the part."""

    def __init__(self, container: Container, record: TensorRecord) -> None:
        super().__init__(container, record)
        self._nbytes = {part.suffix: part.nbytes for part in part_layouts(record)}
        self._held: dict[str, memoryview] = {}

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        """See `PartReader.part_range`."""
        if self._nbytes[suffix] > SUMS_FROM_NBYTES:
            return super().part_range(suffix, start, stop)
        if suffix not in self._held:
            self._held[suffix] = self.part(suffix)
        return bytes(self._held[suffix][start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCut:
    """Some rows of a tensor.

    Args:
        shape: of these rows.
        covered: their elements in what the encoding covers.
        tail: their elements in the part `tail`.
    """

    shape: tuple[int, ...]
    covered: Span
    tail: Span


def cut_rows(record: TensorRecord, rows: slice | None = None) -> RowCut:
    """The elements of some rows along the first dimension.

    Args:
        record: the tensor.
        rows: a slice without step; None: all rows.

    Raises:
        UsageError: `usage`, the slice has a step, or the tensor has no dimension to slice.
    """
    shape = record.spec.shape
    if rows is not None and (not shape or rows.step not in (None, 1)):
        raise UsageError("usage", "rows are a slice without step of the first dimension", where=record.name, got=rows)
    count, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    first, last, _ = (rows or slice(None)).indices(count)
    last = max(first, last)
    old = count - record.grown_rows
    covered = Span(min(first, old) * width, min(last, old) * width)
    tail = Span((max(first, old) - old) * width, (max(last, old) - old) * width)
    return RowCut(shape=(last - first, *shape[1:]) if shape else (), covered=covered, tail=tail)


def first_planes(record: TensorRecord, planes: int | None) -> TensorRecord:
    """The record as it would be had its encoding no more than `planes` planes; None: as it is.

    Planes lie in parts of their own, and their alphas one after the other (obm-1 clauses 6.5 and 7.5).

    Raises:
        UsageError: `usage`, less than one plane.
    """
    if planes is None or not isinstance(record.params, SignParams):
        return record
    if planes < 1:
        raise UsageError("usage", "at least one plane is decoded", where=record.name, got=planes)
    return replace(record, params=replace(record.params, planes=min(planes, record.params.planes)))


def matrix_shape(record: TensorRecord, rows: int | None = None) -> tuple[int, int]:
    """Rows and columns of the matrix view of what the encoding covers.

    Args:
        record: the tensor.
        rows: rows of the view; None: the default of obm-1 clause 6.1.

    Raises:
        UsageError: `bad_shape`, the elements do not make so many rows.
    """
    numel = record.encoded_numel
    if rows is None:
        rows = default_rows(record.encoded_shape)
    if (rows < 1 or numel % rows) and (rows or numel):
        raise UsageError("bad_shape", "the tensor has no such matrix view", where=record.name, got=f"{rows} rows")
    return rows, numel // rows if rows else 0


def is_base_vector(found: TensorRecord, record: TensorRecord) -> bool:
    """Whether a record of an artifact of kind rtvq-base is one that `record` may refer to (obm-1 clause 6.7)."""
    return isinstance(found.params, AffineParams | ZeroParams) and found.encoded_shape == record.encoded_shape


def other_bytes(name: str, expected: bytes | None, got: bytes) -> BackboneMismatch:
    """What to raise for a backbone tensor whose bytes have another digest than the record's."""
    return BackboneMismatch(
        "base_digest",
        "the backbone tensor has other bytes than the expert was made against",
        where=name,
        expected=expected.hex() if expected else None,
        got=got.hex(),
        hint="use the backbone that `obm inspect` names",
    )


def other_tensor(record: TensorRecord, got: str) -> BackboneMismatch:
    """The error for a backbone tensor of another dtype or shape than the record's."""
    base = record.base
    return BackboneMismatch(
        "base_tensor",
        "the backbone tensor has another dtype or shape",
        where=record.name,
        expected=f"{base.dtype.name}{list(base.shape)}" if base else "no such tensor",
        got=got,
    )
