"""How much of a task vector an encoding keeps: along it, row by row, and what it adds across it.

Decodes piece by piece from what will be written. All sums that decide something are those of the kernels, whose
order is pinned (obm-1 clause 11.3), so that every machine measures the same. Source: design page, "Defaults, and why".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from obm_format.codecs import catalogue
from obm_format.codecs.alphas import Float64
from obm_format.codecs.base import Encoded, Span
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32
from obm_format.model import TensorRecord

_PIECE = 1 << 20  # elements decoded together to measure the error


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What a decoded vector x keeps of a task vector d; all are float64 sums of squares, so they add up.

    Args:
        shift: |d|^2.
        along: <d, x>.
        lost: |d - x|^2.
        skew: sum over rows r of |d_r|^2 (1 - a_r)^2, where a_r = <d_r, x_r> / |d_r|^2 is the row's own share.
    """

    shift: float = 0.0
    along: float = 0.0
    lost: float = 0.0
    skew: float = 0.0

    @property
    def kept(self) -> float:
        """Share of the shift along d that is applied: 1 is all of it, 0 none, above 1 too much; 1 if d is 0."""
        return self.along / self.shift if self.shift else 1.0

    @property
    def rel_error(self) -> float:
        """|d - x| / |d|; 0 if d is 0."""
        return math.sqrt(self.lost / self.shift) if self.shift else 0.0


def total(parts: Iterable[Fidelity]) -> Fidelity:
    """Several tensors as one vector."""
    found = list(parts)
    return Fidelity(
        shift=math.fsum(one.shift for one in found),
        along=math.fsum(one.along for one in found),
        lost=math.fsum(one.lost for one in found),
        skew=math.fsum(one.skew for one in found),
    )


def exact(d: Float32, *, rows: int, kernels: Kernels) -> Fidelity:
    """The fidelity of d itself, summed as `measure` does."""
    squares = (_square(piece, kernels) for piece, _ in _pieces(d.reshape(rows, -1)))
    shift = math.fsum(itertools.chain.from_iterable(one.tolist() for one in squares))
    return Fidelity(shift=shift, along=shift)


def measure(d: Float32, record: TensorRecord, encoded: Encoded, *, rows: int, kernels: Kernels) -> Fidelity:
    """Decode an approximate encoding and hold it against what it stands for.

    Args:
        d: float32 task vector of any shape.
        record: what would be written of it.
        encoded: likewise, without tail.
        rows: rows of the matrix view; decoding goes by whole rows.
        kernels: unpack signs and sum.
    """
    parts, sums = EncodedParts(encoded), [list[float]() for _ in range(4)]
    for piece, span in _pieces(d.reshape(rows, -1)):
        decoded = catalogue.decode_values(record, parts, span, kernels=kernels).reshape(piece.shape)
        shift, lost = _square(piece, kernels), _square(piece - decoded, kernels)
        along = (shift + _square(decoded, kernels) - lost) / 2
        own = np.divide(along, shift, out=np.ones_like(along), where=shift > 0)
        for column, values in zip(sums, (shift, along, lost, shift * (1 - own) ** 2), strict=True):
            column.extend(values.tolist())
    return Fidelity(**dict(zip(("shift", "along", "lost", "skew"), map(math.fsum, sums), strict=True)))


def _pieces(matrix: Float32) -> Iterator[tuple[Float32, Span]]:
    """Some whole rows at a time, with their elements in the flat tensor."""
    rows, columns = matrix.shape
    step = max(1, _PIECE // max(1, columns))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        yield matrix[first:last], Span(first * columns, last * columns)


def _square(matrix: Float32, kernels: Kernels) -> Float64:
    """Sum of squares of each row, in the pinned order."""
    rows, columns = matrix.shape
    flat = np.ascontiguousarray(matrix).reshape(-1)
    return kernels.group_sums(flat, np.arange(rows + 1, dtype=np.int64) * columns)[1]


class ErrorSums:
    """Sums over the tensors in the position, in float64: d*d, d*decoded, (d - decoded)^2."""

    def __init__(self) -> None:
        self._shift = self._along = self._lost = 0.0

    def add(
        self,
        d: Float32,
        record: TensorRecord,
        encoded: Encoded,
        kernels: Kernels,
        reference: Float32 | None = None,
    ) -> None:
        """Count one tensor, decoding it piece by piece from what will be written.

        Args:
            d: float32 task vector of any shape.
            record: what is written of it.
            encoded: likewise, without tail.
            kernels: unpack signs.
            reference: what an `rtvq` offset is taken from, of the shape of `d`.
        """
        parts, flat = EncodedParts(encoded), d.reshape(-1)
        shared = None if reference is None else reference.reshape(-1)
        for span in Span(0, d.size).pieces(_PIECE):
            wanted = flat[span.start : span.stop].astype(np.float64)
            piece = None if shared is None else shared[span.start : span.stop]
            values = catalogue.decode_values(record, parts, span, kernels=kernels, reference=piece)
            decoded = values.astype(np.float64)
            self._shift += float(wanted @ wanted)
            self._along += float(wanted @ decoded)
            wanted -= decoded
            self._lost += float(wanted @ wanted)

    @property
    def fidelity(self) -> Fidelity:
        """All that was added, as one vector."""
        return Fidelity(shift=self._shift, along=self._along, lost=self._lost)


class EncodedParts:
    """The parts of a tensor that is not written yet, as a `PartReader`."""

    def __init__(self, encoded: Encoded) -> None:
        self._frames = {part.suffix: part.chunks for part in encoded.parts}
        self._parts = {part.suffix: memoryview(b"".join(part.chunks)) for part in encoded.parts}
        self._alphas = encoded.alphas

    def part(self, suffix: str) -> memoryview:
        """See `PartReader.part`."""
        return self._parts[suffix]

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        """See `PartReader.part_range`."""
        return bytes(self.part(suffix)[start:stop])

    def frames(self, suffix: str) -> Sequence[memoryview]:
        """See `PartReader.frames`."""
        return [memoryview(chunk) for chunk in self._frames[suffix]]

    def frame(self, suffix: str, index: int) -> bytes:
        """See `PartReader.frame`."""
        return bytes(self.frames(suffix)[index])

    def alphas(self) -> bytes:
        """See `PartReader.alphas`."""
        return self._alphas
