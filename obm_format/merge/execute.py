"""One streaming pass: from the backbone and open experts to merged tensors, wherever they go.

A few threads make a tensor each, the largest first; `tensor` says how. Every backbone tensor is hashed while it is
used; the first that differs ends the pass. Output never depends on threads or pieces. Source: obm-1 clauses 9.3,
10.3; design, "Maths".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.codecs.base import Span
from obm_format.errors import BackboneMismatch
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels, Operand
from obm_format.kernels.words import Words, words_dtype
from obm_format.merge.dense import Source
from obm_format.merge.figures import Figures
from obm_format.merge.meter import Meter
from obm_format.merge.plan import Step, plan_merge
from obm_format.merge.recipe import Recipe
from obm_format.merge.survey import is_needed, survey
from obm_format.merge.tensor import Inputs, Target, make_tensor
from obm_format.merge.whole import whole_operands
from obm_format.merge.workers import Stop, in_order, run_all
from obm_format.model import TensorSpec

PIECE_NBYTES = 4 << 20


class WeightStream:
    """The merged weights: a stream of (spec, words), or a pass into places of the caller's.

    Both may be run through any number of times.

    Args:
        base: the open backbone.
        experts: open experts and dense fine-tunes, in any order.
        recipe: how to merge.
        kernels: who computes; by default the fastest at hand.
        threads: tensors that are worked on at a time; by default one per processor.
        measure: whether to count moved and absorbed elements.
        piece_nbytes: bytes of output that a thread makes at a time.

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
        piece_nbytes: int = PIECE_NBYTES,
    ) -> None:
        self.plan = plan_merge(base.tensors, experts, recipe)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.kernels = kernels or select_kernels(1)
        self.meter = Meter()
        self._base = base
        by_id = {expert.id: expert for expert in experts}
        self._inputs = Inputs(
            base=base,
            experts=[by_id[one.id] for one in self.plan.participants],
            plan=self.plan,
            kernels=self.kernels,
            piece_nbytes=piece_nbytes,
            measure=measure,
        )

    def metadata(self) -> list[TensorSpec]:
        """Name, dtype and shape of every tensor, in the order in which they come."""
        return self.plan.specs

    def __iter__(self) -> Generator[tuple[TensorSpec, Words]]:
        """Yield (spec, words) for each tensor; the words are the caller's.

        Raises:
            BackboneMismatch: a backbone tensor has other bytes than the experts were made against
                (`base_digest`).
            FormatError: a part is damaged, or a result is NaN or infinite (`not_finite`).
        """
        self._begin()
        stop = Stop()

        def make(step: Step) -> Words:
            words = np.empty(step.spec.shape, words_dtype(step.spec.dtype))
            self._make(step, Place(words.reshape(-1)), stop.check)
            return words

        with closing(in_order(self.plan.steps, make, self.threads, stop)) as made:
            for step, words in made:
                for spec in step.specs:
                    yield spec, words

    def run(
        self,
        target: Callable[[Step], Target],
        *,
        skip: Collection[str] = (),
        done: Callable[[Step, Target, Figures], None] | None = None,
    ) -> None:
        """Make all tensors, several at a time, the largest first.

        Args:
            target: gives the place for a step's tensor; called from several threads.
            skip: output names of steps that are left out.
            done: told of each tensor that is whole and right; called from several threads.

        Raises:
            ObmError: as `__iter__`.
        """
        self._begin()
        stop = Stop()
        steps = [step for step in self.plan.steps if step.spec.name not in skip]
        steps.sort(key=lambda step: -step.bytes_read - step.spec.nbytes)

        def make(step: Step) -> None:
            stop.check()
            place = target(step)
            figures = self._make(step, place, stop.check)
            if done is not None:
                done(step, place, figures)

        run_all(steps, make, self.threads, stop)

    def _begin(self) -> None:
        self.meter = Meter()
        self._check_unwitnessed()
        if is_needed(self.plan):
            self._inputs = replace(self._inputs, survey=survey(self.plan, self._look, self.kernels))

    def _make(self, step: Step, place: Target, check: Callable[[], None]) -> Figures:
        figures = make_tensor(step, self._inputs, place, self.meter, check)
        self.meter.add_figures(step.spec.name, figures)
        return figures

    def _look(self, step: Step) -> tuple[Words, Sequence[Operand]]:
        """A whole tensor for a survey: the backbone's words, checked, and what is combined into it."""
        with self.meter.phase("survey"):
            self.meter.add_read(step.bytes_combined)
            return whole_operands(step, self._inputs)

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


class Place:
    """A `Target` that is memory.

    Args:
        words: flat, as many as the tensor has.
        copies: further places for the same content.
    """

    def __init__(self, words: Words, copies: Sequence[Words] = ()) -> None:
        self.words = words
        self._copies = copies

    def room(self, span: Span) -> Words:
        """See `Target.room`."""
        return self.words[span.start : span.stop]

    def put(self, span: Span, words: Words) -> None:
        """See `Target.put`."""
        for place in (self.words, *self._copies):
            out = place[span.start : span.stop]
            if out.ctypes.data != words.ctypes.data:
                np.copyto(out, words)
