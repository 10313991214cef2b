"""`affine`, `rtvq` and code packing: worked TVQ cases, round trips, refusals (obm-1 clauses 6.6, 11.6)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, record_of

from obm_format.codecs import affine, rtvq
from obm_format.codecs.base import Bytes, Encoded, Span, whole
from obm_format.codecs.packing import pack_codes, unpack_codes
from obm_format.errors import CheckpointError, FormatError, UsageError
from obm_format.kernels.words import Float32
from obm_format.layout import packed_row_nbytes

X = np.array([[-1, -0.2, 0, 0.5, 2]], dtype=np.float32)


def decode(encoded: Encoded, shape: tuple[int, ...], span: Span | None = None) -> Float32:
    record = record_of(encoded, shape)
    return affine.decode(record, MemoryParts(encoded), span or whole(record))


def codes_of(encoded: Encoded, cols: int) -> Bytes:
    bits = encoded.params.bits
    rows = encoded.params.rows
    packed = np.frombuffer(part_bytes(encoded, "codes"), np.uint8).reshape(rows, packed_row_nbytes(cols, bits))
    return unpack_codes(packed, cols, bits, "codes")


@pytest.mark.parametrize(
    ("bits", "scale", "zero", "codes"),
    [
        (2, 1, 1, [0, 1, 1, 2, 3]),
        (3, np.float32(7) * (np.float32(1) / np.float32(3)), 2, [0, 2, 2, 3, 7]),
        (4, 5, 5, [0, 4, 5, 8, 15]),
        (8, 85, 85, [0, 68, 85, 128, 255]),
    ],
)
def test_worked_cases_q1_to_q4(bits: int, scale: float, zero: float, codes: list[int]) -> None:
    encoded = affine.encode(X, bits=bits, rows=1)
    assert np.frombuffer(encoded.alphas, "<f4").tolist() == [scale, zero]
    assert codes_of(encoded, 5).tolist() == [codes]
    expected = (np.array(codes, np.float32) - np.float32(zero)) / np.float32(scale)
    assert np.array_equal(decode(encoded, (1, 5)), expected)


@pytest.mark.parametrize("bits", affine.BITS)
def test_values_are_those_of_the_formula_in_torch(bits: int) -> None:
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(bits)
    for numbers in (draw.normal(size=(33, 70)), draw.standard_t(3, (5, 9)) * 1e-20, draw.normal(3, 0.1, (128, 64))):
        d = numbers.astype(np.float32)
        x = torch.from_numpy(d)
        s = (2**bits - 1) / (x.max() - x.min())
        z = -torch.round(s * x.min())
        q = torch.round(s * x + z).clamp(0, 2**bits - 1)
        encoded = affine.encode(d, bits=bits, rows=d.shape[0])
        assert np.frombuffer(encoded.alphas, "<f4").tolist() == [s.item(), z.item()]
        assert np.array_equal(decode(encoded, d.shape).reshape(d.shape), ((q - z) / s).numpy())


def test_negative_values_have_a_zero_outside_the_codes_q5() -> None:
    encoded = affine.encode(np.array([-2, -1.25, -1], np.float32), bits=2, rows=1)
    assert np.frombuffer(encoded.alphas, "<f4").tolist() == [3, 6]
    assert codes_of(encoded, 3).tolist() == [[0, 2, 3]]
    assert decode(encoded, (3,)).tolist() == [-2, np.float32(-4 / 3), -1]


@pytest.mark.parametrize("constant", [0.0, -0.0, 0.3, -7.0, 1e-45, 3e38])
def test_constant_is_exact_q6(constant: float) -> None:
    encoded = affine.encode(np.full((2, 3), constant, np.float32), bits=3, rows=2)
    assert np.frombuffer(encoded.alphas, "<f4").tolist() == [1, -np.float32(constant)]
    assert not any(part_bytes(encoded, "codes"))
    assert decode(encoded, (2, 3)).tolist() == [np.float32(constant)] * 6


@pytest.mark.parametrize("d", [[0.0, 1e-45], [-3e38, 3e38]])
def test_range_without_finite_positive_multiplier_is_constant(d: list[float]) -> None:
    encoded = affine.encode(np.array(d, np.float32), bits=8, rows=1)
    assert decode(encoded, (2,)).tolist() == [np.float32(d[0])] * 2


@pytest.mark.parametrize(("bits", "nbytes"), [(2, 2), (3, 2), (4, 3), (8, 5)])
def test_five_codes_are_really_packed_q7(bits: int, nbytes: int) -> None:
    assert len(part_bytes(affine.encode(X, bits=bits, rows=1), "codes")) == nbytes


def test_codes_are_packed_least_significant_bit_first() -> None:
    assert pack_codes(np.array([[1, 2, 4]], np.uint8), 3).tolist() == [[0b00_010_001, 0b1]]
    assert pack_codes(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(affine.BITS), st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
def test_packing_round_trips(bits: int, rows: int, cols: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, packed_row_nbytes(cols, bits))
    assert np.array_equal(unpack_codes(packed, cols, bits, "codes"), codes)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_span_is_the_slice_of_the_whole(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from(affine.BITS))
    rows, cols = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 60))
    d = np.random.default_rng(cols).normal(size=(rows, cols)).astype(np.float32)
    encoded = affine.encode(d, bits=bits, rows=rows)
    values = decode(encoded, d.shape)
    step = (d.max() - d.min()) / ((1 << bits) - 1)
    assert np.abs(values - d.reshape(-1)).max() <= step * 1.01
    start = data.draw(st.integers(0, d.size - 1))
    span = Span(start, data.draw(st.integers(start + 1, d.size)))
    assert np.array_equal(decode(encoded, d.shape, span), values[span.start : span.stop])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_set_pad_bit_is_refused(bits: int) -> None:
    encoded = affine.encode(X, bits=bits, rows=1)
    parts, record = MemoryParts(encoded), record_of(encoded, (1, 5))
    parts.data["codes"][-1] |= 0x80
    with pytest.raises(FormatError) as error:
        affine.decode(record, parts, whole(record))
    assert error.value.reason == "pad_bits_set"


@pytest.mark.parametrize("pair", [(0, 0), (-1, 0), (np.inf, 0), (np.nan, 0), (1, np.inf), (1, np.nan), (-0.0, 1)])
def test_bad_multiplier_or_zero_is_refused(pair: tuple[float, float]) -> None:
    encoded = affine.encode(X, bits=2, rows=1)
    parts, record = MemoryParts(encoded), record_of(encoded, (1, 5))
    parts.pool = np.array(pair, "<f4").tobytes()
    with pytest.raises(FormatError) as error:
        affine.decode(record, parts, whole(record))
    assert error.value.reason == "bad_code"


def test_code_that_stands_for_infinity_is_refused() -> None:
    encoded = affine.encode(X, bits=2, rows=1)
    parts, record = MemoryParts(encoded), record_of(encoded, (1, 5))
    parts.pool = np.array([1e-39, 0.0], "<f4").tobytes()
    with pytest.raises(FormatError) as error:
        affine.decode(record, parts, whole(record))
    assert error.value.reason == "not_finite"


def test_other_bits_and_infinite_input_are_refused() -> None:
    with pytest.raises(UsageError):
        affine.encode(X, bits=5, rows=1)
    with pytest.raises(CheckpointError):
        affine.encode(np.array([[np.nan, 1]], np.float32), bits=4, rows=1)


def test_rtvq_is_an_offset_on_the_base_vector() -> None:
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(4, 30)).astype(np.float32)
    d = reference + rng.normal(0, 0.01, size=(4, 30)).astype(np.float32)
    encoded = rtvq.encode(d, reference, bits=2, rows=4, ref=1)
    record, parts = record_of(encoded, (4, 30)), MemoryParts(encoded)
    assert (encoded.params.bits, encoded.params.ref) == (2, 1)
    values = rtvq.decode(record, parts, whole(record), reference.reshape(-1))
    assert np.abs(values - d.reshape(-1)).max() < 0.03
    assert np.array_equal(values, affine.decode(record, parts, whole(record)) + reference.reshape(-1))
    span = Span(31, 77)
    assert np.array_equal(rtvq.decode(record, parts, span, reference.reshape(-1)[31:77]), values[31:77])


def test_rtvq_sum_that_overflows_is_refused() -> None:
    reference = np.full(4, 3e38, np.float32)
    encoded = rtvq.encode(reference, -reference / 8, bits=2, rows=1)
    record = record_of(encoded, (4,))
    with pytest.raises(FormatError) as error:
        rtvq.decode(record, MemoryParts(encoded), whole(record), reference)
    assert error.value.reason == "not_finite"
