"""`xdelta`: ord and zigzag by hand, exact round trips, row ranges (obm-1 clause 6.9)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, random_words, record_of

from obm_format.codecs import xdelta
from obm_format.codecs.base import Span, whole
from obm_format.codecs.frames import cut_numel
from obm_format.errors import FormatError
from obm_format.kernels.words import Words
from obm_format.model import DType

FLOATS = [DType.F16, DType.BF16, DType.F32]
EXPONENT = {DType.F16: (10, 31), DType.BF16: (7, 255), DType.F32: (23, 255)}


def slow(tuned: Words, base: Words, dtype: DType, bucket: bool) -> bytes:
    """Clause 6.9 element by element, before cutting and compression (one cut)."""
    width = dtype.itemsize * 8

    def ordered(u: int) -> int:
        return u ^ (1 << (width - 1)) if not u >> (width - 1) else (1 << width) - 1 - u

    numbers = []
    for new, old in zip(tuned.tolist(), base.tolist(), strict=True):
        e = (ordered(new) - ordered(old)) % (1 << width)
        e -= (e >> (width - 1)) << width
        numbers.append(2 * e if e >= 0 else -2 * e - 1)
    if bucket:
        shift, mask = EXPONENT[dtype]
        order = sorted(range(len(numbers)), key=lambda i: (int(base[i]) >> shift) & mask)
        numbers = [numbers[i] for i in order]
    data = np.array(numbers, tuned.dtype).view(np.uint8).reshape(-1, dtype.itemsize)
    return data.T.tobytes()


def pair(seed: int, numel: int, dtype: DType) -> tuple[Words, Words]:
    base = random_words(seed, (numel,), dtype)
    tuned = base.copy()
    rng = np.random.default_rng(seed)
    tuned += rng.integers(0, 4, numel).astype(tuned.dtype)
    tuned[rng.integers(0, numel, 5)] = [0, 1 << (dtype.itemsize * 8 - 1), 1, 0, 0]
    return tuned, base


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bucket", [False, True])
def test_stream_is_that_of_the_clause(dtype: DType, bucket: bool) -> None:
    import zstandard

    tuned, base = pair(1, 999, dtype)
    encoded = xdelta.encode(tuned, base, dtype, bucket=bucket)
    raw = zstandard.ZstdDecompressor().decompress(part_bytes(encoded, "data"))
    assert raw == slow(tuned, base, dtype, bucket)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FLOATS), st.booleans(), st.integers(5, 300), st.data())
def test_any_bits_come_back(dtype: DType, bucket: bool, numel: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(numel)
    top = 1 << (dtype.itemsize * 8)
    base, tuned = (rng.integers(0, top, numel).astype(f"<u{dtype.itemsize}") for _ in range(2))
    encoded = xdelta.encode(tuned, base, dtype, bucket=bucket)
    record, parts = record_of(encoded, (numel,), dtype=dtype), MemoryParts(encoded)
    assert np.array_equal(xdelta.decode(record, parts, whole(record), base), tuned)
    start = data.draw(st.integers(0, numel - 1))
    span = Span(start, data.draw(st.integers(start + 1, numel)))
    assert np.array_equal(xdelta.decode(record, parts, span, base), tuned[span.start : span.stop])


@pytest.mark.parametrize("bucket", [False, True])
def test_several_cuts_are_independent(bucket: bool) -> None:
    dtype, numel = DType.F32, 2 * cut_numel(DType.F32) + 77
    tuned, base = pair(3, numel, dtype)
    encoded = xdelta.encode(tuned, base, dtype, bucket=bucket)
    record, parts = record_of(encoded, (numel,), dtype=dtype), MemoryParts(encoded)
    assert len(encoded.parts[0].chunks) == 3
    assert np.array_equal(xdelta.decode(record, parts, whole(record), base), tuned)
    parts.asked.clear()
    span = Span(cut_numel(dtype) + 5, 2 * cut_numel(dtype))
    assert np.array_equal(xdelta.decode(record, parts, span, base), tuned[span.start : span.stop])
    assert parts.asked == [("data", 1, 2)]


def test_buckets_shrink_a_fine_tune() -> None:
    dtype, numel = DType.BF16, 200_000
    base = random_words(1, (numel,), dtype)
    from obm_format.kernels.words import from_float32, to_float32

    noise = np.random.default_rng(2).normal(0, 3e-4, numel).astype(np.float32)
    tuned = from_float32(to_float32(base, dtype) + noise, dtype)
    plain, sorted_ = (xdelta.encode(tuned, base, dtype, bucket=bucket).nbytes for bucket in (False, True))
    assert sorted_ < plain < 0.6 * base.nbytes


def test_encoding_is_deterministic() -> None:
    tuned, base = pair(4, 10_000, DType.F16)
    first, second = (part_bytes(xdelta.encode(tuned, base, DType.F16), "data") for _ in range(2))
    assert first == second


def test_damaged_frame_is_refused_with_and_without_backbone() -> None:
    tuned, base = pair(5, 1000, DType.BF16)
    encoded = xdelta.encode(tuned, base, DType.BF16)
    record, parts = record_of(encoded, (1000,), dtype=DType.BF16), MemoryParts(encoded)
    xdelta.check(record, parts)
    parts.chunks["data"][0] = parts.chunks["data"][0][:-1]
    with pytest.raises(FormatError):
        xdelta.check(record, parts)
    with pytest.raises(FormatError):
        xdelta.decode(record, parts, whole(record), base)
