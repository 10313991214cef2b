"""What a merge did to one tensor, in numbers: elements that moved, values that rounding swallowed, signs that clash.

Swallowed values and signs are counted on a sample that depends on the tensor's size alone: all of it up to a quarter
of a million elements, evenly spaced rows (or elements) of a larger one. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.codecs.base import Span
from obm_format.kernels.contract import ExactOperand, Kernels, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Words
from obm_format.merge.windows import task_vector
from obm_format.model import DType

SAMPLE_NUMEL = 1 << 18


@dataclass(slots=True)
class Figures:
    """Counts of one tensor, or the sums of many.

    Args:
        moved: elements whose bits are not the backbone's.
        comparable: elements that the backbone has too.
        absorbed: per artifact id, its approximate non-zero values in the sample, and how many of them rounding
            to the output dtype swallows: [swallowed, non-zero].
        contested: elements of the sample that two or more experts move.
        agreed: those among them that all move the same way.
    """

    moved: int = 0
    comparable: int = 0
    absorbed: dict[str, list[int]] = field(default_factory=dict)
    contested: int = 0
    agreed: int = 0

    def add(self, other: Figures) -> None:
        """Add the counts of another tensor."""
        self.moved += other.moved
        self.comparable += other.comparable
        self.contested += other.contested
        self.agreed += other.agreed
        for expert, (swallowed, nonzero) in other.absorbed.items():
            self.count_absorbed(expert, swallowed, nonzero)

    def count_absorbed(self, expert: str, swallowed: int, nonzero: int) -> None:
        """Add counts of one expert."""
        counts = self.absorbed.setdefault(expert, [0, 0])
        counts[0] += swallowed
        counts[1] += nonzero

    @property
    def moved_fraction(self) -> float:
        """Share of the comparable elements that moved, 0 to 1."""
        return self.moved / self.comparable if self.comparable else 0.0

    def absorbed_fraction(self, expert: str) -> float:
        """Share of an expert's approximate non-zero values that rounding swallows, 0 to 1."""
        swallowed, nonzero = self.absorbed.get(expert, (0, 0))
        return swallowed / nonzero if nonzero else 0.0

    @property
    def agreement(self) -> float | None:
        """Share of the contested elements that all experts move the same way; None where none is contested."""
        return self.agreed / self.contested if self.contested else None


def parse_figures(note: Mapping[str, object]) -> Figures:
    """`dataclasses.asdict` of figures, as a journal gives them back; zeros for whatever else."""
    try:
        absorbed = {str(name): [int(a), int(b)] for name, (a, b) in dict(note["absorbed"]).items()}  # type: ignore[call-overload]
        counts = [int(note[name]) for name in ("moved", "comparable", "contested", "agreed")]  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError):
        return Figures()
    return Figures(counts[0], counts[1], absorbed, counts[2], counts[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some elements of a tensor with what is added to them.

    Args:
        numel: elements of the whole tensor.
        span: which of them.
        shape: the view of the operands.
        base: the backbone's words, flat.
        base_dtype: theirs.
        out_dtype: dtype of the output.
        operands: (artifact id, whether the record is approximate, operand).
    """

    numel: int
    span: Span
    shape: tuple[int, int]
    base: Words
    base_dtype: DType
    out_dtype: DType
    operands: Sequence[tuple[str, bool, Operand]]


def count_operands(figures: Figures, piece: Piece, kernels: Kernels) -> None:
    """Count swallowed values and clashing signs in the part of a piece that belongs to the sample."""
    operands = [one for one in piece.operands if not isinstance(one[2], ZeroOperand)]
    stride = max(1, piece.numel // SAMPLE_NUMEL)
    by_rows = piece.shape[0] > 1 or any(isinstance(one[2], SignOperand) for one in operands)
    step = piece.shape[1] if by_rows else 1
    first = -(piece.span.start // step) % stride
    if not operands:
        return
    words = np.ascontiguousarray(_sampled(piece.base.reshape(piece.shape), by_rows, first, stride))
    if not words.size:
        return
    up, down, count = (np.zeros(words.shape, np.uint8) for _ in range(3))
    for expert, is_approximate, whole in operands:
        operand = _part(whole, by_rows, first, stride)
        if is_approximate:
            figures.count_absorbed(expert, *kernels.absorbed(words, piece.base_dtype, operand, piece.out_dtype))
        if len(operands) > 1 and not isinstance(operand, ZeroOperand):
            values = task_vector(operand, words, piece.base_dtype, kernels)
            up |= values > 0
            down |= values < 0
            count += values != 0
    contested = count > 1
    figures.contested += int(np.count_nonzero(contested))
    figures.agreed += int(np.count_nonzero(contested & (up != down)))


def _sampled(matrix: npt.NDArray[Any], by_rows: bool, first: int, stride: int) -> npt.NDArray[Any]:
    return matrix[first::stride] if by_rows else matrix[:, first::stride]


def _part(operand: Operand, by_rows: bool, first: int, stride: int) -> Operand:
    match operand:
        case SignOperand(bits=planes, alphas=alphas, group=group, cols=cols):
            return SignOperand(
                bits=tuple(bits[first::stride] for bits in planes),
                alphas=tuple(alpha[first::stride] for alpha in alphas),
                group=group,
                cols=cols,
            )
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=np.ascontiguousarray(_sampled(words, by_rows, first, stride)), dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=np.ascontiguousarray(_sampled(values, by_rows, first, stride)))
        case ZeroOperand():
            return operand
