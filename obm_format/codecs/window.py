"""A window on the matrix view: the rows, or the piece of one row, that cover a span of flat elements.

Bit-packed rows cannot be cut anywhere, so a codec decodes a window that begins on a byte and crops.
Source: obm-1 clauses 6.1, 6.2 and 9.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.codecs.base import Bytes, PartReader, Span
from obm_format.layout import packed_row_nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Rows [row_start, row_stop) and columns [col_start, col_stop) of a matrix of `cols` columns.

    The columns are all of them unless the window is inside one row.
    """

    cols: int
    row_start: int
    row_stop: int
    col_start: int
    col_stop: int

    @property
    def rows(self) -> int:
        """Rows of the window."""
        return self.row_stop - self.row_start

    @property
    def width(self) -> int:
        """Columns of the window."""
        return self.col_stop - self.col_start

    def crop(self, matrix: npt.NDArray[Any], span: Span) -> npt.NDArray[Any]:
        """The flat elements of `span` out of the decoded window [rows, width]."""
        skip = span.start - (self.row_start * self.cols + self.col_start)
        return matrix.reshape(-1)[skip : skip + span.size]


def window(cols: int, span: Span, align: int = 8) -> Window:
    """The smallest window that covers `span`.

    Args:
        cols: columns of the matrix view.
        span: flat elements; not empty.
        align: columns on a multiple of which a piece of a row begins, a multiple of 8.
    """
    row_start, row_stop = span.start // cols, -(-span.stop // cols)
    if row_stop - row_start > 1:
        return Window(cols=cols, row_start=row_start, row_stop=row_stop, col_start=0, col_stop=cols)
    first, last = span.start - row_start * cols, span.stop - row_start * cols
    return Window(
        cols=cols,
        row_start=row_start,
        row_stop=row_stop,
        col_start=first // align * align,
        col_stop=min(cols, -(-last // align) * align),
    )


def read_window(parts: PartReader, suffix: str, view: Window, bits: int) -> Bytes:
    """The packed bytes of a window: uint8[rows, ceil(width * bits / 8)], read-only.

    Args:
        parts: the record's parts.
        suffix: a part of packed rows.
        view: what to read.
        bits: bits per element.
    """
    stride = packed_row_nbytes(view.cols, bits)
    start = view.row_start * stride + packed_row_nbytes(view.col_start, bits)
    width = packed_row_nbytes(view.width, bits)
    nbytes = view.rows * stride if view.rows > 1 else width
    data = parts.part_range(suffix, start, start + nbytes)
    return np.frombuffer(data, dtype=np.uint8).reshape(view.rows, width)
