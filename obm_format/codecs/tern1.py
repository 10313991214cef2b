"""`tern1`: a mask of the elements that count, a sign bit for each, and alphas.

Source: obm-1 clauses 6.2 to 6.6 and 11.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from obm_format.codecs import alphas
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Bytes, Encoded, PartReader, Span, part_of
from obm_format.codecs.sign1 import check_pad
from obm_format.codecs.window import Window, read_window, window
from obm_format.errors import FormatError
from obm_format.kernels.contract import Kernels, SignOperand
from obm_format.kernels.words import Float32
from obm_format.layout import columns
from obm_format.model import AlphaLayout, DType, Granularity, TensorRecord, TernParams

THRESHOLD = 0.7  # of the mean magnitude of the group


def encode(d: Float32, choice: AlphaChoice, *, rows: int, kernels: Kernels) -> Encoded:
    """Encode a task vector as -alpha, 0, +alpha.

    Args:
        d: float32, finite, at least one element, not all zero; any shape.
        choice: granularity, rule and gain of the alphas.
        rows: rows of the matrix view.
        kernels: sums and packs.

    Returns:
        parts `bits0` and `mask`.

    Raises:
        CheckpointError: `not_finite_input`.
        UsageError: `usage`, the choice does not fit.
    Source: obm-1 clause 11.5.
    """
    matrix = np.ascontiguousarray(d, dtype=np.float32).reshape(rows, -1)
    layout = choice.layout(rows, DType.F16)
    bounds = alphas.group_bounds(layout, *matrix.shape)
    kept = np.abs(matrix) > _thresholds(matrix, layout, bounds, kernels)
    counts = np.add.reduceat(kept.reshape(-1), bounds[:-1], dtype=np.int64)
    counted = np.where(kept, matrix, np.float32(0)).reshape(-1)
    alpha = alphas.group_alphas(counted, counts, bounds, layout, kernels)
    if alpha is None:
        layout = choice.layout(rows, DType.F32)
        alpha = alphas.group_alphas(counted, counts, bounds, layout, kernels)
    assert alpha is not None  # noqa: S101 - F32 is never too coarse
    mask = np.packbits(kept, axis=1, bitorder="little")
    bits = kernels.pack_signs(matrix) & mask
    return Encoded(
        params=TernParams(alpha=layout, rows=rows),
        parts=(part_of("bits0", bits), part_of("mask", mask)),
        alphas=alphas.store([alpha], layout.dtype),
    )


def decode(record: TensorRecord, parts: PartReader, span: Span, kernels: Kernels) -> Float32:
    """The float32 values of `span`, flat.

    Raises:
        FormatError: `bad_alpha`, `pad_bits_set`, `bad_plane`.
    Source: obm-1 clause 6.6.
    """
    params = record.params
    assert isinstance(params, TernParams)  # noqa: S101 - the catalogue dispatches on it
    layout = params.alpha
    align = layout.group if layout.granularity is Granularity.GROUP else 8
    view = window(columns(record, params.rows), span, align)
    (values,) = alphas.load(parts.alphas(), layout, (params.rows, view.cols), 1, record.name)
    spread = alphas.spread(values, layout, params.rows, view)
    bits, kept = _read_planes(record, parts, view)
    group = alphas.columns_per_alpha(layout, view.width)
    signed = kernels.sign_values(SignOperand(bits=(bits,), alphas=(spread,), group=group, cols=view.width))
    if (kept & (signed == 0)).any():
        raise FormatError("bad_plane", "the mask is set where alpha is 0", where=f"{record.name}#mask")
    return view.crop(np.where(kept, signed, np.float32(0)), span)


def _thresholds(matrix: Float32, layout: AlphaLayout, bounds: npt.NDArray[np.int64], kernels: Kernels) -> Float32:
    """What |d| must exceed, broadcastable to the matrix: float64 thresholds rounded down compare alike."""
    s1, _ = kernels.group_sums(matrix.reshape(-1), bounds)
    wide = THRESHOLD * (s1 / np.diff(bounds))
    near = wide.astype(np.float32)
    below = np.where(near.astype(np.float64) > wide, np.nextafter(near, np.float32(0)), near)
    rows, cols = matrix.shape
    view = Window(cols=cols, row_start=0, row_stop=rows, col_start=0, col_stop=cols)
    spread = alphas.spread(below, layout, rows, view)
    if layout.granularity is Granularity.GROUP:
        return np.repeat(spread, layout.group, axis=1)[:, :cols]
    return spread


def _read_planes(record: TensorRecord, parts: PartReader, view: Window) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    bits = read_window(parts, "bits0", view, 1)
    mask = read_window(parts, "mask", view, 1)
    if view.col_stop == view.cols:
        check_pad(bits, view.width, f"{record.name}#bits0")
        check_pad(mask, view.width, f"{record.name}#mask")
    # obm-1 clause 6.6
    if (bits & ~mask).any():
        where = f"{record.name}#bits0"
        raise FormatError("bad_plane", "a sign bit is set where the mask is clear", where=where)
    return bits, np.unpackbits(mask, axis=1, count=view.width, bitorder="little").view(np.bool_)
