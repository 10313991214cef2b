"""Alphas: how they are computed, rounded, stored, checked and spread over rows.

Never packs bits. Source: obm-1 clauses 6.3, 6.4, 7.5 and 11.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.codecs.window import Window
from obm_format.errors import CheckpointError, FormatError, UsageError
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32
from obm_format.layout import alphas_per_plane
from obm_format.model import AlphaLayout, AlphaRule, DType, Granularity

Bounds = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Alphas = npt.NDArray[np.floating[Any]]  # float16 or float32

_STORED: dict[DType, np.dtype[Any]] = {DType.F16: np.dtype("<f2"), DType.F32: np.dtype("<f4")}
_WORD: dict[DType, np.dtype[Any]] = {DType.F16: np.dtype("<u2"), DType.F32: np.dtype("<u4")}
_GAIN = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaChoice:
    """Which alphas the writer wants; whether they become F16 or F32 follows from their values.

    Args:
        granularity: what shares one alpha.
        group: columns per alpha, a positive multiple of 64; only for GROUP.
        blocks: pairs (count, rows) whose products sum to the rows of the matrix; only for BLOCK.
        rule: how an alpha follows from its group.
        gain: decimal string that every alpha is multiplied by.
    """

    granularity: Granularity = Granularity.MATRIX
    group: int = 0
    blocks: tuple[tuple[int, int], ...] = ()
    rule: AlphaRule = AlphaRule.MEAN
    gain: str = "1"

    def layout(self, rows: int, dtype: DType) -> AlphaLayout:
        """The canonical layout for a matrix of `rows` rows (obm-1 clauses 6.3 and 6.4).

        Raises:
            UsageError: the choice does not fit the matrix or is outside the grammar (`usage`).
        """
        blocks = _canonical_blocks(self.blocks) if self.granularity is Granularity.BLOCK else ()
        group = self.group if self.granularity is Granularity.GROUP else 0
        if self.granularity is Granularity.GROUP and (group <= 0 or group % 64):
            raise UsageError("usage", "alpha groups need a positive multiple of 64 columns", got=group)
        if self.granularity is Granularity.BLOCK and sum(count * height for count, height in blocks) != rows:
            raise UsageError("usage", "alpha blocks do not sum to the rows", expected=rows, got=self.blocks)
        if _GAIN.fullmatch(self.gain) is None:
            raise UsageError("usage", "the gain is no decimal number", expected=_GAIN.pattern, got=self.gain)
        return AlphaLayout(
            granularity=self.granularity,
            group=group,
            blocks=blocks,
            rule=self.rule,
            gain=self.gain,
            dtype=dtype,
        )


def group_bounds(layout: AlphaLayout, rows: int, cols: int) -> Bounds:
    """Where the alpha groups of a matrix begin and end in its flat elements (obm-1 clause 6.3).

    Returns:
        int64[G + 1], ascending, from 0 to rows * cols.
    """
    match layout.granularity:
        case Granularity.MATRIX:
            return np.array([0, rows * cols], dtype=np.int64)
        case Granularity.ROW:
            return np.arange(rows + 1, dtype=np.int64) * cols
        case Granularity.GROUP:
            starts = np.arange(0, cols, layout.group, dtype=np.int64)
            flat = (np.arange(rows, dtype=np.int64)[:, None] * cols + starts).reshape(-1)
            return np.append(flat, rows * cols)
        case Granularity.BLOCK:
            heights = np.concatenate([np.full(count, height) for count, height in layout.blocks])
            return np.concatenate(([0], np.cumsum(heights, dtype=np.int64) * cols))


def group_alphas(
    d: Float32, counts: npt.NDArray[np.int64], bounds: Bounds, layout: AlphaLayout, kernels: Kernels
) -> Alphas | None:
    """The alphas of one plane, rounded to `layout.dtype`.

    Args:
        d: flat float32, finite; elements that do not count are 0.
        counts: int64[G], elements that count in each group.
        bounds: int64[G + 1].
        layout: rule, gain and dtype.
        kernels: sums the groups.

    Returns:
        float16[G] or float32[G], finite and >= 0; None where F16 is too coarse for these alphas.

    Raises:
        CheckpointError: `not_finite_input`, d is not finite.
        UsageError: `usage`, the gain makes an alpha too large for F32.
    Source: obm-1 clause 11.3.
    """
    s1, s2 = kernels.group_sums(d, bounds)
    if not np.isfinite(s1).all():
        raise CheckpointError("not_finite_input", "the task vector holds NaN or Inf")
    wide = _by_rule(layout.rule, s1, s2, counts) * float(layout.gain)
    with np.errstate(over="ignore", under="ignore"):
        rounded: Alphas = wide.astype(_STORED[layout.dtype])
    if layout.dtype is DType.F16 and not (np.abs(rounded.astype(np.float64) - wide) <= wide * 2.0**-11).all():
        return None
    if not np.isfinite(rounded).all():
        raise UsageError("usage", "the gain makes an alpha infinite", got=layout.gain, hint="lower the gain")
    # obm-1 clause 11.3: a group that is not all zero never gets alpha 0
    rounded[(rounded == 0) & (s1 > 0)] = np.finfo(rounded.dtype).smallest_subnormal
    return rounded


def spread(alphas: Float32, layout: AlphaLayout, rows: int, view: Window) -> Float32:
    """The alphas of one plane as the kernels want them.

    Args:
        alphas: float32[G] of the whole matrix.
        layout: which elements share one.
        rows: rows of the whole matrix.
        view: the window; inside one row it begins on a group.

    Returns:
        float32[rows, groups] of the window; may be a broadcast view.
    """
    match layout.granularity:
        case Granularity.MATRIX:
            return np.broadcast_to(alphas.reshape(1, 1), (view.rows, 1))
        case Granularity.ROW:
            return alphas.reshape(rows, 1)[view.row_start : view.row_stop]
        case Granularity.GROUP:
            first, last = view.col_start // layout.group, -(-view.col_stop // layout.group)
            return np.ascontiguousarray(alphas.reshape(rows, -1)[view.row_start : view.row_stop, first:last])
        case Granularity.BLOCK:
            ends = group_bounds(layout, rows, 1)[1:]
            block = np.searchsorted(ends, np.arange(view.row_start, view.row_stop), side="right")
            return alphas[block].reshape(-1, 1)


def columns_per_alpha(layout: AlphaLayout, width: int) -> int:
    """Columns that share one alpha in a window of `width` columns."""
    return layout.group if layout.granularity is Granularity.GROUP else width


def store(planes: Sequence[Alphas], dtype: DType) -> bytes:
    """The alphas of all planes, one after the other, as the alpha pool has them (obm-1 clause 7.5)."""
    return b"".join(plane.astype(_STORED[dtype]).tobytes() for plane in planes)


def load(data: bytes, layout: AlphaLayout, shape: tuple[int, int], planes: int, where: str) -> list[Float32]:
    """The alphas of all planes as float32[G] each.

    Args:
        data: the record's bytes of the alpha pool; their number follows from the record.
        layout: granularity and dtype.
        shape: rows and columns of the matrix view.
        planes: number of planes.
        where: the tensor, for errors.

    Raises:
        FormatError: `bad_alpha`.
    """
    words = np.frombuffer(data, dtype=_WORD[layout.dtype])
    # obm-1 clause 6.3: finite and not negative, and -0 is negative; as unsigned words that is one comparison
    bad = words >= np.array(np.inf, dtype=_STORED[layout.dtype]).view(_WORD[layout.dtype])
    if bad.any():
        index = int(bad.argmax())
        value = words.view(_STORED[layout.dtype])[index]
        raise FormatError("bad_alpha", f"alpha {index} is negative, NaN or infinite", where=where, got=value)
    values = words.view(_STORED[layout.dtype]).astype(np.float32)
    return list(values.reshape(planes, alphas_per_plane(layout, *shape)))


def _by_rule(rule: AlphaRule, s1: Float64, s2: Float64, counts: npt.NDArray[np.int64]) -> Float64:
    n = np.maximum(counts, 1).astype(np.float64)  # a group without counted elements has sums of 0
    match rule:
        case AlphaRule.MEAN:
            return s1 / n
        case AlphaRule.RMS:
            return np.sqrt(s2 / n)
        case AlphaRule.PROJ:
            mean = s1 / n
            return np.divide(s2 / n, mean, out=np.zeros_like(mean), where=mean > 0)


def _canonical_blocks(blocks: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    # obm-1 clause 6.3: neighbours have different heights
    runs = groupby((pair for pair in blocks if pair[0] and pair[1]), key=lambda pair: pair[1])
    return tuple((sum(count for count, _ in run), height) for height, run in runs)
