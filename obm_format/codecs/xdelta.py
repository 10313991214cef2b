"""`xdelta`: the exact difference of two tensors, as distances between bit patterns in order of value.

Neighbouring floats are one step apart, so a fine-tune is a stream of small integers, whose upper bytes are
nearly all zero. Nothing is lost: -0, subnormals and all else come back bit for bit. Source: obm-1 clause 6.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.codecs.base import Encoded, PartReader, Span, empty
from obm_format.codecs.frames import decode_framed, encode_framed
from obm_format.codecs.raw import copy_overlap
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import DType, TensorRecord, XdeltaParams

_SIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}
_EXPONENT = {DType.F16: (10, 0x1F), DType.BF16: (7, 0xFF), DType.F32: (23, 0xFF)}  # shift, mask


def encode(tuned: Words, base: Words, dtype: DType, *, bucket: bool = False) -> Encoded:
    """Encode a fine-tune against its backbone.

    Args:
        tuned: words, at least one element, C-contiguous.
        base: words of the same shape and dtype, C-contiguous.
        dtype: F16, BF16 or F32.
        bucket: sort each cut by the exponent of the backbone: smaller, and slower to decode.
    """
    new, old = tuned.reshape(-1), base.reshape(-1)

    def cut(span: Span) -> Words:
        piece = old[span.start : span.stop]
        ordinals = ordinal(new[span.start : span.stop])
        ordinals -= ordinal(piece)
        steps = zigzag(ordinals)
        return steps[_exponent_order(piece, dtype)] if bucket else steps

    data = encode_framed(new.size, dtype, cut)
    return Encoded(params=XdeltaParams(zstd_nbytes=data.nbytes, bucket=bucket), parts=(data,))


def decode(record: TensorRecord, parts: PartReader, span: Span, base: Words) -> Words:
    """The fine-tune's words of `span`, flat.

    Args:
        record: of encoding `xdelta`.
        parts: its parts.
        span: elements wanted; not empty.
        base: words of the whole backbone tensor, flat.

    Raises:
        FormatError: `bad_frame`, `limit_exceeded`.
    Source: obm-1 clause 6.9.
    """
    params = record.params
    assert isinstance(params, XdeltaParams)  # noqa: S101 - the catalogue dispatches on it
    dtype = record.spec.dtype
    out: Words = empty(span.size, words_dtype(dtype))

    def place(cut: Span, steps: Words) -> None:
        piece = base[cut.start : cut.stop]
        if params.bucket:
            unsorted = np.empty_like(steps)
            unsorted[_exponent_order(piece, dtype)] = steps
            steps = unsorted
        ordinals = ordinal(piece)
        ordinals += unzigzag(steps)
        copy_overlap(out, span, pattern(ordinals), cut)

    decode_framed(parts, record.encoded_numel, dtype, span, place, f"{record.name}#data")
    return out


def check(record: TensorRecord, parts: PartReader) -> None:
    """Decompress every frame; what they say cannot be judged without the backbone.

    Raises:
        FormatError: `bad_frame`.
    """

    def forget(cut: Span, steps: Words) -> None:
        del cut, steps

    span = Span(0, record.encoded_numel)
    decode_framed(parts, span.stop, record.spec.dtype, span, forget, f"{record.name}#data")


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
    shift, mask = _EXPONENT[dtype]
    field: npt.NDArray[Any] = (base >> base.dtype.type(shift)) & base.dtype.type(mask)
    return np.argsort(field.astype(np.uint8), kind="stable")
