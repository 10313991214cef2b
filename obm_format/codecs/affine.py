"""`affine`: codes of b bits between the smallest and the largest value of a tensor (TVQ, with real packing).

Source: obm-1 clauses 6.6 and 11.6; Task Vector Quantization, equation 3.
"""

from __future__ import annotations

import numpy as np

from obm_format.codecs.base import Bytes, Encoded, PartReader, Span, part_of
from obm_format.codecs.packing import pack_codes, unpack_codes
from obm_format.codecs.window import read_window, window
from obm_format.errors import CheckpointError, FormatError, UsageError
from obm_format.kernels.words import Float32
from obm_format.layout import columns
from obm_format.model import AffineParams, RtvqParams, TensorRecord

BITS = (2, 3, 4, 8)


def encode(d: Float32, *, bits: int, rows: int) -> Encoded:
    """Quantise a task vector.

    Args:
        d: float32, finite, at least one element; any shape.
        bits: 2, 3, 4 or 8.
        rows: rows of the matrix view.

    Returns:
        the part `codes`, and s and z among the alphas.

    Raises:
        CheckpointError: `not_finite_input`.
        UsageError: `usage`, another number of bits.
    Source: obm-1 clause 11.6.
    """
    if bits not in BITS:
        raise UsageError("usage", "affine codes have 2, 3, 4 or 8 bits", expected=BITS, got=bits)
    matrix = np.ascontiguousarray(d, dtype=np.float32).reshape(rows, -1)
    low, high = matrix.min(), matrix.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CheckpointError("not_finite_input", "the task vector holds NaN or Inf")
    scale, zero = _scale(low, high, bits)
    if scale is None:
        scale, codes = np.float32(1), np.zeros(matrix.shape, dtype=np.uint8)
    else:
        codes = _quantise(matrix, scale, zero, bits)
    return Encoded(
        params=AffineParams(bits=bits, rows=rows),
        parts=(part_of("codes", pack_codes(codes, bits)),),
        alphas=np.array([scale, zero], dtype="<f4").tobytes(),
    )


def decode(record: TensorRecord, parts: PartReader, span: Span) -> Float32:
    """The float32 values of `span`, flat; for `rtvq` the offset alone.

    Raises:
        FormatError: `bad_code`, `pad_bits_set`, `not_finite`.
    Source: obm-1 clause 6.6.
    """
    params = record.params
    assert isinstance(params, AffineParams | RtvqParams)  # noqa: S101 - the catalogue dispatches on it
    table = _table(parts.alphas(), params.bits, record.name)
    view = window(columns(record, params.rows), span)
    packed = read_window(parts, "codes", view, params.bits)
    codes = view.crop(unpack_codes(packed, view.width, params.bits, f"{record.name}#codes"), span)
    values: Float32 = table[codes]
    if not np.isfinite(table).all() and not np.isfinite(values).all():
        raise FormatError("not_finite", "a code stands for an infinite value", where=record.name)
    return values


def _scale(low: np.float32, high: np.float32, bits: int) -> tuple[np.float32 | None, np.float32]:
    """(s, z); s is None where the tensor counts as a constant, and -z is that constant."""
    with np.errstate(over="ignore", divide="ignore"):
        # two roundings, as torch divides an integer by a tensor: TVQ's own multipliers, to the bit
        scale = np.float32((1 << bits) - 1) * (np.float32(1) / (high - low))
    # obm-1 clause 11.6: no finite multiplier, no codes; a range that overflows float32 has none either
    if not np.isfinite(scale) or scale == 0:
        return None, np.float32(0) - low
    return scale, np.float32(0) - np.rint(scale * low)


def _quantise(matrix: Float32, scale: np.float32, zero: np.float32, bits: int) -> Bytes:
    steps = matrix * scale
    steps += zero
    np.rint(steps, out=steps)
    np.clip(steps, 0, (1 << bits) - 1, out=steps)
    return steps.astype(np.uint8)


def _table(stored: bytes, bits: int, where: str) -> Float32:
    """The value of every code; one division per code, not per element."""
    scale, zero = np.frombuffer(stored, dtype="<f4").astype(np.float32)
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(zero)):
        got = f"s {scale}, z {zero}"
        raise FormatError("bad_code", "the multiplier or the zero is out of range", where=where, got=got)
    with np.errstate(over="ignore"):
        table: Float32 = (np.arange(1 << bits, dtype=np.float32) - zero) / scale
    return table
