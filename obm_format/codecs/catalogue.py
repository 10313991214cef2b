"""Which codec decodes a record, and which one stores a tensor exactly in the fewest bytes.

Source: obm-1 clauses 5.4, 6.5 and 11.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from obm_format.codecs import affine, raw, rtvq, sign1, sparse, tern1, xdelta
from obm_format.codecs.base import Encoded, PartReader, Span, whole, with_tail
from obm_format.codecs.frames import pays
from obm_format.errors import UsageError
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32, Words
from obm_format.model import (
    AffineParams,
    DType,
    Mode,
    Params,
    RawParams,
    RtvqParams,
    SignParams,
    SparseParams,
    TensorRecord,
    TernParams,
    XdeltaParams,
    ZeroParams,
)

_CHECK_NUMEL = 1 << 22  # elements decoded together by `check`
_ZERO = Encoded(params=ZeroParams(), parts=())

_ValueDecoder = Callable[[TensorRecord, PartReader, Span, Kernels], Float32]


def _zero(record: TensorRecord, parts: PartReader, span: Span, kernels: Kernels) -> Float32:
    del record, parts, kernels
    return np.broadcast_to(np.float32(0), (span.size,))  # obm-1 clause 3.3: its size costs nothing


_VALUE_DECODERS: Mapping[type[Params], _ValueDecoder] = {
    ZeroParams: _zero,
    RawParams: lambda record, parts, span, _: raw.decode_values(record, parts, span),
    SignParams: sign1.decode,
    TernParams: tern1.decode,
    AffineParams: lambda record, parts, span, _: affine.decode(record, parts, span),
    SparseParams: lambda record, parts, span, _: sparse.decode_values(record, parts, span),
}


def decode_values(
    record: TensorRecord,
    parts: PartReader,
    span: Span,
    *,
    kernels: Kernels,
    reference: Float32 | None = None,
    out: Float32 | None = None,
) -> Float32:
    """The task vector values of an approximate record.

    Args:
        record: not exact.
        parts: its parts.
        span: elements of what the encoding covers.
        kernels: unpacks signs.
        reference: for `rtvq`, the values of the base vector in `span`, flat.
        out: float32[span.size], C-contiguous, which is written and returned; None: a new array.

    Returns:
        float32[span.size]; without `out` read-only for `zero`.

    Raises:
        FormatError: what the codec finds.
        UsageError: `usage`, no reference for `rtvq`.
    Source: obm-1 clause 6.
    """
    if not span.size:
        return np.zeros(0, dtype=np.float32)
    if out is not None and isinstance(record.params, SignParams):
        return sign1.decode(record, parts, span, kernels, out)
    values = _new_values(record, parts, span, kernels, reference)
    if out is None:
        return values
    np.copyto(out, values)
    return out


def _new_values(
    record: TensorRecord, parts: PartReader, span: Span, kernels: Kernels, reference: Float32 | None
) -> Float32:
    if isinstance(record.params, RtvqParams):
        if reference is None:
            raise UsageError("usage", "rtvq needs the values of its base vector", where=record.name)
        return rtvq.decode(record, parts, span, reference)
    return _VALUE_DECODERS[type(record.params)](record, parts, span, kernels)


def decode_words(record: TensorRecord, parts: PartReader, span: Span, base: Words | None) -> Words:
    """The rebuilt words of an exact record.

    Args:
        record: exact: `raw` or `sparse` of mode replace or added, or `xdelta`.
        parts: its parts.
        span: elements of what the encoding covers.
        base: words of the whole backbone tensor, flat; `raw` does not need it.

    Returns:
        flat words of the record's dtype.

    Raises:
        FormatError: what the codec finds.
        UsageError: `usage`, no backbone tensor where one is needed.
    """
    if isinstance(record.params, RawParams):
        return raw.decode_words(record, parts, span)
    if base is None:
        raise UsageError("usage", f"{record.encoding} needs the backbone's tensor", where=record.name)
    if not span.size:
        return base[:0].copy()
    if isinstance(record.params, SparseParams):
        return sparse.decode_words(record, parts, span, base)
    return xdelta.decode(record, parts, span, base)


def check(record: TensorRecord, parts: PartReader, kernels: Kernels) -> None:
    """Decode all that a record's parts say without a backbone or a base vector, in bounded memory.

    Raises:
        FormatError: what the codec finds.
    """
    match record.params:
        case ZeroParams():
            return
        case SparseParams():
            sparse.check(record, parts)
        case XdeltaParams():
            xdelta.check(record, parts)
        case RtvqParams():
            for span in whole(record).pieces(_CHECK_NUMEL):
                affine.decode(record, parts, span)
        case RawParams():
            for span in whole(record).pieces(_CHECK_NUMEL):
                raw.decode_words(record, parts, span)
        case _:
            for span in whole(record).pieces(_CHECK_NUMEL):
                decode_values(record, parts, span, kernels=kernels)


def encode_exact(tuned: Words, base: Words | None, dtype: DType, base_dtype: DType | None) -> tuple[Mode, Encoded]:
    """Store a tensor so that it comes back bit for bit, in the smallest encoding.

    Framed raw elements are tried only where `xdelta` does not halve the tensor: weights do not compress so
    far by themselves.

    Args:
        tuned: words of `dtype` in the tensor's shape, C-contiguous.
        base: words of the backbone's tensor in its shape, or None if it has no such tensor.
        dtype: dtype of the fine-tune's tensor.
        base_dtype: dtype of the backbone's.

    Returns:
        the mode and the encoded tensor; for a grown tensor with the part `tail`, or whole.
    Source: obm-1 clauses 5.4, 5.6 and 11.7.
    """
    if base is None:
        return Mode.ADDED, raw.encode(tuned, dtype)
    if dtype is not base_dtype or tuned.shape[1:] != base.shape[1:] or not tuned.size:
        same = dtype is base_dtype and tuned.shape == base.shape
        return (Mode.DELTA, _ZERO) if same else (Mode.REPLACE, raw.encode(tuned, dtype))
    if tuned.shape == base.shape:
        return _encode_same_shape(tuned, base, dtype)
    if tuned.ndim and tuned.shape[0] > base.shape[0] and base.size and dtype.is_float:
        rows = base.shape[0]
        grown = with_tail(xdelta.encode_smaller(tuned[:rows], base, dtype), tuned[rows:])
        plain = raw.encode(tuned, dtype)
        if grown.nbytes < plain.nbytes:
            return Mode.DELTA, grown
        return Mode.REPLACE, plain
    return Mode.REPLACE, raw.encode(tuned, dtype)


def _encode_same_shape(tuned: Words, base: Words, dtype: DType) -> tuple[Mode, Encoded]:
    changed = int(np.count_nonzero(tuned != base))
    if not changed:
        return Mode.DELTA, _ZERO
    best = (Mode.REPLACE, raw.encode(tuned, dtype, framed=False))
    plain_nbytes = best[1].nbytes
    if dtype.is_float:
        exact = xdelta.encode_smaller(tuned, base, dtype)
        if pays(exact.nbytes, plain_nbytes):
            best = (Mode.DELTA, exact)
    if best[1].nbytes * 2 > plain_nbytes:
        packed = raw.encode(tuned, dtype)
        if packed.nbytes < best[1].nbytes:
            best = (Mode.REPLACE, packed)
    if sparse.nbytes(tuned.size, changed, dtype) < best[1].nbytes:
        best = (Mode.REPLACE, sparse.encode_replace(tuned, base, dtype))
    return best
