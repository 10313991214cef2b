"""One tensor of a merge, made front to back in pieces that fit into a cache: read, hash, decode, merge, hand over.

Memory is bounded by the pieces, whatever the size of the tensor: a method that has to see all of it before it can
choose elements looks at it several times. The backbone is hashed as it is read; whether its bytes were right shows at
the end, and until then nobody may use what was handed over. Source: obm-1 clauses 9.3 and 10.3; design, "Maths".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.codecs.base import Span
from obm_format.errors import FormatError
from obm_format.expert.pieces import ExactPieces, Pieces
from obm_format.kernels.contract import Combine, Kernels, Operand, Sight, ValueOperand, ZeroOperand
from obm_format.kernels.words import Words, cast
from obm_format.merge.arithmetic import WHOLE, BaseMatrix, Share, Thinning, find_thinning, merge_tensor
from obm_format.merge.dense import DenseFineTune, Source
from obm_format.merge.figures import Figures, Piece, Sample
from obm_format.merge.meter import Meter
from obm_format.merge.pieces import DensePieces, pieces_of, words_of
from obm_format.merge.plan import Contribution, MergePlan, Step
from obm_format.merge.survey import NO_SURVEY, Survey
from obm_format.merge.windows import Values, window_looks
from obm_format.model import SignParams, TensorSpec
from obm_format.taskvector import check_finite_words

_MAPPED_PIECES = 4  # looked at together where they lie in a map: each call that counts begins a table of its own


class Target(Protocol):
    """Where one tensor goes."""

    def room(self, span: Span) -> Words:
        """Flat words for some elements of the output, to be filled by the kernels and handed to `put`."""
        ...

    def put(self, span: Span, words: Words) -> None:
        """Take some elements, `room`'s or others; spans follow one another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a merge is made of.

    Args:
        base: the open backbone.
        experts: by ascending artifact id, as in the plan.
        plan: what to do.
        survey: what looking at everything brought.
        kernels: who computes; called from several threads.
        piece_nbytes: bytes of output that are made at a time.
        measure: whether to count what moved and was absorbed.
    """

    base: Checkpoint
    experts: Sequence[Source]
    plan: MergePlan
    survey: Survey = NO_SURVEY
    kernels: Kernels
    piece_nbytes: int
    measure: bool


def make_tensor(step: Step, inputs: Inputs, target: Target, meter: Meter, check: Callable[[], None]) -> Figures:
    """Make one tensor of the output.

    Args:
        step: which.
        inputs: of what.
        target: takes it.
        meter: told what it took.
        check: called now and then; may raise to stop the work.

    Raises:
        BackboneMismatch: the backbone tensor has other bytes than the experts were made against (`base_digest`).
        FormatError: a part is damaged, or a result is NaN or infinite (`not_finite`).
    """
    return _Maker(step, inputs, target, meter, check).make()


class _Maker:
    def __init__(self, step: Step, inputs: Inputs, target: Target, meter: Meter, check: Callable[[], None]) -> None:
        self._step, self._inputs, self._target, self._meter, self._check = step, inputs, target, meter, check
        self._kernels, self._plan = inputs.kernels, inputs.plan
        self._figures = Figures()
        self._sample = Sample(self._figures, inputs.kernels)
        self._base: Words | None = None
        self._hash = hashlib.sha256()
        self._seen = 0
        self._known: bytes | None = None
        if step.base is not None:
            self._base = inputs.base.words(step.base.name).reshape(-1)
            self._known = inputs.base.known_sha256(step.base.name)
        sources = [(inputs.experts[one.participant], one.record.name) for one in step.witnesses]
        self._vouching = [(one, name) for one, name in sources if not isinstance(one, DenseFineTune)]

    def make(self) -> Figures:
        self._meter.add_read(self._step.bytes_read)
        try:
            if self._known is not None and self._vouching:
                self._check_base()
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is merged
                self._copy() if self._copies else self._merge()
        except FormatError:
            self._check_base()  # another backbone explains whatever was found
            raise
        self._check_base()
        self._release()
        with self._meter.phase("measure"):
            self._sample.count()
        return self._figures

    # --- the backbone ---------------------------------------------------------------------------------------

    def _read(self, span: Span) -> Words:
        """Some elements of the backbone; hashed where an expert vouches for them."""
        assert self._base is not None  # noqa: S101 - only added tensors have none, and they are copies
        words = self._base[span.start : span.stop]
        if self._vouching and span.start == self._seen:
            self._seen = span.stop
            if self._known is None:
                with self._meter.phase("read"):
                    self._hash.update(words.view(np.uint8).data)
        return words

    def _check_base(self) -> None:
        """Refuse another backbone (obm-1 clause 10.3), or one that nobody vouches for and that holds NaN."""
        if self._base is None or self._step.base is None:
            return
        self._refuse_not_finite(Span(self._seen, self._base.size))
        if not self._vouching:
            return
        if self._known is None:
            self._read(Span(self._seen, self._base.size))
            self._known = self._hash.digest()
            self._inputs.base.remember_sha256(self._step.base.name, self._known)
        for expert, name in self._vouching:
            expert.check_base(name, self._step.base, self._known)

    def _refuse_not_finite(self, span: Span) -> None:
        """Refuse NaN in some elements of a backbone for which no expert vouches."""
        if self._base is None or self._step.base is None or self._vouching:
            return
        with self._meter.phase("read"):
            words, find = self._base[span.start : span.stop], self._kernels.first_not_finite
            check_finite_words(words, self._step.base, "backbone", span.start, find)
        self._seen = span.stop

    def _read_finite(self, span: Span) -> Words:
        """As `_read`, for what no merge sees."""
        self._refuse_not_finite(span)
        return self._read(span)

    def _release(self) -> None:
        """Give back the mapped pages that are used up."""
        if self._step.base is not None:
            self._inputs.base.release(self._step.base.name)
        for one in self._step.others:
            expert = self._inputs.experts[one.participant]
            if isinstance(expert, DenseFineTune):
                expert.release(one.record.name)

    # --- copies ---------------------------------------------------------------------------------------------

    @property
    def _copies(self) -> bool:
        """Whether the tensor is the routed expert's own or the backbone's, at most in another dtype."""
        step = self._step
        if not step.is_arithmetic:
            return True
        brings = bool(step.others) and self._plan.recipe.lam != 0
        return not brings and (step.routed is None or step.routed.is_exact or step.routed.is_unchanged)

    def _copy(self) -> None:
        step = self._step
        if step.routed is None or step.routed.is_unchanged:
            assert step.base is not None  # noqa: S101 - as above
            for span in self._spans(step.base.numel, 1):
                self._hand_over(span, self._read_finite(span), step.base)
            return
        assert self._plan.routed is not None  # noqa: S101 - there is a routed record
        pieces = words_of(self._inputs.experts[self._plan.routed], step.routed, self._base, self._kernels)
        for span in self._spans(step.routed.spec.numel, 1):
            if self._base is not None:
                self._read_finite(Span(min(span.start, self._base.size), min(span.stop, self._base.size)))
            with self._meter.phase("decode"):
                words = pieces.take(span.size)
            self._hand_over(span, words, step.routed.spec)
        pieces.finish()

    def _hand_over(self, span: Span, words: Words, source: TensorSpec) -> None:
        out = words
        if source.dtype is not self._step.spec.dtype:
            with self._meter.phase("merge"):
                out = cast(words, source.dtype, self._step.spec.dtype)
                self._check_finite(out, span.start)
        self._measure(span, out, (1, span.size), [])
        self._put(span, out)

    # --- arithmetic -----------------------------------------------------------------------------------------

    def _merge(self) -> None:
        step, base = self._step, self._step.base
        assert base is not None  # noqa: S101 - as above
        rows = self._rows()
        cols = base.numel // rows if rows else 1
        sources = [self._open(one, rows) for one in step.others]
        routed = (
            None if step.routed is None or self._plan.routed is None else Contribution(self._plan.routed, step.routed)
        )
        head = None if routed is None else self._open(routed, rows)
        opened = sources if head is None else [head, *sources]
        thinnings = [self._thinning(one, rows, cols) for one in step.others]
        for span in self._spans(base.numel, cols):
            shape = (span.size // cols, cols) if rows else (1, span.size)
            words = self._read(span)
            with self._meter.phase("decode"):
                applied = None if head is None else self._applied(head.operand(span, shape), shape)
                operands = [source.operand(span, shape) for source in sources]
            out = self._target.room(span)
            with self._meter.phase("merge"):
                matrix = BaseMatrix(name=base.name, words=words.reshape(shape), dtype=base.dtype, start=span.start)
                seen = self._merge_piece(matrix, applied, self._shares(operands, thinnings), out.reshape(shape))
            if seen is None or not seen.is_finite:
                self._look(span, opened, out)
            self._seen = max(self._seen, span.stop)  # a look may have read, and hashed, beyond it
            brought = [*zip(step.others, operands, strict=True)]
            if routed is not None and applied is not None:
                brought.append((routed, applied))
            self._measure(span, out, shape, brought, None if seen is None else seen.moved)
            self._put(span, out)
        self._grow(head)
        for source in opened:
            source.finish()

    def _merge_piece(
        self, base: BaseMatrix, applied: Operand | None, shares: Sequence[Share], out: Words
    ) -> Sight | None:
        recipe = self._plan.recipe
        return merge_tensor(
            base,
            applied,
            shares,
            recipe=recipe,
            kernels=self._kernels,
            out=out,
            out_dtype=self._step.spec.dtype,
            zero_is_positive=recipe.arithmetic.zero_is_positive or self._inputs.survey.zero_is_positive,
        )

    def _look(self, span: Span, opened: Sequence[Pieces], out: Words) -> None:
        """Refuse NaN in what went into some elements and in what became of them, unless the merge saw that."""
        assert self._base is not None  # noqa: S101 - as above
        dense = [source for source in opened if isinstance(source, DensePieces)]
        self._refuse_not_finite(span)
        with self._meter.phase("decode"):
            for source in dense:
                source.check(span)
        with self._meter.phase("merge"):
            try:
                self._check_finite(out, span.start)
            except FormatError:  # a rescale depends on what comes later, which then explains it
                for source in dense:
                    source.check(Span(span.stop, self._base.size))
                raise

    def _open(self, one: Contribution, rows: int) -> Pieces:
        with self._meter.phase("decode"):
            return pieces_of(self._inputs.experts[one.participant], one.record, self._base, rows, self._kernels)

    def _rows(self) -> int:
        """Rows of the view that all work in, the first sign operand's; 0 where there is none and any view will do."""
        step = self._step
        for record in [*(other.record for other in step.others), step.routed]:
            if record is not None and isinstance(record.params, SignParams):
                return record.params.rows
        return 0

    def _applied(self, operand: Operand, shape: tuple[int, int]) -> Operand:
        """The routed operand; one of zeros where the record says that +0 is added.

        obm-1 clause 9.3: f32(backbone) + 0, which are not its bits where those are -0.
        """
        routed = self._step.routed
        if isinstance(operand, ZeroOperand) and routed is not None and not routed.is_unchanged:
            return ValueOperand(values=np.zeros(shape, np.float32))
        return operand

    def _thinning(self, one: Contribution, rows: int, cols: int) -> Thinning:
        """How a task vector is thinned: found in looks of its own, so that it need not be held."""
        share, base = self._share(one, ZeroOperand()), self._step.base
        assert base is not None  # noqa: S101 - others are combined into backbone tensors
        if share.density >= 1:
            return WHOLE

        def windows() -> Iterator[tuple[int, Values]]:
            expert = self._inputs.experts[one.participant]
            source = pieces_of(expert, one.record, self._base, rows, self._kernels)
            for span in self._spans(base.numel, cols, _MAPPED_PIECES if isinstance(expert, DenseFineTune) else 1):
                shape = (span.size // cols, cols) if rows else (1, span.size)
                words, operand = self._read(span), source.operand(span, shape)
                for start, values in window_looks(operand, words.reshape(shape), base.dtype, self._kernels):
                    yield span.start + start, values
            if not isinstance(source, DensePieces):  # whoever merges the tensor checks those
                source.finish()

        with self._meter.phase("merge"):
            return find_thinning(share, base.name, base.numel, windows, self._plan.recipe, self._kernels)

    def _share(self, one: Contribution, operand: Operand, thinning: Thinning | None = None) -> Share:
        participant = self._plan.participants[one.participant]
        return Share(
            expert=participant.id,
            weight=participant.weight,
            operand=operand,
            density=participant.density,
            kept=self._inputs.survey.kept.get((one.participant, one.record.name)),
            thinning=thinning,
        )

    def _shares(self, operands: Sequence[Operand], thinnings: Sequence[Thinning]) -> list[Share]:
        found: dict[int, Share] = {}
        for one, operand, thinning in zip(self._step.others, operands, thinnings, strict=True):
            found[one.participant] = self._share(one, operand, thinning)
        if self._plan.recipe.rules.combine is Combine.MEAN and found:  # a mean counts who brings nothing
            for place, expert in enumerate(self._plan.participants):
                found.setdefault(place, Share(expert=expert.id, weight=expert.weight, operand=ZeroOperand()))
        return [found[place] for place in sorted(found)]

    def _grow(self, head: Pieces | None) -> None:
        """The rows that only the routed expert has."""
        step, routed = self._step, self._step.routed
        assert step.base is not None  # noqa: S101 - as above
        span = Span(step.base.numel, step.spec.numel)
        if routed is None or not span.size or self._plan.routed is None:
            return
        with self._meter.phase("decode"):
            if isinstance(head, ExactPieces | DensePieces):
                tail: Words | None = head.take(span.size)
            else:
                tail = self._inputs.experts[self._plan.routed].tail(routed.name)
        assert tail is not None  # noqa: S101 - the record has grown rows
        words = cast(tail.reshape(-1), routed.spec.dtype, step.spec.dtype)
        self._check_finite(words, span.start)
        self._put(span, words)

    # --- pieces ---------------------------------------------------------------------------------------------

    def _spans(self, numel: int, cols: int, pieces: int = 1) -> Iterator[Span]:
        """The elements in so many pieces at a time, of whole rows."""
        row_nbytes = self._step.spec.dtype.itemsize * cols
        size = max(1, pieces * self._inputs.piece_nbytes // row_nbytes) * cols
        for start in range(0, numel, size):
            self._check()
            yield Span(start, min(numel, start + size))

    def _put(self, span: Span, words: Words) -> None:
        with self._meter.phase("write"):
            self._target.put(span, words)

    def _check_finite(self, words: Words, first: int) -> None:
        # obm-1 clause 9.3
        spec = self._step.spec
        index = self._kernels.first_not_finite(words, spec.dtype)
        if index is not None:
            raise FormatError(
                "not_finite",
                f"element {first + index} of the merged tensor is NaN or infinite in {spec.dtype.name}",
                where=spec.name,
                hint="use a dtype of larger range, or a smaller lam",
            )

    def _measure(
        self,
        span: Span,
        out: Words,
        shape: tuple[int, int],
        brought: Sequence[tuple[Contribution, Operand]],
        moved: int | None = None,
    ) -> None:
        """Count what happened to some elements that the backbone has too; `moved` where that was counted already."""
        base, spec = self._step.base, self._step.spec
        if not self._inputs.measure or base is None or self._base is None:
            return
        is_same = (base.dtype, base.shape) == (spec.dtype, spec.shape)
        words = self._base[span.start : span.stop]
        if not words.size or not (is_same or self._step.is_arithmetic):
            return
        with self._meter.phase("measure"):
            before = cast(words, base.dtype, spec.dtype)
            self._figures.moved += self._kernels.moved(before, out[: before.size]) if moved is None else moved
            self._figures.comparable += before.size
            piece = Piece(
                numel=base.numel,
                span=span,
                shape=shape,
                base=words,
                base_dtype=base.dtype,
                out_dtype=spec.dtype,
                operands=[
                    (self._plan.participants[one.participant].id, not one.record.is_exact, operand)
                    for one, operand in brought
                ],
            )
            self._sample.add(piece)
