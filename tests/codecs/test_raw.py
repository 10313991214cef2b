"""`raw`: plain and framed elements, the 3 % rule, row ranges (obm-1 clauses 6.6, 8 and 11.7)."""

from __future__ import annotations

import numpy as np
import pytest
from memory_parts import MemoryParts, random_words, record_of

from obm_format.codecs import raw
from obm_format.codecs.base import Span, whole
from obm_format.codecs.frames import cut_numel
from obm_format.errors import FormatError
from obm_format.kernels.words import words_dtype
from obm_format.model import DType, Mode


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("framed", [False, True])
def test_words_of_every_dtype_come_back(dtype: DType, framed: bool) -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(0, 60, (7, 30)).astype(words_dtype(dtype))
    encoded = raw.encode(words, dtype, framed=framed)
    record = record_of(encoded, (7, 30), dtype=dtype, mode=Mode.ADDED)
    found = raw.decode_words(record, MemoryParts(encoded), whole(record))
    assert found.dtype == words.dtype
    assert np.array_equal(found, words.reshape(-1))
    assert np.array_equal(raw.decode_words(record, MemoryParts(encoded), Span(3, 99)), found[3:99])


def test_frames_are_used_where_they_bring_three_per_cent() -> None:
    weights = random_words(1, (100, 100), DType.BF16)
    assert raw.encode(weights, DType.BF16).params.zstd_nbytes is not None
    dense = np.frombuffer(np.random.default_rng(2).bytes(20_000), np.uint16)
    assert raw.encode(dense, DType.U16).params.zstd_nbytes is None
    assert raw.pays(97, 100)
    assert not raw.pays(98, 100)


def test_framed_span_reads_its_cut_only() -> None:
    numel = cut_numel(DType.F32) * 2
    words = np.zeros(numel, np.uint32)
    words[::7] = 1
    encoded = raw.encode(words, DType.F32)
    record, parts = record_of(encoded, (numel,), mode=Mode.REPLACE), MemoryParts(encoded)
    found = raw.decode_words(record, parts, Span(numel - 10, numel))
    assert np.array_equal(found, words[-10:])
    assert parts.asked == [("data", 1, 2)]


@pytest.mark.parametrize("framed", [False, True])
def test_stored_nan_is_refused_in_float_dtypes_only(framed: bool) -> None:
    words = np.array([0, 0x7FC0, 1], np.uint16)
    for dtype, refused in ((DType.BF16, True), (DType.U16, False)):
        encoded = raw.encode(words, dtype, framed=framed)
        record = record_of(encoded, (3,), dtype=dtype, mode=Mode.ADDED)
        if refused:
            with pytest.raises(FormatError) as error:
                raw.decode_words(record, MemoryParts(encoded), whole(record))
            assert error.value.reason == "not_finite"
        else:
            assert raw.decode_words(record, MemoryParts(encoded), whole(record)).tolist() == words.tolist()


def test_delta_values_are_widened() -> None:
    d = np.array([[0.5, -2]], np.float32)
    encoded = raw.encode(d.astype(np.float16).view(np.uint16), DType.F16, framed=False)
    record = record_of(encoded, (1, 2))
    assert raw.decode_values(record, MemoryParts(encoded), whole(record)).tolist() == [0.5, -2]


def test_tensor_without_elements_has_no_part() -> None:
    encoded = raw.encode(np.zeros((0, 4), np.uint16), DType.F16)
    record = record_of(encoded, (0, 4), dtype=DType.F16, mode=Mode.ADDED)
    assert encoded.parts == ()
    assert raw.decode_words(record, MemoryParts(encoded), whole(record)).size == 0
