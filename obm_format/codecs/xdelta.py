"""`xdelta`: the exact difference of two tensors, as distances between bit patterns in order of value.

Neighbouring floats are one step apart, so a fine-tune is a stream of small integers, whose upper bytes are
nearly all zero. Nothing is lost: -0, subnormals and all else come back bit for bit. Source: obm-1 clause 6.9.
"""

from __future__ import annotations

import numpy as np

from obm_format.codecs.base import Bytes, Encoded, PartReader, Span, empty
from obm_format.codecs.frames import compress, cut_numel, decode_framed, encode_framed, fill, pays
from obm_format.kernels import select_steps
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import DType, TensorRecord, XdeltaParams

_LOOKS = 3  # cuts that are encoded both ways, to see which is smaller


def encode_smaller(tuned: Words, base: Words, dtype: DType) -> Encoded:
    """Encode with buckets where they save at least 3 % of the first, a middle and the last cut; else without.

    Args: as for `encode`.
    Source: obm-1 clause 11.7.
    """
    cuts = list(Span(0, tuned.size).pieces(cut_numel(dtype)))
    looks = {cuts[i * (len(cuts) - 1) // (_LOOKS - 1)] for i in range(_LOOKS)}
    new, old, steps = tuned.reshape(-1), base.reshape(-1), select_steps()

    def nbytes(*, bucket: bool) -> int:
        places = [slice(cut.start, cut.stop) for cut in looks]
        return sum(len(compress(steps.subtract(new[place], old[place], dtype, bucket))) for place in places)

    return encode(tuned, base, dtype, bucket=pays(nbytes(bucket=True), nbytes(bucket=False)))


def encode(tuned: Words, base: Words, dtype: DType, *, bucket: bool = False) -> Encoded:
    """Encode a fine-tune against its backbone.

    Args:
        tuned: words, at least one element, C-contiguous.
        base: words of the same shape and dtype, C-contiguous.
        dtype: F16, BF16 or F32.
        bucket: sort each cut by the exponent of the backbone: smaller, and slower to decode.
    """
    new, old, steps = tuned.reshape(-1), base.reshape(-1), select_steps()

    def stream(span: Span) -> Bytes:
        cut = slice(span.start, span.stop)
        return steps.subtract(new[cut], old[cut], dtype, bucket)

    data = encode_framed(new.size, dtype, stream)
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
    out, steps = empty(span.size, words_dtype(dtype)), select_steps()
    flat = np.ascontiguousarray(base)

    def place(cut: Span, data: bytes) -> None:
        old = flat[cut.start : cut.stop]
        fill(out, span, cut, lambda words: steps.add(data, old, dtype, params.bucket, words))

    decode_framed(parts, record.encoded_numel, dtype, span, place, f"{record.name}#data")
    return out


def check(record: TensorRecord, parts: PartReader) -> None:
    """Decompress every frame; what they say cannot be judged without the backbone.

    Raises:
        FormatError: `bad_frame`.
    """

    def forget(cut: Span, data: bytes) -> None:
        del cut, data

    span = Span(0, record.encoded_numel)
    decode_framed(parts, span.stop, record.spec.dtype, span, forget, f"{record.name}#data")
