"""One tensor of an expert, front to back in pieces, so that nobody has to hold it whole.

What the parts' digests and the codecs find is raised with the piece; that an exact tensor hashes to its digest shows
at the end, in `finish`. Never checks the backbone: whoever hands it in does. Source: obm-1 clauses 5.5, 9.1 to 9.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from obm_format.codecs import catalogue, sign1
from obm_format.codecs.base import Span, read_words, whole
from obm_format.codecs.frames import cut_numel
from obm_format.errors import FormatError
from obm_format.expert.parts import HeldParts, RecordParts
from obm_format.expert.reader import Expert
from obm_format.kernels.contract import ExactOperand, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Words, first_not_finite
from obm_format.model import Mode, SignParams, TensorRecord, ZeroParams


class Pieces(Protocol):
    """The task vector of one tensor, piece by piece; for one thread."""

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """The operand of some elements; spans follow one another, and none is left out.

        Args:
            span: flat elements of what the encoding covers.
            shape: rows and columns to view them in; whole rows.

        Raises:
            FormatError: what the parts' digests and the codecs find.
        """
        ...

    def finish(self) -> None:
        """To be called after the last piece, before anybody believes one of them.

        Raises:
            FormatError: `output_digest`.
        """
        ...


def open_pieces(expert: Expert, name: str, base: Words | None, rows: int) -> Pieces:
    """The task vector of a tensor in pieces.

    Args:
        expert: the open expert; `rtvq` records need their base vector at hand.
        name: tensor name in backbone coordinates.
        base: the flat words of the backbone tensor, which the caller vouches for; None for added tensors.
        rows: rows of the matrix view that pieces are asked in.
    """
    record = expert.records[name]
    if isinstance(record.params, ZeroParams) and record.mode is Mode.DELTA:
        return ZeroPieces()
    if isinstance(record.params, SignParams) and record.params.rows == rows:
        return SignPieces(sign1.operand(record, RecordParts.of(expert, record)))
    return ExactPieces(expert, record, base) if record.is_exact else ValuePieces(expert, record)


class ZeroPieces:
    """Nothing is added anywhere."""

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """See `Pieces.operand`."""
        del span, shape
        return ZeroOperand()

    def finish(self) -> None:
        """See `Pieces.finish`."""


class SignPieces:
    """Rows of sign bits, which stay packed.

    Args:
        operand: the whole tensor.
    """

    def __init__(self, operand: SignOperand) -> None:
        self._whole = operand

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """See `Pieces.operand`."""
        rows = slice(span.start // shape[1], span.stop // shape[1])
        return SignOperand(
            bits=tuple(bits[rows] for bits in self._whole.bits),
            alphas=tuple(alphas[rows] for alphas in self._whole.alphas),
            group=self._whole.group,
            cols=self._whole.cols,
        )

    def finish(self) -> None:
        """See `Pieces.finish`."""


class ValuePieces:
    """Decoded float32 values."""

    def __init__(self, expert: Expert, record: TensorRecord) -> None:
        self._expert = expert
        self._record = record
        self._parts = HeldParts.of(expert, record)

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """See `Pieces.operand`."""
        return ValueOperand(values=self._expert.decode(self._record, span, self._parts).reshape(shape))

    def finish(self) -> None:
        """See `Pieces.finish`."""


class ExactPieces:
    """The fine-tune's own words, grown rows last.

    Args:
        expert: the open expert.
        record: an exact one.
        base: flat words of the backbone tensor; `raw` does not need it.
    """

    def __init__(self, expert: Expert, record: TensorRecord, base: Words | None) -> None:
        self._record = record
        self._base = base
        self._parts = HeldParts.of(expert, record)
        self._expected = expert.digests(record.name).out
        self._hash = hashlib.sha256()
        self._ahead = self._decoded()
        self._pending: list[Words] = []

    def operand(self, span: Span, shape: tuple[int, int]) -> Operand:
        """See `Pieces.operand`."""
        return ExactOperand(words=self.take(span.size).reshape(shape), dtype=self._record.spec.dtype)

    def take(self, count: int) -> Words:
        """The next `count` words, flat.

        Raises:
            FormatError: what the parts' digests and the codecs find; `not_finite`.
        """
        found: list[Words] = []
        missing = count
        while missing:
            words = self._pending.pop() if self._pending else next(self._ahead)
            found.append(words[:missing])
            if words.size > missing:
                self._pending.append(words[missing:])
            missing -= found[-1].size
        return found[0] if len(found) == 1 else np.concatenate(found or [self._nothing()])

    def finish(self) -> None:
        """See `Pieces.finish`."""
        for _ in self._ahead:
            pass
        # obm-1 clause 9.4
        if self._hash.digest() != self._expected:
            raise FormatError(
                "output_digest",
                "the rebuilt tensor does not hash to its digest",
                where=self._record.name,
                expected=self._expected.hex() if self._expected else None,
            )

    def _nothing(self) -> Words:
        return catalogue.decode_words(self._record, self._parts, Span(0, 0), self._base)

    def _decoded(self) -> Iterator[Words]:
        record, dtype, done = self._record, self._record.spec.dtype, 0
        for words in self._stored():
            self._hash.update(words.view(np.uint8).data)
            bad = first_not_finite(words, dtype) if dtype.is_float else None
            if bad is not None:  # obm-1 clause 9.3
                raise FormatError("not_finite", f"element {done + bad} is NaN or infinite", where=record.name)
            done += words.size
            yield words

    def _stored(self) -> Iterator[Words]:
        """The words cut by cut, as frames have them."""
        record, dtype = self._record, self._record.spec.dtype
        for span in whole(record).pieces(cut_numel(dtype)):
            yield catalogue.decode_words(record, self._parts, span, self._base)
        grown = Span(0, record.spec.numel - record.encoded_numel)
        for span in grown.pieces(cut_numel(dtype)):
            yield read_words(self._parts, "tail", dtype, span)
