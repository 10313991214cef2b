"""What all codecs share: the parts they fill, the parts they read, and spans of elements.

A codec turns an array into `Encoded` and reads a record back through a `PartReader`. Decoding goes by spans
of the flat, row-major elements that the encoding covers (obm-1 clause 9.1). Never opens files, never sees the
manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from obm_format.errors import FormatError
from obm_format.kernels.words import Words, first_not_finite, words_dtype
from obm_format.layout import PartData
from obm_format.model import DType, Params, TensorRecord

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One tensor as a codec leaves it.

    Args:
        params: the encoding's parameters.
        parts: the parts in file order; parts of zero bytes are left out.
        alphas: the record's bytes of the alpha pool (obm-1 clause 7.5).
    """

    params: Params
    parts: tuple[PartData, ...]
    alphas: bytes = b""

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file, without padding, digests and header."""
        frames = sum(36 * len(part.chunks) for part in self.parts if part.framed)
        return sum(part.nbytes for part in self.parts) + frames + len(self.alphas)


class FrameInfo(Protocol):
    """One zstd frame of a part, as the frame table states it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed frame."""
        ...


class PartReader(Protocol):
    """The parts of one record. What it returns has been verified against its digest."""

    def part(self, suffix: str) -> memoryview:
        """The whole part, without padding."""
        ...

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an unframed part."""
        ...

    def frames(self, suffix: str) -> Sequence[FrameInfo]:
        """The frames of a framed part, in order."""
        ...

    def frame(self, suffix: str, index: int) -> bytes:
        """One compressed frame."""
        ...

    def alphas(self) -> bytes:
        """The record's bytes of the alpha pool."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """Flat, row-major elements [start, stop) of what an encoding covers."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def pieces(self, size: int) -> Iterator[Span]:
        """The span in pieces that end on multiples of `size`."""
        start = self.start
        while start < self.stop:
            stop = min(self.stop, (start // size + 1) * size)
            yield Span(start, stop)
            start = stop


def whole(record: TensorRecord) -> Span:
    """All elements that the encoding of `record` covers."""
    return Span(0, record.encoded_numel)


def part_of(suffix: str, array: npt.NDArray[Any]) -> PartData:
    """The bytes of a C-contiguous array as a part; the array is not copied."""
    return PartData(suffix, (array.reshape(-1).view(np.uint8).data,))


def tail_part(tail: Words) -> PartData:
    """The part that carries the grown rows of a tensor whole (obm-1 clause 5.6).

    Args:
        tail: words of the rows beyond the backbone's, C-contiguous.
    """
    return part_of("tail", tail)


def with_tail(encoded: Encoded, tail: Words) -> Encoded:
    """`encoded`, which covers the backbone's rows, with the grown rows behind it."""
    return replace(encoded, parts=(*encoded.parts, tail_part(tail))) if tail.size else encoded


def read_elements(parts: PartReader, suffix: str, dtype: np.dtype[Any], span: Span) -> npt.NDArray[Any]:
    """Elements [start, stop) of an unframed part that is an array of `dtype`; read-only."""
    start, stop = span.start * dtype.itemsize, span.stop * dtype.itemsize
    return np.frombuffer(parts.part_range(suffix, start, stop), dtype=dtype)


def read_words(parts: PartReader, suffix: str, dtype: DType, span: Span) -> Words:
    """Words [start, stop) of an unframed part."""
    return read_elements(parts, suffix, words_dtype(dtype), span)


def empty(numel: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A flat array of `numel` zeros, or a refusal when no machine could hold it.

    Raises:
        FormatError: `limit_exceeded`.
    """
    try:
        return np.zeros(numel, dtype=dtype)
    except (MemoryError, ValueError) as error:
        raise FormatError(
            "limit_exceeded",
            "the elements asked for do not fit into memory",
            got=f"{numel} elements",
            hint="decode by row ranges",
        ) from error


def check_finite(words: Words, dtype: DType, where: str) -> None:
    """Refuse stored NaN and infinity in the dtypes that obm computes with.

    Raises:
        FormatError: `not_finite`, with the flat index.
    """
    # obm-1 clause 9.4
    if not dtype.is_float:
        return
    index = first_not_finite(words, dtype)
    if index is not None:
        raise FormatError("not_finite", f"element {index} is NaN or infinite", where=where)
