"""The catalogue: smallest exact encoding, dispatch, checks without a backbone (obm-1 clauses 5.6, 11.7)."""

from __future__ import annotations

import numpy as np
import pytest
from memory_parts import MemoryParts, random_words, record_of

from obm_format.codecs import affine, catalogue, raw, sign1, sparse, tern1, xdelta
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, Span, whole
from obm_format.errors import FormatError, UsageError
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.words import Words, from_float32, to_float32
from obm_format.model import DType, Mode, RawParams, RtvqParams, SparseParams, XdeltaParams, ZeroParams

KERNELS = ReferenceKernels()
SHAPE = (64, 256)


def nudged(base: Words, dtype: DType, sigma: float, fraction: float = 1.0) -> Words:
    rng = np.random.default_rng(9)
    noise = rng.normal(0, sigma, base.shape) * (rng.random(base.shape) < fraction)
    return from_float32(to_float32(base, dtype) + noise.astype(np.float32), dtype)


def rebuilt(mode: Mode, encoded: Encoded, tuned: Words, base: Words | None, dtype: DType) -> Words:
    base_shape = None if base is None else base.shape
    record = record_of(encoded, tuned.shape, dtype=dtype, mode=mode, base_shape=base_shape)
    flat = None if base is None else base.reshape(-1)
    words = catalogue.decode_words(record, MemoryParts(encoded), whole(record), flat)
    tail = MemoryParts(encoded).data.get("tail", b"")
    return np.concatenate((words, np.frombuffer(bytes(tail), words.dtype))).reshape(tuned.shape)


def test_equal_bytes_are_zero() -> None:
    base = random_words(1, SHAPE, DType.BF16)
    mode, encoded = catalogue.encode_exact(base.copy(), base, DType.BF16, DType.BF16)
    assert (mode, encoded.params, encoded.parts) == (Mode.DELTA, ZeroParams(), ())


def test_other_bits_of_zero_are_not_zero() -> None:
    base = np.zeros(100, np.uint16)
    tuned = base.copy()
    tuned[7] = 0x8000
    mode, encoded = catalogue.encode_exact(tuned, base, DType.BF16, DType.BF16)
    assert not isinstance(encoded.params, ZeroParams)
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, DType.BF16), tuned)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_fine_tune_becomes_xdelta(dtype: DType) -> None:
    base = random_words(1, SHAPE, dtype)
    tuned = nudged(base, dtype, 1e-3)
    mode, encoded = catalogue.encode_exact(tuned, base, dtype, dtype)
    assert mode is Mode.DELTA
    assert isinstance(encoded.params, XdeltaParams)
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, dtype), tuned)


def test_few_changed_elements_become_sparse() -> None:
    base = random_words(1, SHAPE, DType.BF16)
    tuned = base.copy()
    tuned[5, 5] ^= 1
    mode, encoded = catalogue.encode_exact(tuned, base, DType.BF16, DType.BF16)
    assert mode is Mode.REPLACE
    assert encoded.params == SparseParams(nnz=1, value_dtype=DType.BF16)
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, DType.BF16), tuned)


def test_unrelated_words_become_plain_raw() -> None:
    rng = np.random.default_rng(1)
    base, tuned = (np.frombuffer(rng.bytes(20_000), np.uint16) & 0xBFFF for _ in range(2))
    mode, encoded = catalogue.encode_exact(tuned, base, DType.BF16, DType.BF16)
    assert mode is Mode.REPLACE
    assert encoded.params == RawParams(value_dtype=DType.BF16)


def test_new_constant_tensor_becomes_framed_raw() -> None:
    base = random_words(1, SHAPE, DType.F32)
    tuned = np.full(SHAPE, 0x3F800000, np.uint32)
    mode, encoded = catalogue.encode_exact(tuned, base, DType.F32, DType.F32)
    assert mode is Mode.REPLACE
    assert encoded.params.zstd_nbytes is not None
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, DType.F32), tuned)


def test_integers_are_never_xdelta() -> None:
    base = np.arange(5000, dtype=np.uint64)
    tuned = base + np.uint64(1)
    mode, encoded = catalogue.encode_exact(tuned, base, DType.I64, DType.I64)
    assert isinstance(encoded.params, RawParams | SparseParams)
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, DType.I64), tuned)


def test_tensor_without_counterpart_is_added() -> None:
    tuned = random_words(1, (3, 5), DType.F32)
    mode, encoded = catalogue.encode_exact(tuned, None, DType.F32, None)
    assert mode is Mode.ADDED
    assert np.array_equal(rebuilt(mode, encoded, tuned, None, DType.F32), tuned)


@pytest.mark.parametrize(
    ("shape", "base_dtype"), [(SHAPE, DType.F16), ((64, 255), DType.BF16), ((63, 256), DType.BF16)]
)
def test_other_dtype_or_shape_is_replaced(shape: tuple[int, ...], base_dtype: DType) -> None:
    base, tuned = random_words(1, SHAPE, base_dtype), random_words(2, shape, DType.BF16)
    mode, encoded = catalogue.encode_exact(tuned, base, DType.BF16, base_dtype)
    assert mode is Mode.REPLACE
    assert isinstance(encoded.params, RawParams)


def test_grown_tensor_has_old_rows_as_delta_and_new_rows_whole() -> None:
    base = random_words(1, SHAPE, DType.BF16)
    tuned = np.concatenate((nudged(base, DType.BF16, 1e-3), random_words(3, (2, 256), DType.BF16)))
    mode, encoded = catalogue.encode_exact(tuned, base, DType.BF16, DType.BF16)
    assert mode is Mode.DELTA
    assert [part.suffix for part in encoded.parts] == ["data", "tail"]
    assert np.array_equal(rebuilt(mode, encoded, tuned, base, DType.BF16), tuned)


def test_scalars_and_empty_tensors_are_stored() -> None:
    scalar, other = np.array(5, np.uint32), np.array(6, np.uint32)
    mode, encoded = catalogue.encode_exact(scalar, other, DType.F32, DType.F32)
    assert np.array_equal(rebuilt(mode, encoded, scalar, other, DType.F32), scalar)
    none = np.zeros((0, 4), np.uint16)
    assert catalogue.encode_exact(none, none, DType.F16, DType.F16)[1].params == ZeroParams()
    mode, encoded = catalogue.encode_exact(none, random_words(1, (2, 4), DType.F16), DType.F16, DType.F16)
    assert (mode, encoded.parts) == (Mode.REPLACE, ())


def test_words_of_a_span_are_the_slice() -> None:
    base = random_words(1, SHAPE, DType.BF16)
    tuned = nudged(base, DType.BF16, 1e-3)
    _, encoded = catalogue.encode_exact(tuned, base, DType.BF16, DType.BF16)
    record = record_of(encoded, SHAPE, dtype=DType.BF16)
    words = catalogue.decode_words(record, MemoryParts(encoded), Span(10, 300), base.reshape(-1))
    assert np.array_equal(words, tuned.reshape(-1)[10:300])
    assert catalogue.decode_words(record, MemoryParts(encoded), Span(4, 4), base.reshape(-1)).size == 0
    with pytest.raises(UsageError):
        catalogue.decode_words(record, MemoryParts(encoded), Span(0, 4), None)


def test_zero_costs_nothing_however_large() -> None:
    encoded = Encoded(params=ZeroParams(), parts=())
    record = record_of(encoded, (1 << 26, 1 << 26))
    values = catalogue.decode_values(record, MemoryParts(encoded), whole(record), kernels=KERNELS)
    assert values.shape == (1 << 52,)
    assert values[12345] == 0
    catalogue.check(record, MemoryParts(encoded), KERNELS)


def test_rtvq_without_its_base_vector_is_refused() -> None:
    encoded = affine.encode(np.ones((2, 2), np.float32), bits=2, rows=2)
    encoded = Encoded(params=RtvqParams(bits=2, rows=2, ref=0), parts=encoded.parts, alphas=encoded.alphas)
    record = record_of(encoded, (2, 2))
    with pytest.raises(UsageError):
        catalogue.decode_values(record, MemoryParts(encoded), whole(record), kernels=KERNELS)


D = np.random.default_rng(4).normal(size=(9, 21)).astype(np.float32)


@pytest.mark.parametrize(
    ("encoded", "suffix", "reason"),
    [
        (sign1.encode(D, AlphaChoice(), rows=9, kernels=KERNELS), "bits0", "pad_bits_set"),
        (tern1.encode(D, AlphaChoice(), rows=9, kernels=KERNELS), "mask", "pad_bits_set"),
        (affine.encode(D, bits=3, rows=9), "codes", "pad_bits_set"),
        (sparse.encode_delta(D), "values", "not_finite"),
        (raw.encode(D.view(np.uint32), DType.F32, framed=False), "data", "not_finite"),
    ],
)
def test_check_decodes_to_the_last_byte(encoded: Encoded, suffix: str, reason: str) -> None:
    record, parts = record_of(encoded, D.shape), MemoryParts(encoded)
    catalogue.check(record, parts, KERNELS)
    parts.data[suffix][-2:] = b"\xff\xff"
    with pytest.raises(FormatError) as error:
        catalogue.check(record, parts, KERNELS)
    assert error.value.reason == reason


def test_check_decompresses_xdelta_frames() -> None:
    words = random_words(1, (50,), DType.BF16)
    encoded = xdelta.encode(words + np.uint16(1), words, DType.BF16)
    record, parts = record_of(encoded, (50,), dtype=DType.BF16), MemoryParts(encoded)
    catalogue.check(record, parts, KERNELS)
    parts.chunks["data"][0] = b"no frame"
    with pytest.raises(FormatError) as error:
        catalogue.check(record, parts, KERNELS)
    assert error.value.reason == "bad_frame"
