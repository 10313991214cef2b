"""`sparse`: places and values of the few elements that differ.

In mode delta the values are added to the backbone's, in mode replace they stand in their stead. Source: obm-1
clause 6.8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from obm_format.codecs.base import (
    Encoded,
    PartReader,
    Span,
    check_finite,
    empty,
    part_of,
    read_elements,
    read_words,
)
from obm_format.errors import FormatError
from obm_format.kernels.words import Float32, Words, from_float32, to_float32
from obm_format.layout import SPARSE_BLOCK
from obm_format.model import DType, SparseParams, TensorRecord

_Places = npt.NDArray[np.int64]
_BLOCKS_AT_ONCE = 64  # 4 Mi elements


def encode_delta(d: Float32, value_dtype: DType = DType.F32) -> Encoded:
    """Keep the elements of a task vector that are not 0.

    Args:
        d: float32, finite; any shape.
        value_dtype: F32, F16 or BF16; the last two round.
    """
    flat = np.ascontiguousarray(d, dtype=np.float32).reshape(-1)
    places = np.flatnonzero(flat)
    return _encode(flat.size, places, from_float32(flat[places], value_dtype), value_dtype)


def encode_replace(tuned: Words, base: Words, dtype: DType) -> Encoded:
    """Keep the elements of a fine-tune whose bits differ from the backbone's.

    Args:
        tuned: words of `dtype`.
        base: words of the same shape and dtype.
        dtype: any.
    """
    flat = tuned.reshape(-1)
    places = np.flatnonzero(flat != base.reshape(-1))
    return _encode(flat.size, places, flat[places], dtype)


def nbytes(numel: int, nnz: int, dtype: DType) -> int:
    """Bytes of the parts that `nnz` of `numel` elements need."""
    return 4 * -(-numel // SPARSE_BLOCK) + nnz * (2 + dtype.itemsize) if nnz else 0


def decode_values(record: TensorRecord, parts: PartReader, span: Span) -> Float32:
    """The float32 values of `span` in mode delta, flat.

    Raises:
        FormatError: `bad_index`, `not_finite`, `limit_exceeded`.
    """
    values: Float32 = empty(span.size, np.float32)
    for places, words in _listed(record, parts, span):
        values[places] = to_float32(words, _params(record).value_dtype)
    return values


def decode_words(record: TensorRecord, parts: PartReader, span: Span, base: Words) -> Words:
    """The rebuilt words of `span` in mode replace, flat.

    Args:
        record: of mode replace.
        parts: its parts.
        span: elements wanted.
        base: words of the whole backbone tensor, flat.

    Raises:
        FormatError: `bad_index`, `not_finite`.
    """
    words = base[span.start : span.stop].copy()
    for places, listed in _listed(record, parts, span):
        words[places] = listed
    return words


def check(record: TensorRecord, parts: PartReader) -> None:
    """Decode everything that can be decoded without a backbone.

    Raises:
        FormatError: `bad_index`, `not_finite`.
    """
    for _ in _listed(record, parts, Span(0, record.encoded_numel)):
        pass


def _encode(numel: int, places: _Places, words: Words, dtype: DType) -> Encoded:
    counts = np.bincount(places // SPARSE_BLOCK, minlength=-(-numel // SPARSE_BLOCK))
    parts = (
        part_of("counts", counts.astype("<u4")),
        part_of("index", (places % SPARSE_BLOCK).astype("<u2")),
        part_of("values", words),
    )
    params = SparseParams(nnz=places.size, value_dtype=dtype)
    return Encoded(params=params, parts=parts if places.size else ())


def _listed(record: TensorRecord, parts: PartReader, span: Span) -> Iterator[tuple[_Places, Words]]:
    """(place in `span`, word) of the listed elements, for some blocks at a time."""
    params = _params(record)
    if not params.nnz or not span.size:
        return
    ends = _block_ends(record, parts)
    for piece in span.pieces(_BLOCKS_AT_ONCE * SPARSE_BLOCK):
        first, last = piece.start // SPARSE_BLOCK, -(-piece.stop // SPARSE_BLOCK)
        run = Span(int(ends[first]), int(ends[last]))
        if not run.size:
            continue
        places = _places(record, parts, run, ends[first : last + 1] - ends[first], first)
        words = read_words(parts, "values", params.value_dtype, run)
        check_finite(words, params.value_dtype, f"{record.name}#values")
        inside = (places >= piece.start) & (places < piece.stop)
        yield places[inside] - span.start, words[inside]


def _block_ends(record: TensorRecord, parts: PartReader) -> _Places:
    """int64[blocks + 1]: how many elements are listed before each block."""
    counts = np.frombuffer(parts.part("counts"), dtype="<u4").astype(np.int64)
    # obm-1 clause 6.8: they sum to nnz; a count above its block shows when the places are out of order
    if int(counts.sum()) != _params(record).nnz:
        raise FormatError("bad_index", "the counts do not sum to nnz", where=f"{record.name}#counts")
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))


def _places(record: TensorRecord, parts: PartReader, run: Span, ends: _Places, first: int) -> _Places:
    """Flat places of the listed elements of some blocks, checked."""
    index = read_elements(parts, "index", np.dtype("<u2"), run)
    block = np.repeat(np.arange(first, first + ends.size - 1), np.diff(ends))
    places: _Places = block * SPARSE_BLOCK + index
    # obm-1 clause 6.8: strictly ascending within a block, so ascending over all
    if (np.diff(places) <= 0).any() or places[-1] >= record.encoded_numel:
        raise FormatError("bad_index", "a place is out of order or range", where=f"{record.name}#index")
    return places


def _params(record: TensorRecord) -> SparseParams:
    assert isinstance(record.params, SparseParams)  # noqa: S101 - the catalogue dispatches on it
    return record.params
