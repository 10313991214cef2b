"""`sign1`: one bit per element and plane, times an alpha.

Source: obm-1 clauses 6.2 to 6.6, 11.2 to 11.4; 1bit-Merging equation 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from obm_format.codecs import alphas
from obm_format.codecs.alphas import AlphaChoice, Alphas
from obm_format.codecs.base import Bytes, Encoded, PartReader, Span, part_of, whole
from obm_format.codecs.window import Window, read_window, window
from obm_format.errors import FormatError
from obm_format.kernels.contract import Kernels, SignOperand
from obm_format.kernels.words import Float32
from obm_format.layout import columns
from obm_format.model import AlphaLayout, AlphaRule, DType, Granularity, SignParams, TensorRecord

_Plane = tuple[Bytes, Alphas]


def encode(d: Float32, choice: AlphaChoice, *, rows: int, planes: int = 1, kernels: Kernels) -> Encoded:
    """Encode a task vector as sign bits and alphas.

    Args:
        d: float32, finite, at least one element, not all zero (an all-zero task vector is `zero`); any shape.
        choice: granularity, rule and gain of the alphas.
        rows: rows of the matrix view; the product of leading dimensions.
        planes: 1 to 4; plane p encodes what the planes before it leave.
        kernels: packs and sums.

    Returns:
        parts `bits0` .., alphas F16, or F32 for all of them where F16 is off by more than 2^-11.

    Raises:
        CheckpointError: `not_finite_input`.
        UsageError: `usage`, the choice does not fit.
    Source: obm-1 clauses 11.2 to 11.4.
    """
    matrix = np.ascontiguousarray(d, dtype=np.float32).reshape(rows, -1)
    coarse = choice.layout(rows, DType.F16)
    layout, encoded = coarse, _encode_planes(matrix, coarse, planes, kernels)
    if encoded is None:
        layout = choice.layout(rows, DType.F32)
        encoded = _encode_planes(matrix, layout, planes, kernels)
    assert encoded is not None  # noqa: S101 - F32 is never too coarse
    return Encoded(
        params=SignParams(alpha=layout, rows=rows, planes=planes),
        parts=tuple(part_of(f"bits{index}", bits) for index, (bits, _) in enumerate(encoded)),
        alphas=alphas.store([alpha for _, alpha in encoded], layout.dtype),
    )


def operand(record: TensorRecord, parts: PartReader) -> SignOperand:
    """The whole tensor as the kernels take it: packed, in the record's matrix view.

    Raises:
        FormatError: `bad_alpha`, `pad_bits_set`, `bad_plane`.
    """
    params = _params(record)
    return _window_operand(record, params, parts, window(columns(record, params.rows), whole(record)))


def decode(
    record: TensorRecord, parts: PartReader, span: Span, kernels: Kernels, out: Float32 | None = None
) -> Float32:
    """The float32 values of `span`, flat: in `out`, float32[span.size] and C-contiguous, or in a new array.

    Raises:
        FormatError: `bad_alpha`, `pad_bits_set`, `bad_plane`.
    Source: obm-1 clause 6.6.
    """
    params = _params(record)
    align = params.alpha.group if params.alpha.granularity is Granularity.GROUP else 8
    view = window(columns(record, params.rows), span, align)
    operand = _window_operand(record, params, parts, view)
    if out is not None and view.rows * view.width == span.size:
        return kernels.sign_values(operand, out.reshape(operand.shape)).reshape(-1)
    values = view.crop(kernels.sign_values(operand), span)
    if out is None:
        return values
    np.copyto(out, values)
    return out


def check_pad(bits: Bytes, cols: int, where: str) -> None:
    """Refuse set bits behind the last column of a row.

    Args:
        bits: uint8[rows, ceil(cols / 8)].
        cols: elements of a row.
        where: the part, for errors.

    Raises:
        FormatError: `pad_bits_set`.
    """
    # obm-1 clause 6.2
    if cols % 8 and (bits[:, -1] >> np.uint8(cols % 8)).any():
        raise FormatError("pad_bits_set", "an unused bit at the end of a row is set", where=where)


def _encode_planes(matrix: Float32, layout: AlphaLayout, planes: int, kernels: Kernels) -> list[_Plane] | None:
    rows, cols = matrix.shape
    bounds = alphas.group_bounds(layout, rows, cols)
    view = Window(cols=cols, row_start=0, row_stop=rows, col_start=0, col_stop=cols)
    rest, encoded = matrix, list[_Plane]()
    for plane in range(planes):
        # obm-1 clause 11.4: rule and gain apply to the last plane
        how = layout if plane == planes - 1 else replace(layout, rule=AlphaRule.MEAN, gain="1")
        alpha = alphas.group_alphas(rest.reshape(-1), np.diff(bounds), bounds, how, kernels)
        if alpha is None:
            return None
        bits = kernels.pack_signs(rest)
        encoded.append((bits, alpha))
        if plane + 1 < planes:
            spread = alphas.spread(alpha.astype(np.float32), layout, rows, view)
            group = alphas.columns_per_alpha(layout, cols)
            value = kernels.sign_values(SignOperand(bits=(bits,), alphas=(spread,), group=group, cols=cols))
            rest = rest - value
    return encoded


def _window_operand(record: TensorRecord, params: SignParams, parts: PartReader, view: Window) -> SignOperand:
    shape = (params.rows, view.cols)
    per_plane = alphas.load(parts.alphas(), params.alpha, shape, params.planes, record.name)
    group = alphas.columns_per_alpha(params.alpha, view.width)
    spreads, planes = [], []
    for plane, values in enumerate(per_plane):
        where = f"{record.name}#bits{plane}"
        bits = read_window(parts, f"bits{plane}", view, 1)
        if view.col_stop == view.cols:
            check_pad(bits, view.width, where)
        spread = alphas.spread(values, params.alpha, params.rows, view)
        _check_zero_alphas(bits, spread, group, view.width, where)
        planes.append(bits)
        spreads.append(spread)
    return SignOperand(bits=tuple(planes), alphas=tuple(spreads), group=group, cols=view.width)


def _check_zero_alphas(bits: Bytes, spread: Float32, group: int, cols: int, where: str) -> None:
    # obm-1 clause 6.6: where alpha is 0 the bits are set
    zero = spread == 0
    rows = zero.any(axis=1)
    if not rows.any():
        return
    filled = bits[rows]
    if cols % 8:
        filled[:, -1] |= np.uint8(0xFF << cols % 8 & 0xFF)
    starts = np.arange(0, filled.shape[1], -(-group // 8))
    all_set = np.bitwise_and.reduceat(filled, starts, axis=1) == 0xFF
    if (zero[rows] & ~all_set).any():
        raise FormatError("bad_plane", "a sign bit is clear where alpha is 0", where=where)


def _params(record: TensorRecord) -> SignParams:
    assert isinstance(record.params, SignParams)  # noqa: S101 - the catalogue dispatches on it
    return record.params
