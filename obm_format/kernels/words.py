"""Words: the bits of a tensor's elements as unsigned integers, and their exact way to float32 and back.

A tensor in memory is a C-contiguous array of unsigned integers of the element's width, in the tensor's shape, beside
its `DType`. So BF16, which NumPy lacks, costs nothing, and equal bits mean equal arrays. Never reads a file.
Source: obm-1 clause 1.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.errors import UsageError
from obm_format.model import DType

Words = npt.NDArray[np.unsignedinteger[Any]]
Float32 = npt.NDArray[np.float32]

_WORDS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
EXPONENT = {  # all bits of the exponent field: set exactly in infinities and NaNs
    DType.F16: 0x7C00,
    DType.BF16: 0x7F80,
    DType.F32: 0x7F80_0000,
    DType.F64: 0x7FF0_0000_0000_0000,
    DType.F8_E5M2: 0x7C,
    DType.F8_E4M3: 0x7F,  # no infinities; NaN alone has all seven bits set
}
_SCAN = 1 << 16  # elements looked at together: a scan needs no copy of the tensor, and its temporaries stay in a cache


def words_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype of the words of `dtype`: uint8, uint16, uint32 or uint64."""
    return _WORDS[dtype.itemsize]


def to_float32(words: Words, dtype: DType) -> Float32:
    """The elements as float32, exactly.

    Args:
        words: words of any shape.
        dtype: F16, BF16 or F32.

    Returns:
        float32 array of the same shape; a view of `words` for F32.

    Raises:
        UsageError: another dtype (reason `unsupported_dtype`).
    Source: obm-1 clause 1.2, `f32(x)`.
    """
    _check_float(dtype)
    words = np.asarray(words)
    if dtype is DType.F16:
        return np.asarray(words.view(np.float16).astype(np.float32))
    if dtype is DType.BF16:
        wide = np.asarray(words.astype(np.uint32))
        np.left_shift(wide, np.uint32(16), out=wide)
        return wide.view(np.float32)
    return words.view(np.float32)


def from_float32(values: Float32, dtype: DType) -> Words:
    """float32 values rounded to `dtype`, to nearest, ties to even; too large becomes infinite, NaN stays NaN.

    Args:
        values: float32 array of any shape.
        dtype: F16, BF16 or F32.

    Returns:
        words of the same shape; a copy for F32 too.

    Raises:
        UsageError: another dtype (reason `unsupported_dtype`).
    Source: obm-1 clause 1.2, RNE.
    """
    _check_float(dtype)
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))
    if dtype is DType.F16:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(values.astype(np.float16)).view(np.uint16)
    bits = values.view(np.uint32)
    if dtype is DType.BF16:
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
        is_nan = (bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
        return np.asarray(np.where(is_nan, quiet, rounded)).astype(np.uint16)
    return bits.copy()


def cast(words: Words, dtype: DType, to: DType) -> Words:
    """The elements in another dtype, rounded once; `words` itself when nothing changes."""
    return words if dtype is to else from_float32(to_float32(words, dtype), to)


def is_finite(words: Words, dtype: DType) -> bool:
    """Whether no element is NaN or infinite; always true for dtypes that do not hold reals."""
    return first_not_finite(words, dtype) is None


def first_not_finite(words: Words, dtype: DType) -> int | None:
    """Flat index of the first element that is NaN or infinite, or None.

    Args:
        words: words of any shape.
        dtype: any dtype.
    """
    if not dtype.holds_reals:
        return None
    mask = words_dtype(dtype).type(EXPONENT[dtype])
    flat = np.asarray(words).reshape(-1)
    for start in range(0, flat.size, _SCAN):
        bad = (flat[start : start + _SCAN] & mask) == mask
        if bad.any():
            return start + int(bad.argmax())
    return None


def _check_float(dtype: DType) -> None:
    if not dtype.is_float:
        raise UsageError(
            "unsupported_dtype", "obm computes with F16, BF16 and F32 only", expected="F16, BF16, F32", got=dtype.name
        )
