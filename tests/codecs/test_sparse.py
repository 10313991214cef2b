"""`sparse`: blocks, both modes, row ranges, refusals (obm-1 clause 6.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, random_words, record_of

from obm_format.codecs import sparse
from obm_format.codecs.base import Span, whole
from obm_format.errors import FormatError
from obm_format.kernels.words import Float32
from obm_format.layout import SPARSE_BLOCK
from obm_format.model import DType, Mode, TensorRecord

N = 3 * SPARSE_BLOCK + 100


def few(seed: int = 0, count: int = 500) -> Float32:
    rng = np.random.default_rng(seed)
    d = np.zeros(N, np.float32)
    d[rng.choice(N, count, replace=False)] = rng.normal(size=count)
    d[SPARSE_BLOCK - 1] = d[SPARSE_BLOCK] = d[-1] = 7
    d[2 * SPARSE_BLOCK : 3 * SPARSE_BLOCK] = 0  # an empty block
    return d


def test_layout_of_two_elements() -> None:
    d = np.zeros(SPARSE_BLOCK + 3, np.float32)
    d[5], d[SPARSE_BLOCK + 2] = 1.5, -2
    encoded = sparse.encode_delta(d)
    assert part_bytes(encoded, "counts") == b"\1\0\0\0\1\0\0\0"
    assert part_bytes(encoded, "index") == b"\5\0\2\0"
    assert part_bytes(encoded, "values") == np.array([1.5, -2], "<f4").tobytes()
    assert encoded.nbytes == sparse.nbytes(d.size, 2, DType.F32)


def test_nothing_listed_has_no_parts() -> None:
    encoded = sparse.encode_delta(np.zeros((2, 3), np.float32))
    record = record_of(encoded, (2, 3))
    assert encoded.parts == ()
    assert sparse.nbytes(6, 0, DType.F32) == 0
    assert not sparse.decode_values(record, MemoryParts(encoded), whole(record)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, N), st.integers(0, N), st.sampled_from([DType.F32, DType.F16, DType.BF16]))
def test_delta_span_is_the_slice_of_the_whole(a: int, b: int, dtype: DType) -> None:
    start, stop = sorted((a, b))
    d = few()
    encoded = sparse.encode_delta(d, dtype)
    record = record_of(encoded, (N,))
    values = sparse.decode_values(record, MemoryParts(encoded), whole(record))
    assert np.allclose(values, d, rtol=0.01)
    assert dtype is not DType.F32 or np.array_equal(values, d)
    found = sparse.decode_values(record, MemoryParts(encoded), Span(start, stop))
    assert np.array_equal(found, values[start:stop])


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, DType.I64])
def test_replace_gives_the_words_back(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    base = random_words(1, (N,), DType.BF16 if dtype is DType.BF16 else DType.F32)
    base = base.astype({2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize])
    tuned = base.copy()
    tuned[rng.choice(N, 300, replace=False)] ^= 1
    tuned[3] ^= 1 << (dtype.itemsize * 8 - 1)
    encoded = sparse.encode_replace(tuned, base, dtype)
    record = record_of(encoded, (N,), dtype=dtype, mode=Mode.REPLACE)
    parts = MemoryParts(encoded)
    assert np.array_equal(sparse.decode_words(record, parts, whole(record), base), tuned)
    span = Span(SPARSE_BLOCK - 3, 2 * SPARSE_BLOCK + 9)
    assert np.array_equal(sparse.decode_words(record, parts, span, base), tuned[span.start : span.stop])
    assert not np.shares_memory(sparse.decode_words(record, parts, span, base), base)


def test_span_reads_only_its_blocks() -> None:
    encoded = sparse.encode_delta(few())
    parts, record = MemoryParts(encoded), record_of(encoded, (N,))
    sparse.decode_values(record, parts, Span(0, 10))
    first = int(np.frombuffer(part_bytes(encoded, "counts"), "<u4")[0])
    assert parts.asked == [("index", 0, 2 * first), ("values", 0, 4 * first)]


def damaged(suffix: str, dtype: DType, change: Callable[[Any], None]) -> tuple[TensorRecord, MemoryParts]:
    encoded = sparse.encode_delta(few())
    parts = MemoryParts(encoded)
    values = np.frombuffer(parts.data[suffix], dtype).copy()
    change(values)
    parts.data[suffix] = bytearray(values.tobytes())
    return record_of(encoded, (N,)), parts


def swap(values: npt.NDArray[Any]) -> None:
    values[[0, 1]] = values[[1, 0]]


def repeat(values: npt.NDArray[Any]) -> None:
    values[1] = values[0]


def move_count(values: npt.NDArray[Any]) -> None:
    values[0] += 1
    values[1] -= 1


def too_many(values: npt.NDArray[Any]) -> None:
    values[0] += 1


def overfull(values: npt.NDArray[Any]) -> None:
    values[0] -= 100
    values[3] += 100  # the last block has room for 100


def last_out_of_range(values: npt.NDArray[Any]) -> None:
    values[-1] = 100


def wrapping(values: npt.NDArray[Any]) -> None:
    values[0] = np.uint32(2**32 - 1)


@pytest.mark.parametrize(
    ("suffix", "dtype", "change"),
    [
        ("index", "<u2", swap),
        ("index", "<u2", repeat),
        ("index", "<u2", last_out_of_range),
        ("counts", "<u4", move_count),
        ("counts", "<u4", too_many),
        ("counts", "<u4", overfull),
        ("counts", "<u4", wrapping),
    ],
)
def test_bad_places_are_refused(suffix: str, dtype: DType, change: Callable[[Any], None]) -> None:
    record, parts = damaged(suffix, dtype, change)
    for act in (
        lambda: sparse.decode_values(record, parts, whole(record)),
        lambda: sparse.check(record, parts),
    ):
        with pytest.raises(FormatError) as error:
            act()
        assert error.value.reason == "bad_index"


def test_stored_infinity_is_refused() -> None:
    def infinite(values: npt.NDArray[Any]) -> None:
        values[-1] = np.inf

    record, parts = damaged("values", "<f4", infinite)
    with pytest.raises(FormatError) as error:
        sparse.decode_values(record, parts, whole(record))
    assert error.value.reason == "not_finite"
