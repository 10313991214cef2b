"""A matrix in windows of whole rows, so that float32 task vectors never exist for a whole tensor.

Results never depend on where the windows are cut. Source: obm-1 clauses 6.1 and 9.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from obm_format.kernels.contract import ExactOperand, Kernels, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Float32, Words
from obm_format.model import DType

WINDOW = 1 << 18  # elements of a window, at least one row


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """A task vector that is not made yet: a fine-tune's words and the backbone's, of one shape."""

    tuned: ExactOperand
    base: Words
    base_dtype: DType


Values = Float32 | Difference
"""What a trim looks at: values, or the words that they are the difference of."""


def row_windows(shape: tuple[int, int]) -> Iterator[slice]:
    """The rows of each window of a matrix, in order."""
    rows, cols = shape
    step = max(1, WINDOW // max(1, cols))
    return (slice(start, min(rows, start + step)) for start in range(0, rows if cols else 0, step))


def matrix_view(operands: Sequence[Operand], base: Words) -> tuple[int, int]:
    """(rows, cols) to work in: those of the first sign operand, which cannot be viewed otherwise.

    Without one any view gives the same elements: rows of one element, which can be cut anywhere.
    """
    for operand in operands:
        if isinstance(operand, SignOperand):
            return operand.shape
    return base.size, 1


def in_view(operand: Operand, view: tuple[int, int], kernels: Kernels) -> Operand:
    """The operand as a matrix of shape `view`; sign bits packed for other rows are decoded."""
    match operand:
        case ZeroOperand():
            return operand
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=words.reshape(view), dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=values.reshape(view))
        case SignOperand():
            if operand.shape == view:
                return operand
            return ValueOperand(values=kernels.sign_values(operand).reshape(view))


def rows_of(operand: Operand, rows: slice) -> Operand:
    """The operand in some rows of its matrix."""
    match operand:
        case ZeroOperand():
            return operand
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=words[rows], dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=values[rows])
        case SignOperand():
            return SignOperand(
                bits=tuple(bits[rows] for bits in operand.bits),
                alphas=tuple(alphas[rows] for alphas in operand.alphas),
                group=operand.group,
                cols=operand.cols,
            )


def task_vector(operand: Operand, base: Words, base_dtype: DType, kernels: Kernels) -> Float32:
    """The float32 values of an operand against the backbone's words of the same rows (obm-1 clause 9.2)."""
    match operand:
        case SignOperand():
            return kernels.sign_values(operand)
        case ExactOperand(words=words, dtype=dtype):
            return kernels.subtract(words, dtype, base.reshape(words.shape), base_dtype)
        case ValueOperand(values=values):
            return values
        case ZeroOperand():
            return np.zeros(base.shape, np.float32)


def window_values(operand: Operand, base: Words, base_dtype: DType, kernels: Kernels) -> Iterator[tuple[int, Float32]]:
    """The values of an operand, window by window: (flat place of the first, values).

    Args:
        operand: in any view.
        base: the backbone's words, of as many elements.
        base_dtype: their dtype.
        kernels: who computes.
    """
    view = matrix_view([operand], base)
    operand, matrix = in_view(operand, view, kernels), base.reshape(view)
    for rows in row_windows(view):
        yield rows.start * view[1], task_vector(rows_of(operand, rows), matrix[rows], base_dtype, kernels)


def window_looks(operand: Operand, base: Words, base_dtype: DType, kernels: Kernels) -> Iterator[tuple[int, Values]]:
    """As `window_values`, but an exact operand comes as one `Difference`."""
    if isinstance(operand, ExactOperand):
        yield 0, Difference(operand, base.reshape(operand.shape), base_dtype)
    else:
        yield from window_values(operand, base, base_dtype, kernels)


def made(values: Values, kernels: Kernels) -> Iterator[tuple[int, Float32]]:
    """The values themselves, window by window: (flat place of the first, values)."""
    if isinstance(values, Difference):
        yield from window_values(values.tuned, values.base, values.base_dtype, kernels)
    else:
        yield 0, values
