"""Every codec on any finite input: exact ones give the bits back, lossy ones the values of the formula, rows the slice.

The formulas are spelt out element by element here, from what the file stores (obm-1 clause 6).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, record_of

from obm_format.codecs import affine, catalogue, raw, rtvq, sign1, sparse, tern1, xdelta
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, Span, whole
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.words import Float32, Words, to_float32
from obm_format.model import AlphaRule, DType, Granularity, Mode, TensorRecord

KERNELS = ReferenceKernels()
FLOATS = [DType.F16, DType.BF16, DType.F32]
EXPONENT = {DType.F16: 0x7C00, DType.BF16: 0x7F80, DType.F32: 0x7F80_0000}
CHOICES = [
    AlphaChoice(granularity=granularity, group=64 if granularity is Granularity.GROUP else 0, rule=rule)
    for granularity in (Granularity.MATRIX, Granularity.ROW, Granularity.GROUP)
    for rule in AlphaRule
]
many = settings(max_examples=25, deadline=None)


@st.composite
def finite_words(draw: st.DrawFn, dtype: DType, numel: int) -> Words:
    """Any finite bits; where a number would not be finite it is one of the largest."""
    nbytes = numel * dtype.itemsize
    words = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), f"<u{dtype.itemsize}").copy()
    ones = words.dtype.type(EXPONENT[dtype])
    words[(words & ones) == ones] ^= ones & (~ones + words.dtype.type(1))
    edges = [0, 1, ones - 1, 1 << (8 * dtype.itemsize - 1)]  # both zeros, the least and the largest number
    place = draw(st.integers(0, numel - 1))
    words[place] = draw(st.sampled_from(edges))
    return words


@st.composite
def matrices(draw: st.DrawFn, most: float = 2.0**60) -> Float32:
    """float32 [rows, cols], not all zero, with zeros, subnormals and equal magnitudes among the elements."""
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    some = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 0.5])
    element = st.one_of(some, st.floats(-most, most, width=32, allow_nan=False))
    few = draw(st.lists(element, min_size=1, max_size=12))
    order = np.random.default_rng(draw(st.integers(0, 1 << 16))).integers(0, len(few), (rows, cols))
    values = np.array(few, np.float32)[order]
    assume(values.any())
    return values


def spans(data: st.DataObject, numel: int) -> Span:
    start = data.draw(st.integers(0, numel - 1))
    return Span(start, data.draw(st.integers(start + 1, numel)))


# --- exact ---


def xdelta_plain(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return Mode.DELTA, xdelta.encode(tuned, base, dtype)


def xdelta_bucket(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return Mode.DELTA, xdelta.encode(tuned, base, dtype, bucket=True)


def sparse_replace(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return Mode.REPLACE, sparse.encode_replace(tuned, base, dtype)


def raw_plain(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return Mode.REPLACE, raw.encode(tuned, dtype, framed=False)


def raw_framed(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return Mode.REPLACE, raw.encode(tuned, dtype, framed=True)


def smallest(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    return catalogue.encode_exact(tuned, base, dtype, dtype)


@pytest.mark.parametrize("encode", [xdelta_plain, xdelta_bucket, sparse_replace, raw_plain, raw_framed, smallest])
@pytest.mark.parametrize("kernels", ["reference", "numba"])
@many
@given(st.sampled_from(FLOATS), st.integers(1, 60), st.data())
def test_exact_codecs_give_the_bits_back(
    encode: Callable[[Words, Words, DType], tuple[Mode, Encoded]],
    kernels: str,
    dtype: DType,
    numel: int,
    data: st.DataObject,
) -> None:
    if kernels == "numba":
        pytest.importorskip("numba", reason="the fast kernels need numba")
    tuned, base = data.draw(finite_words(dtype, numel)), data.draw(finite_words(dtype, numel))
    assume(not np.array_equal(tuned, base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBM_KERNELS", kernels)
        mode, encoded = encode(tuned, base, dtype)
        record, parts = record_of(encoded, (numel,), dtype=dtype, mode=mode), MemoryParts(encoded)
        assert np.array_equal(catalogue.decode_words(record, parts, whole(record), base), tuned)
        span = spans(data, numel)
        assert np.array_equal(catalogue.decode_words(record, parts, span, base), tuned[span.start : span.stop])


# --- lossy ---


def decoded(record: TensorRecord, encoded: Encoded, data: st.DataObject, reference: Float32 | None = None) -> Float32:
    """All values, after some of them were seen to be the slice."""
    parts, everything, part = MemoryParts(encoded), whole(record), spans(data, record.encoded_numel)
    flat = None if reference is None else reference.reshape(-1)
    values = catalogue.decode_values(record, parts, everything, kernels=KERNELS, reference=flat)
    cut = None if flat is None else flat[part.start : part.stop]
    found = catalogue.decode_values(record, parts, part, kernels=KERNELS, reference=cut)
    assert found.tobytes() == values[part.start : part.stop].tobytes()
    return values


def alphas_of(encoded: Encoded, shape: tuple[int, int], plane: int) -> Float32:
    """The alpha of every element of one plane, from the stored bytes."""
    rows, cols = shape
    layout = encoded.params.alpha  # type: ignore[union-attr] # only those with alphas come here
    stored = np.frombuffer(encoded.alphas, "<f2" if layout.dtype is DType.F16 else "<f4").astype(np.float32)
    per_row = {Granularity.MATRIX: 0, Granularity.ROW: 1, Granularity.GROUP: -(-cols // 64)}[layout.granularity]
    count = rows * per_row or 1
    mine = stored[plane * count : (plane + 1) * count]
    place = [[r * per_row + (c // 64 if per_row > 1 else 0) for c in range(cols)] for r in range(rows)]
    return mine[np.array(place)]


def bit(encoded: Encoded, suffix: str, shape: tuple[int, int]) -> np.ndarray:
    packed = np.frombuffer(part_bytes(encoded, suffix), np.uint8).reshape(shape[0], -1)
    return np.array([[packed[r, c // 8] >> (c % 8) & 1 for c in range(shape[1])] for r in range(shape[0])], bool)


@many
@given(matrices(), st.sampled_from(CHOICES), st.integers(1, 3), st.data())
def test_sign1_is_plus_or_minus_alpha_summed_over_planes(
    d: Float32, choice: AlphaChoice, planes: int, data: st.DataObject
) -> None:
    encoded = sign1.encode(d, choice, rows=d.shape[0], planes=planes, kernels=KERNELS)
    expected = np.zeros(d.shape, np.float32)
    for plane in range(planes):
        alpha, is_set = alphas_of(encoded, d.shape, plane), bit(encoded, f"bits{plane}", d.shape)
        value = np.where(is_set | (alpha == 0), alpha, -alpha)
        expected = value if plane == 0 else expected + value
    assert np.array_equal(bit(encoded, "bits0", d.shape), d >= 0)
    assert decoded(record_of(encoded, d.shape), encoded, data).tobytes() == expected.tobytes()


@many
@given(matrices(), st.sampled_from(CHOICES), st.data())
def test_tern1_is_plus_or_minus_alpha_where_the_mask_is_set(
    d: Float32, choice: AlphaChoice, data: st.DataObject
) -> None:
    encoded = tern1.encode(d, choice, rows=d.shape[0], kernels=KERNELS)
    alpha, is_set, kept = (
        alphas_of(encoded, d.shape, 0), bit(encoded, "bits0", d.shape), bit(encoded, "mask", d.shape),
    )  # fmt: skip
    expected = np.where(kept, np.where(is_set, alpha, -alpha), np.float32(0))
    assert np.array_equal(is_set[kept], d[kept] > 0)
    assert np.array_equal(decoded(record_of(encoded, d.shape), encoded, data), expected.reshape(-1))


def affine_values(encoded: Encoded, shape: tuple[int, int], bits: int) -> Float32:
    """(q - z) / s, with the codes read bit by bit."""
    scale, zero = np.frombuffer(encoded.alphas, "<f4")
    rows, cols = shape
    stride = -(-cols * bits // 8)
    packed = int.from_bytes(part_bytes(encoded, "codes"), "little")
    codes = [[packed >> (8 * r * stride + bits * c) & ((1 << bits) - 1) for c in range(cols)] for r in range(rows)]
    return (np.array(codes, np.float32) - zero) / scale


@many
@given(matrices(), st.sampled_from(affine.BITS), st.data())
def test_affine_is_the_code_less_zero_over_scale(d: Float32, bits: int, data: st.DataObject) -> None:
    encoded = affine.encode(d, bits=bits, rows=d.shape[0])
    expected = affine_values(encoded, d.shape, bits)
    assert decoded(record_of(encoded, d.shape), encoded, data).tobytes() == expected.tobytes()


@many
@given(matrices(2.0**20), st.sampled_from(affine.BITS), st.integers(0, 99), st.data())
def test_rtvq_adds_the_base_vector(d: Float32, bits: int, seed: int, data: st.DataObject) -> None:
    reference = np.random.default_rng(seed).normal(size=d.shape).astype(np.float32)
    encoded = rtvq.encode(d, reference, bits=bits, rows=d.shape[0])
    expected = affine_values(encoded, d.shape, bits) + reference
    assert decoded(record_of(encoded, d.shape), encoded, data, reference).tobytes() == expected.tobytes()


@many
@given(matrices(), st.data())
def test_sparse_and_raw_deltas_keep_every_value(d: Float32, data: st.DataObject) -> None:
    found = decoded(record_of(sparse.encode_delta(d), d.shape), sparse.encode_delta(d), data)
    assert np.array_equal(found, d.reshape(-1))
    for framed in (False, True):
        encoded = raw.encode(d.view(np.uint32), DType.F32, framed=framed)
        values = decoded(record_of(encoded, d.shape), encoded, data)
        assert values.tobytes() == to_float32(d.view(np.uint32), DType.F32).tobytes()
