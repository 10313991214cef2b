"""`rtvq`: an affine offset on a base vector that several experts share.

The base vector lies in another artifact; the expert hands its decoded values in. Source: obm-1 clause 6.7;
Residual Task Vector Quantization.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from obm_format.codecs import affine
from obm_format.codecs.base import Encoded, PartReader, Span
from obm_format.errors import FormatError
from obm_format.kernels.words import Float32
from obm_format.model import AffineParams, RtvqParams, TensorRecord


def encode(d: Float32, reference: Float32, *, bits: int, rows: int, ref: int = 0) -> Encoded:
    """Quantise what a task vector has beyond the shared base vector.

    Args:
        d: float32, finite, at least one element; any shape.
        reference: float32 of the same shape: the decoded base vector.
        bits: 2, 3, 4 or 8.
        rows: rows of the matrix view.
        ref: place of the base vector's artifact id among the expert's `refs`.

    Raises:
        CheckpointError: `not_finite_input`.
        UsageError: `usage`, another number of bits.
    """
    encoded = affine.encode(d - reference, bits=bits, rows=rows)
    assert isinstance(encoded.params, AffineParams)  # noqa: S101 - that is what affine makes
    return replace(encoded, params=RtvqParams(bits=bits, rows=rows, ref=ref))


def decode(record: TensorRecord, parts: PartReader, span: Span, reference: Float32) -> Float32:
    """The float32 values of `span`, flat.

    Args:
        record: of encoding `rtvq`.
        parts: its parts.
        span: elements wanted.
        reference: float32, flat: the values of the base vector in `span`.

    Raises:
        FormatError: `bad_code`, `pad_bits_set`, `not_finite`.
    Source: obm-1 clause 6.7.
    """
    with np.errstate(over="ignore"):
        values: Float32 = affine.decode(record, parts, span) + reference
    if not np.isfinite(values).all():
        raise FormatError("not_finite", "offset plus base vector is infinite", where=record.name)
    return values
