"""One streaming pass: from the backbone and open experts to merged tensors, and to a checkpoint folder.

A thread reads and decodes one tensor ahead of the merge, so memory is bounded by a few tensors. Every
backbone tensor is hashed before it is used; the first that differs ends the pass. Source: obm-1 clauses 9.3,
10.3; design, "Maths".
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.errors import BackboneMismatch, FormatError, ObmError
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Combine, ExactOperand, Kernels, Operand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Words, cast, first_not_finite, words_dtype
from obm_format.merge.arithmetic import BaseMatrix, Share, merge_tensor
from obm_format.merge.dense import DenseFineTune, Source
from obm_format.merge.meter import Meter
from obm_format.merge.plan import Contribution, Step, covered_shape, plan_merge
from obm_format.merge.recipe import Recipe
from obm_format.merge.survey import NO_SURVEY, Survey, is_needed, survey
from obm_format.merge.windows import in_view, matrix_view
from obm_format.model import TensorRecord, TensorSpec
from obm_format.taskvector import check_finite


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """A step with everything read and decoded.

    Args:
        base: the backbone's words, verified; None for added tensors.
        content: the whole tensor where it is a copy of backbone or expert, else None.
        routed: the routed expert's operand, where the kernels merge.
        others: the operands of `Step.others`.
        tail: grown rows of the routed expert, or None.
    """

    base: Words | None
    content: Words | None = None
    routed: Operand | None = None
    others: tuple[Operand, ...] = ()
    tail: Words | None = None


class WeightStream:
    """The merged weights as a stream of (spec, words), which may be run through any number of times.

    Args:
        base: the open backbone.
        experts: open experts and dense fine-tunes, in any order.
        recipe: how to merge.
        kernels: who computes; by default the fastest at hand.
        threads: most threads of the default kernels.
        measure: whether to count moved and absorbed elements, which takes another look at the tensors.

    Raises:
        ObmError: as `plan_merge`; nothing but headers has been read then.
    """

    def __init__(
        self,
        base: Checkpoint,
        experts: Sequence[Source],
        recipe: Recipe,
        *,
        kernels: Kernels | None = None,
        threads: int | None = None,
        measure: bool = False,
    ) -> None:
        self.plan = plan_merge(base.tensors, experts, recipe)
        self.kernels = kernels or select_kernels(threads)
        self.meter = Meter()
        self._base = base
        by_id = {expert.id: expert for expert in experts}
        self._experts = [by_id[one.id] for one in self.plan.participants]
        self._survey = NO_SURVEY
        self._measure = measure

    def metadata(self) -> list[TensorSpec]:
        """Name, dtype and shape of every tensor, in the order in which they come."""
        return self.plan.specs

    def __iter__(self) -> Generator[tuple[TensorSpec, Words]]:
        """Yield (spec, words) for each tensor; the words are the caller's unless they are read-only.

        Raises:
            BackboneMismatch: a backbone tensor has other bytes than the experts were made against
                (`base_digest`).
            FormatError: a part is damaged, or a result is NaN or infinite (`not_finite`).
        """
        self.meter = Meter()
        self._check_unwitnessed()
        self._survey = self._surveyed()
        with contextlib.closing(self._prepared_ahead()) as prepared_steps:
            for step, prepared in prepared_steps:
                with self.meter.phase("merge"):
                    words = self._merged(step, prepared)
                if self._measure:
                    with self.meter.phase("measure"):
                        self._count(step, prepared, words)
                del prepared
                for spec in step.specs:
                    yield spec, words
                self._release(step)

    def _surveyed(self) -> Survey:
        """What must be known of whole experts before the first tensor is merged."""
        if not is_needed(self.plan):
            return NO_SURVEY

        def look(step: Step) -> tuple[Words, Sequence[Operand]]:
            with self.meter.phase("survey"):
                base = self._base_words(step)
                self.meter.bytes_read += step.bytes_combined
                return (np.empty(0, np.uint8), ()) if base is None else (base, self._operands(step, base))

        return survey(self.plan, look, self.kernels)

    def _release(self, step: Step) -> None:
        """Give back the mapped pages that a step has used up."""
        if step.base is not None:
            self._base.release(step.base.name)
        for one in step.others:
            expert = self._experts[one.participant]
            if isinstance(expert, DenseFineTune):
                expert.release(one.record.name)

    def _prepared_ahead(self) -> Generator[tuple[Step, _Prepared]]:
        """Each step with its operands, the next one being prepared meanwhile."""
        steps = iter(self.plan.steps)
        with ThreadPoolExecutor(1, thread_name_prefix="obm-read") as pool:
            step = next(steps, None)
            coming = None if step is None else pool.submit(self._prepare, step)
            while step is not None and coming is not None:
                prepared = coming.result()
                following = next(steps, None)
                coming = None if following is None else pool.submit(self._prepare, following)
                yield step, prepared
                del prepared
                step = following

    def _prepare(self, step: Step) -> _Prepared:
        with self.meter.phase("read"):
            base = self._base_words(step)
            self.meter.bytes_read += step.bytes_read
        with self.meter.phase("decode"):
            expert = None if self.plan.routed is None else self._experts[self.plan.routed]
            if expert is None or step.routed is None or base is None or not step.is_arithmetic:
                content = self._content(step, expert, base)
                return _Prepared(base=base, content=content, others=self._operands(step, base))
            routed, tail = _operand(expert, step.routed, base)
            if isinstance(routed, ZeroOperand) and not step.routed.is_unchanged:
                # obm-1 clause 9.3: f32(backbone) + 0, which are not its bits where those are -0
                routed = ValueOperand(values=np.zeros(matrix_view([], base), np.float32))
            return _Prepared(base=base, routed=routed, others=self._operands(step, base), tail=tail)

    def _content(self, step: Step, expert: Source | None, base: Words | None) -> Words | None:
        """The whole tensor where it is a copy: of the routed expert's, or without one, of the backbone's."""
        if expert is not None and step.routed is not None:
            return expert.exact(step.routed.name, base, base_checked=True)
        return None if step.is_arithmetic else base

    def _base_words(self, step: Step) -> Words | None:
        """The backbone's words of a step, once its digest is that of every expert (obm-1 clause 10.3).

        Where none vouches for it, it is at least found finite.
        """
        if step.base is None:
            return None
        experts = [(self._experts[witness.participant], witness.record) for witness in step.witnesses]
        vouching = [(one, record) for one, record in experts if not isinstance(one, DenseFineTune)]
        if not vouching:
            check_finite(self._base, step.base.name, "backbone")
        for expert, record in vouching:
            expert.check_base(record.name, step.base, self._base.sha256(step.base.name))
        return self._base.words(step.base.name)

    def _check_unwitnessed(self) -> None:
        """Tensors that no expert has a digest of are vouched for by the fingerprint of the whole backbone."""
        expected, participants = self.plan.fingerprint, self.plan.participants
        vouched = (any(participants[one.participant].vouches for one in step.witnesses) for step in self.plan.steps)
        if not expected or all(
            known or step.base is None for known, step in zip(vouched, self.plan.steps, strict=True)
        ):
            return
        found = self._base.fingerprint()
        if found != expected:
            raise BackboneMismatch(
                "backbone_mismatch",
                "the checkpoint is not the backbone of the experts",
                where=str(self._base.path),
                expected=expected,
                got=found,
            )

    def _operands(self, step: Step, base: Words | None) -> tuple[Operand, ...]:
        if base is None:
            return ()
        return tuple(_operand(self._experts[one.participant], one.record, base)[0] for one in step.others)

    def _merged(self, step: Step, prepared: _Prepared) -> Words:
        if prepared.content is not None or prepared.base is None or step.base is None:
            return _copied(step, prepared)
        out = np.empty(step.spec.shape, words_dtype(step.spec.dtype))
        rows = step.base.shape[0] if prepared.tail is not None else None
        if prepared.base.size:
            merge_tensor(
                BaseMatrix(name=step.base.name, words=prepared.base, dtype=step.base.dtype),
                prepared.routed,
                self._shares(step, prepared),
                recipe=self.plan.recipe,
                kernels=self.kernels,
                out=out if rows is None else out[:rows],
                out_dtype=step.spec.dtype,
                zero_is_positive=self.plan.recipe.arithmetic.zero_is_positive or self._survey.zero_is_positive,
            )
        if prepared.tail is not None and step.routed is not None:
            out[rows:] = cast(prepared.tail, step.routed.spec.dtype, step.spec.dtype)
        _check_finite(out, step.spec)
        return out

    def _shares(self, step: Step, prepared: _Prepared) -> list[Share]:
        found: dict[int, Share] = {}
        for other, operand in zip(step.others, prepared.others, strict=True):
            one = self.plan.participants[other.participant]
            found[other.participant] = Share(
                expert=one.id,
                weight=one.weight,
                operand=operand,
                density=one.density,
                kept=self._survey.kept.get((other.participant, other.record.name)),
            )
        if self.plan.recipe.rules.combine is Combine.MEAN and found:  # a mean counts who brings nothing
            for place, one in enumerate(self.plan.participants):
                found.setdefault(place, Share(expert=one.id, weight=one.weight, operand=ZeroOperand()))
        return [found[place] for place in sorted(found)]

    def _count(self, step: Step, prepared: _Prepared, words: Words) -> None:
        """Count moved and absorbed elements of one tensor."""
        if step.base is None or prepared.base is None:
            return
        out = words[: step.base.shape[0]] if prepared.tail is not None else words
        same = (step.base.dtype, step.base.shape) == (step.spec.dtype, step.spec.shape)
        if not same and not step.is_arithmetic:
            return
        before = prepared.base if same else cast(prepared.base, step.base.dtype, step.spec.dtype)
        self.meter.count_moved(self.kernels.moved(before, out), out.size)
        for one, operand in self._approximate(step, prepared):
            view = matrix_view([operand], prepared.base)
            swallowed, nonzero = self.kernels.absorbed(
                prepared.base.reshape(view),
                step.base.dtype,
                in_view(operand, view, self.kernels),
                step.spec.dtype,
            )
            self.meter.count_absorbed(self.plan.participants[one.participant].id, swallowed, nonzero)

    def _approximate(self, step: Step, prepared: _Prepared) -> Iterator[tuple[Contribution, Operand]]:
        found = list(zip(step.others, prepared.others, strict=True))
        if step.routed is not None and self.plan.routed is not None and prepared.routed is not None:
            found.append((Contribution(self.plan.routed, step.routed), prepared.routed))
        for one, operand in found:
            if one.record.encoding != "zero" and not one.record.is_exact and one.record.encoded_numel:
                yield one, operand


def _operand(expert: Source, record: TensorRecord, base: Words) -> tuple[Operand, Words | None]:
    """A record's task vector against a backbone tensor whose digest was checked, and its grown rows."""
    if record.is_exact and covered_shape(record) != record.encoded_shape:  # grown, and stored whole
        words, rows = expert.exact(record.name, base, base_checked=True), base.shape[0]
        head = words[:rows].reshape(matrix_view([], base))
        return ExactOperand(words=head, dtype=record.spec.dtype), words[rows:]
    return expert.operand(record.name, base, base_checked=True), expert.tail(record.name)


def _copied(step: Step, prepared: _Prepared) -> Words:
    """A tensor that nothing is added to, in the dtype of the output."""
    content = prepared.content
    if content is None:
        raise ObmError("internal", "a tensor has neither content nor a backbone", where=step.spec.name)
    dtype = step.spec.dtype if step.routed is None else step.routed.spec.dtype
    if step.routed is None and step.base is not None:
        dtype = step.base.dtype
    if dtype is step.spec.dtype:
        return content
    words = cast(content, dtype, step.spec.dtype)
    _check_finite(words, step.spec)
    return words


def _check_finite(words: Words, spec: TensorSpec) -> None:
    # obm-1 clause 9.3
    index = first_not_finite(words, spec.dtype)
    if index is not None:
        raise FormatError(
            "not_finite",
            f"element {index} of the merged tensor is NaN or infinite in {spec.dtype.name}",
            where=spec.name,
            hint="use a dtype of larger range, or a smaller lam",
        )
