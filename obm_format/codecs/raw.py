"""`raw`: the elements themselves, plain or in shuffled zstd frames.

Source: obm-1 clauses 6.6, 8.1 and 11.7.
"""

from __future__ import annotations

from obm_format.codecs.base import Encoded, PartReader, Span, check_finite, empty, part_of, read_words
from obm_format.codecs.frames import decode_framed, encode_framed, fill, pays
from obm_format.kernels import select_steps
from obm_format.kernels.words import Float32, Words, to_float32, words_dtype
from obm_format.model import DType, RawParams, TensorRecord


def encode(words: Words, dtype: DType, *, framed: bool | None = None) -> Encoded:
    """Store elements.

    Args:
        words: words of `dtype`, C-contiguous; in mode delta the float32 task vector as words.
        dtype: dtype of the stored elements.
        framed: whether they are compressed; None: if that brings 3 %.
    """
    flat = words.reshape(-1)
    plain = Encoded(params=RawParams(value_dtype=dtype), parts=(part_of("data", flat),) if flat.size else ())
    if framed is False or not flat.size:
        return plain
    steps = select_steps()
    data = encode_framed(flat.size, dtype, lambda span: steps.shuffle(flat[span.start : span.stop]))
    packed = Encoded(params=RawParams(value_dtype=dtype, zstd_nbytes=data.nbytes), parts=(data,))
    return packed if framed or pays(packed.nbytes, plain.nbytes) else plain


def decode_words(record: TensorRecord, parts: PartReader, span: Span) -> Words:
    """The stored words of `span`, flat.

    Raises:
        FormatError: `bad_frame`, `not_finite`, `limit_exceeded`.
    """
    params = record.params
    assert isinstance(params, RawParams)  # noqa: S101 - the catalogue dispatches on it
    where = f"{record.name}#data"
    if not span.size:
        return empty(0, words_dtype(params.value_dtype))
    if params.zstd_nbytes is None:
        words = read_words(parts, "data", params.value_dtype, span)
    else:
        words = _decode_frames(record, parts, span, params.value_dtype)
    check_finite(words, params.value_dtype, where)
    return words


def decode_values(record: TensorRecord, parts: PartReader, span: Span) -> Float32:
    """The float32 values of `span` in mode delta, flat.

    Raises:
        FormatError: `bad_frame`, `not_finite`, `limit_exceeded`.
    """
    params = record.params
    assert isinstance(params, RawParams)  # noqa: S101 - the catalogue dispatches on it
    return to_float32(decode_words(record, parts, span), params.value_dtype)


def _decode_frames(record: TensorRecord, parts: PartReader, span: Span, dtype: DType) -> Words:
    out, steps = empty(span.size, words_dtype(dtype)), select_steps()

    def place(cut: Span, data: bytes) -> None:
        fill(out, span, cut, lambda words: steps.unshuffle(data, words))

    decode_framed(parts, record.encoded_numel, dtype, span, place, f"{record.name}#data")
    return out
