"""Words to float32 and back: exact one way, to nearest even the other."""

from __future__ import annotations

import numpy as np
import pytest

from obm_format.errors import UsageError
from obm_format.kernels.words import cast, first_not_finite, from_float32, is_finite, to_float32, words_dtype
from obm_format.model import DType

FLOATS = (DType.F16, DType.BF16, DType.F32)


def bits(*patterns: int) -> np.ndarray:
    return np.array(patterns, np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_every_finite_word_survives_the_way_to_float32_and_back(dtype: DType) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    finite = words[[is_finite(words[i : i + 1], dtype) for i in range(words.size)]]
    assert finite.size == 2 * (0x7C00 if dtype is DType.F16 else 0x7F80)
    assert (from_float32(to_float32(finite, dtype), dtype) == finite).all()


def test_bf16_rounds_to_nearest_even() -> None:
    # N12; ties below, at and above the middle, to the even word; the largest float32 overflows
    assert to_float32(from_float32(np.array(0.1, np.float32), DType.BF16), DType.BF16) == np.float32(0.10009765625)
    patterns = (0x3F80_7FFF, 0x3F80_8000, 0x3F80_8001, 0x3F81_8000, 0x7F7F_FFFF, 0x8000_0000, 0x0000_8000)
    expected = [0x3F80, 0x3F80, 0x3F81, 0x3F82, 0x7F80, 0x8000, 0x0000]
    assert from_float32(bits(*patterns), DType.BF16).tolist() == expected


def test_bf16_nan_stays_nan() -> None:
    assert not is_finite(from_float32(bits(0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001), DType.BF16)[:2], DType.BF16)
    assert from_float32(bits(0x7F80_0001), DType.BF16).tolist() == [0x7FC0]


def test_f16_rounds_to_nearest_even() -> None:
    # N5, N6, and the borders of algorithms.md 1.2: overflow at 65520, underflow at 2^-25
    values = np.array([0.1, 1e-3, 65519.996, 65520, 2**-25, 3e-8, -(2**-25)], np.float32)
    assert from_float32(values, DType.F16).tolist() == [0x2E66, 0x1419, 0x7BFF, 0x7C00, 0, 1, 0x8000]


def test_zero_dimensions_and_empty_arrays_keep_their_shape() -> None:
    for dtype in FLOATS:
        for shape in ((), (0,), (3, 0), (2, 3)):
            words = np.zeros(shape, words_dtype(dtype))
            assert to_float32(words, dtype).shape == shape
            assert from_float32(to_float32(words, dtype), dtype).shape == shape


def test_cast_to_the_same_dtype_is_the_array_itself() -> None:
    words = np.array([0x8000], np.uint16)
    assert cast(words, DType.BF16, DType.BF16) is words
    assert cast(words, DType.BF16, DType.F32).tolist() == [0x8000_0000]


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (DType.F16, 0x7C00),
        (DType.F16, 0xFE01),
        (DType.BF16, 0xFF80),
        (DType.F32, 0x7F80_0001),
        (DType.F64, 0xFFF0_0000_0000_0000),
        (DType.F8_E5M2, 0xFC),
        (DType.F8_E4M3, 0x7F),
    ],
)
def test_first_not_finite_is_found_behind_a_block_of_good_ones(dtype: DType, word: int) -> None:
    words = np.zeros((3, 400_000), words_dtype(dtype))
    assert first_not_finite(words, dtype) is None
    words[2, 399_999] = word
    words[2, 300_000] = word
    assert first_not_finite(words, dtype) == 2 * 400_000 + 300_000


def test_integers_and_the_largest_finite_words_are_finite() -> None:
    assert is_finite(np.array([0xFFFF], np.uint16), DType.I16)
    assert is_finite(np.array([0x7E, 0xFE], np.uint8), DType.F8_E4M3)
    assert is_finite(np.array([0x7BFF], np.uint16), DType.F16)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        to_float32(np.zeros(1, np.uint8), DType.F8_E4M3)
    assert caught.value.reason == "unsupported_dtype"
    with pytest.raises(UsageError) as caught:
        from_float32(np.zeros(1, np.float32), DType.I32)
    assert caught.value.reason == "unsupported_dtype"
