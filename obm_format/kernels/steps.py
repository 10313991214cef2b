"""The element streams of zstd frames: words grouped by byte, and exact differences as steps between bit patterns.

One call works on one cut of a tensor. The NumPy functions here are normative; `cpu_steps` has the same, compiled.
Never compresses, never checks what a cut belongs to. Source: obm-1 clauses 6.9 and 8.2.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from obm_format.errors import UsageError
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import DType

Bytes = npt.NDArray[np.uint8]

EXPONENT = {DType.F16: (10, 0x1F), DType.BF16: (7, 0xFF), DType.F32: (23, 0xFF)}  # shift, mask
_SIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}


class Steps(Protocol):
    """Cuts to streams and back. All arrays are flat and C-contiguous; all implementations give the same bytes.

    Arrays and streams that do not fit together raise UsageError `bad_shape`.
    """

    @property
    def name(self) -> str:
        """Which implementation this is."""
        ...

    def shuffle(self, words: Words) -> Bytes:
        """The bytes of the words, grouped by place: byte 0 of all words, then byte 1, and so on (obm-1 clause 8.2).

        Returns:
            uint8[words.nbytes].
        """
        ...

    def unshuffle(self, data: bytes, out: Words) -> None:
        """The inverse of `shuffle`: fill `out` from `out.nbytes` bytes."""
        ...

    def subtract(self, tuned: Words, base: Words, dtype: DType, bucket: bool) -> Bytes:
        """The shuffled zigzag steps from a backbone to a fine-tune (obm-1 clause 6.9).

        Args:
            tuned: words of F16, BF16 or F32.
            base: as many words of the same dtype.
            dtype: of both.
            bucket: whether they are sorted by the exponent of the backbone, stably.

        Returns:
            uint8[tuned.nbytes].
        """
        ...

    def add(self, data: bytes, base: Words, dtype: DType, bucket: bool, out: Words) -> None:
        """The inverse of `subtract`: fill `out` with the fine-tune's words."""
        ...


class ReferenceSteps:
    """`Steps` in NumPy."""

    name = "reference"

    def shuffle(self, words: Words) -> Bytes:
        """See `Steps.shuffle`."""
        return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T).reshape(-1)

    def unshuffle(self, data: bytes, out: Words) -> None:
        """See `Steps.unshuffle`."""
        check_stream(data, out)
        planes = np.frombuffer(data, dtype=np.uint8).reshape(out.itemsize, -1)
        out[:] = planes[-1]
        for plane in planes[-2::-1]:
            out <<= out.dtype.type(8)
            out |= plane

    def subtract(self, tuned: Words, base: Words, dtype: DType, bucket: bool) -> Bytes:
        """See `Steps.subtract`."""
        check_pair(tuned, base, dtype)
        ordinals = ordinal(tuned)
        ordinals -= ordinal(base)
        steps = zigzag(ordinals)
        return self.shuffle(steps[_exponent_order(base, dtype)] if bucket else steps)

    def add(self, data: bytes, base: Words, dtype: DType, bucket: bool, out: Words) -> None:
        """See `Steps.add`."""
        check_stream(data, out)
        check_pair(out, base, dtype)
        steps = np.empty_like(out)
        self.unshuffle(data, steps)
        if bucket:
            in_order, steps = steps, np.empty_like(steps)
            steps[_exponent_order(base, dtype)] = in_order
        ordinals = ordinal(base)
        ordinals += unzigzag(steps)
        out[:] = pattern(ordinals)


def check_stream(data: bytes, out: Words) -> None:
    """Refuse a stream that is not as long as the words it shall fill."""
    if len(data) != out.nbytes or out.ndim != 1 or not out.flags.c_contiguous:
        raise UsageError("bad_shape", "the stream does not fill the words", expected=out.nbytes, got=len(data))


def check_pair(words: Words, base: Words, dtype: DType) -> None:
    """Refuse a cut and a backbone that are not as many words of one float dtype."""
    kinds = {array.dtype for array in (words, base)}
    fit = words.shape == base.shape and words.ndim == 1 and words.flags.c_contiguous and base.flags.c_contiguous
    if dtype not in EXPONENT or kinds != {words_dtype(dtype)} or not fit:
        raise UsageError("bad_shape", "cut and backbone do not fit", expected=base.shape, got=words.shape)


def ordinal(words: Words) -> Words:
    """Bit patterns as unsigned integers that ascend with the value: ord(u) of obm-1 clause 6.9."""
    flipped = _sign(words)
    flipped |= _top(words)
    flipped ^= words
    return flipped


def pattern(ordinals: Words) -> Words:
    """The inverse of `ordinal`."""
    flipped = _sign(~ordinals)
    flipped |= _top(ordinals)
    flipped ^= ordinals
    return flipped


def zigzag(steps: Words) -> Words:
    """Two's complement to 0, -1, 1, -2, .. in ascending order."""
    numbers = steps << steps.dtype.type(1)
    numbers ^= _sign(steps)
    return numbers


def unzigzag(numbers: Words) -> Words:
    """The inverse of `zigzag`."""
    one = numbers.dtype.type(1)
    odd = numbers & one
    np.subtract(numbers.dtype.type(0), odd, out=odd)  # all ones where the step is negative
    odd ^= numbers >> one
    return odd


def _sign(words: Words) -> Words:
    """All ones where the top bit is set, else 0; a new array."""
    return (words.view(_SIGNED[words.itemsize]) >> (words.itemsize * 8 - 1)).view(words.dtype)


def _top(words: Words) -> np.unsignedinteger[Any]:
    """The top bit alone."""
    top: np.unsignedinteger[Any] = words.dtype.type(1 << (words.itemsize * 8 - 1))
    return top


def _exponent_order(base: Words, dtype: DType) -> npt.NDArray[np.intp]:
    """Places of a cut, stably sorted by the exponent field of the backbone."""
    shift, mask = EXPONENT[dtype]
    field: npt.NDArray[Any] = (base >> base.dtype.type(shift)) & base.dtype.type(mask)
    return np.argsort(field.astype(np.uint8), kind="stable")
