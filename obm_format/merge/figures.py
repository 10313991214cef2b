"""What a merge did to one tensor, in numbers: elements that moved, values that rounding swallowed, signs that clash.

Swallowed values and signs are counted on a sample that depends on the tensor's size alone: all of it up to a quarter
of a million elements, evenly spaced rows (or runs of elements) of a larger one. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.codecs.base import Span
from obm_format.kernels.contract import ExactOperand, Kernels, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Words
from obm_format.merge.windows import task_vector
from obm_format.model import DType

SAMPLE_NUMEL = 1 << 18
_RUN = 16  # elements next to each other, for which memory is waited for once
_COUNTED_NUMEL = 1 << 15  # elements of the sample that are counted together


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


class Sample:
    """Counts swallowed values and clashing signs in what belongs to the sample of one tensor.

    Pieces hold little of it, so what they bring is kept, copied, and counted together.

    Args:
        figures: of the tensor; added to.
        kernels: who computes.
    """

    def __init__(self, figures: Figures, kernels: Kernels) -> None:
        self._figures, self._kernels = figures, kernels
        self._held: list[_Part] = []

    def add(self, piece: Piece) -> None:
        """Take in the part of a piece that belongs to the sample."""
        part = _part(piece)
        if part is None:
            return
        if self._held and self._held[0].kind != part.kind:
            self.count()
        self._held.append(part)
        if sum(one.words.size for one in self._held) >= _COUNTED_NUMEL:
            self.count()

    def count(self) -> None:
        """Count what was taken in since the last time."""
        if self._held:
            _count(self._figures, _joined(self._held), self._kernels)
            self._held = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The sampled part of a piece: rows of it, or elements of its only row.

    Args:
        by_rows: which of the two.
        words: the backbone's.
        base_dtype: theirs.
        out_dtype: dtype of the output.
        operands: as in `Piece`, of the same elements, none of zeros.
    """

    by_rows: bool
    words: Words
    base_dtype: DType
    out_dtype: DType
    operands: Sequence[tuple[str, bool, Operand]]

    @property
    def kind(self) -> tuple[object, ...]:
        """Parts of one kind can be joined."""
        shapes = [
            (expert, type(operand), getattr(operand, "group", 0), len(getattr(operand, "bits", ())))
            for expert, _, operand in self.operands
        ]
        return (self.by_rows, self.words.shape[1] if self.by_rows else 0, *shapes)


def _part(piece: Piece) -> _Part | None:
    """What of a piece belongs to the sample; None where nothing does, or there is nothing to count."""
    operands = [one for one in piece.operands if not isinstance(one[2], ZeroOperand)]
    if len(operands) < 2 and not any(is_approximate for _, is_approximate, _ in operands):
        return None
    stride = max(1, piece.numel // SAMPLE_NUMEL)
    by_rows = piece.shape[0] > 1 or any(isinstance(one[2], SignOperand) for one in operands)
    chosen = _chosen(piece, by_rows, stride)
    words = _sampled(piece.base.reshape(piece.shape), by_rows, chosen)
    if not words.size:
        return None
    return _Part(
        by_rows=by_rows,
        words=words,
        base_dtype=piece.base_dtype,
        out_dtype=piece.out_dtype,
        operands=[
            (expert, is_approximate, _sampled_operand(operand, by_rows, chosen))
            for expert, is_approximate, operand in operands
        ],
    )


def _chosen(piece: Piece, by_rows: bool, stride: int) -> npt.NDArray[np.int64]:
    """Which rows of a piece belong to the sample, or which elements: one run of every `stride`."""
    unit, run = (piece.shape[1], 1) if by_rows else (1, _RUN)
    start, stop = piece.span.start // unit, piece.span.stop // unit
    first = start // (run * stride) * run * stride
    places = (np.arange(first, stop, run * stride)[:, None] + np.arange(run)).reshape(-1)
    return places[(places >= start) & (places < stop)] - start


def _count(figures: Figures, part: _Part, kernels: Kernels) -> None:
    words, operands = part.words, part.operands
    up, down, count = (np.zeros(words.shape, np.uint8) for _ in range(3))
    for expert, is_approximate, operand in operands:
        if is_approximate:
            figures.count_absorbed(expert, *kernels.absorbed(words, part.base_dtype, operand, part.out_dtype))
        if len(operands) > 1:
            values = task_vector(operand, words, part.base_dtype, kernels)
            up |= values > 0
            down |= values < 0
            count += values != 0
    contested = count > 1
    figures.contested += int(np.count_nonzero(contested))
    figures.agreed += int(np.count_nonzero(contested & (up != down)))


def _sampled(matrix: npt.NDArray[Any], by_rows: bool, chosen: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """A copy: what it is taken from is used again, or much larger."""
    return matrix.take(chosen, axis=0 if by_rows else 1)


def _sampled_operand(operand: Operand, by_rows: bool, chosen: npt.NDArray[np.int64]) -> Operand:
    match operand:
        case SignOperand(bits=planes, alphas=alphas, group=group, cols=cols):
            return SignOperand(
                bits=tuple(_sampled(bits, True, chosen) for bits in planes),
                alphas=tuple(_sampled(alpha, True, chosen) for alpha in alphas),
                group=group,
                cols=cols,
            )
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=_sampled(words, by_rows, chosen), dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=_sampled(values, by_rows, chosen))
        case ZeroOperand():
            return operand


def _joined(parts: Sequence[_Part]) -> _Part:
    """Parts of one kind as one."""
    if len(parts) == 1:
        return parts[0]
    axis = 0 if parts[0].by_rows else 1
    columns = zip(*(part.operands for part in parts), strict=True)
    return replace(
        parts[0],
        words=np.concatenate([part.words for part in parts], axis),
        operands=[
            (column[0][0], column[0][1], _joined_operand([operand for _, _, operand in column], axis))
            for column in columns
        ],
    )


def _joined_operand(operands: Sequence[Operand], axis: int) -> Operand:
    first = operands[0]
    match first:
        case SignOperand(bits=planes):
            signs = [operand for operand in operands if isinstance(operand, SignOperand)]
            return replace(
                first,
                bits=tuple(np.concatenate([sign.bits[plane] for sign in signs]) for plane in range(len(planes))),
                alphas=tuple(np.concatenate([sign.alphas[plane] for sign in signs]) for plane in range(len(planes))),
            )
        case ExactOperand():
            exact = [operand.words for operand in operands if isinstance(operand, ExactOperand)]
            return replace(first, words=np.concatenate(exact, axis))
        case ValueOperand():
            return ValueOperand(
                values=np.concatenate([one.values for one in operands if isinstance(one, ValueOperand)], axis)
            )
        case ZeroOperand():
            return first
