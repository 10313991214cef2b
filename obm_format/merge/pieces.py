"""The task vector of one tensor in pieces, whoever brings it: an expert, or a dense fine-tune.

Never merges. Source: obm-1 clauses 9.1 and 9.2.
"""

from __future__ import annotations

from typing import Protocol

from obm_format.codecs.base import Span
from obm_format.errors import UsageError
from obm_format.expert.pieces import ExactPieces, Pieces, open_pieces
from obm_format.kernels.contract import ExactOperand, Kernels, Operand
from obm_format.kernels.words import Words
from obm_format.merge.dense import DenseFineTune, Source
from obm_format.model import TensorRecord
from obm_format.taskvector import check_finite_words


class WordPieces(Pieces, Protocol):
    """Pieces of a tensor that is the fine-tune's own."""

    def take(self, count: int) -> Words:
        """The next `count` words, flat; grown rows come last."""
        ...


class DensePieces:
    """A dense fine-tune's own words, as they lie in its map.

    Args:
        source: the fine-tune.
        name: the tensor, in backbone coordinates.
        kernels: who looks for NaN.
    """

    def __init__(self, source: DenseFineTune, name: str, kernels: Kernels) -> None:
        self._spec, words = source.words(name)
        self._words = words.reshape(-1)
        self._kernels = kernels
        self._at = 0

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """See `Pieces.operand`; not looked at: a merge sees most of what it reads, and `check` is for the rest."""
        self._at = span.stop
        return ExactOperand(words=self._words[span.start : span.stop].reshape(shape), dtype=self._spec.dtype)

    def check(self, span: Span) -> None:
        """Refuse NaN and Inf in some elements.

        Raises:
            CheckpointError: `not_finite_input`.
        """
        words = self._words[span.start : span.stop]
        check_finite_words(words, self._spec, "fine-tune", span.start, self._kernels.first_not_finite)

    def take(self, count: int) -> Words:
        """See `WordPieces.take`.

        Raises:
            CheckpointError: `not_finite_input`.
        """
        span = Span(self._at, self._at + count)
        self.check(span)
        self._at = span.stop
        return self._words[span.start : span.stop]

    def finish(self) -> None:
        """See `Pieces.finish`."""
        self.take(self._words.size - self._at)


def pieces_of(source: Source, record: TensorRecord, base: Words | None, rows: int, kernels: Kernels) -> Pieces:
    """The task vector of a tensor in pieces; arguments as of `expert.pieces.open_pieces` and `DensePieces`."""
    if isinstance(source, DenseFineTune):
        return DensePieces(source, record.name, kernels)
    return open_pieces(source, record.name, base, rows)


def words_of(source: Source, record: TensorRecord, base: Words | None, kernels: Kernels) -> WordPieces:
    """The fine-tune's own words of an exact record in pieces.

    Raises:
        UsageError: the record is approximate (`usage`).
    """
    if isinstance(source, DenseFineTune):
        return DensePieces(source, record.name, kernels)
    if not record.is_exact:
        raise UsageError("usage", "the tensor is stored approximately", where=record.name, got=record.encoding)
    return ExactPieces(source, record, base)
