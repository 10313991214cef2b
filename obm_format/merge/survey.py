"""What must be known of whole experts before the first tensor is merged: global thresholds, the sign of most.

Some looks at the experts' tensors, one after the other: two for thresholds, one more where equal magnitudes
are counted out or signs are. Nothing is kept but counts. Source: reference 1.5 to 1.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from obm_format.kernels.contract import Combine, Kernels, Operand, ZeroOperand
from obm_format.kernels.words import Float32, Words
from obm_format.merge.methods import Cut, Scope, TrimScope, When
from obm_format.merge.plan import Contribution, MergePlan, Step, can_combine
from obm_format.merge.sums import MagnitudeSum
from obm_format.merge.ties import election_balance
from obm_format.merge.trim import KEEP_ALL, KEEP_NONE, Kept, Ranking, count_equal, kept_count, nth_equal
from obm_format.merge.windows import in_view, matrix_view, row_windows, rows_of, task_vector, window_values

Place = tuple[int, str]  # expert by its place in the plan, and the name of its record


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What looking at everything brought.

    Args:
        kept: what is kept of each tensor of each expert, where magnitudes are ranked globally.
        zero_is_positive: the elected sign where the sum is 0.
    """

    kept: Mapping[Place, Kept] = field(default_factory=dict)
    zero_is_positive: bool = True


NO_SURVEY = Survey()


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Values of some rows of one expert's tensor, and whether that is stored in sign bits."""

    key: Place
    is_bits: bool
    values: Float32


Look = Callable[[Step], tuple[Words, Sequence[Operand]]]
"""Gives the backbone's words of a step, checked, and the operands of `Step.others`."""


def is_needed(plan: MergePlan) -> bool:
    """Whether a merge needs a survey."""
    return _needs_thresholds(plan) or _needs_balance(plan)


def looks(plan: MergePlan) -> int:
    """How often a survey reads everything that is combined."""
    cut = plan.recipe.arithmetic.cut
    return (3 if cut is Cut.EXACT else 2) * _needs_thresholds(plan) + _needs_balance(plan)


def survey(plan: MergePlan, look: Look, kernels: Kernels) -> Survey:
    """Look at everything that is combined.

    Args:
        plan: of the merge.
        look: how to read a step.
        kernels: who computes.
    """
    found = NO_SURVEY
    if _needs_thresholds(plan):
        found = replace(found, kept=_thresholds(plan, look, kernels))
    if _needs_balance(plan):
        found = replace(found, zero_is_positive=_balance(plan, look, kernels, found.kept) > 0)
    return found


def _needs_thresholds(plan: MergePlan) -> bool:
    arithmetic = plan.recipe.arithmetic
    ranks = arithmetic.trim_scope is TrimScope.GLOBAL and arithmetic.cut is not Cut.RANDOM
    return ranks and any(step.others for step in plan.steps) and any(one.density < 1 for one in plan.participants)


def _needs_balance(plan: MergePlan) -> bool:
    arithmetic = plan.recipe.arithmetic
    elects = arithmetic.combine is Combine.TIES and not arithmetic.zero_is_positive
    return elects and any(step.others for step in plan.steps)


# --- thresholds ---------------------------------------------------------------------------------------------


class _Ranks:
    """The magnitudes of each expert that is trimmed, being counted.

    Args:
        plan: of the merge.
        kernels: who computes.
    """

    def __init__(self, plan: MergePlan, kernels: Kernels) -> None:
        self.cut = plan.recipe.arithmetic.cut
        sizes = [contributed(plan, place) for place in range(len(plan.participants))]
        self.counts = [
            kept_count(one.density, size, plan.recipe.arithmetic.count)
            for one, size in zip(plan.participants, sizes, strict=True)
        ]
        self.rankings = {
            place: Ranking(count, kernels)
            for place, (count, size) in enumerate(zip(self.counts, sizes, strict=True))
            if 0 < count < size
        }
        self._sums: dict[Place, MagnitudeSum] = {}  # of 1-bit matrices

    def look(self, piece: Piece) -> None:
        """Count the magnitudes of a piece, if its expert is trimmed."""
        ranking = self.rankings.get(piece.key[0])
        if ranking is None:
            return
        ranking.look(piece.values)
        if self.cut is Cut.MATRIX and piece.is_bits and not ranking.is_narrow:
            self._sums.setdefault(piece.key, MagnitudeSum()).add(piece.values)

    def kept(self, key: Place) -> Kept:
        """What is kept of one tensor, but for equal magnitudes that are counted out."""
        ranking = self.rankings.get(key[0])
        if ranking is None:
            return KEEP_NONE if self.counts[key[0]] == 0 else KEEP_ALL
        if key in self._sums:
            return KEEP_ALL if self._sums[key].mean >= ranking.threshold else KEEP_NONE
        return Kept(ranking.threshold)


def _thresholds(plan: MergePlan, look: Look, kernels: Kernels) -> dict[Place, Kept]:
    ranks = _Ranks(plan, kernels)
    keys: dict[Place, None] = {}
    for piece in _pieces(plan, look, kernels):
        ranks.look(piece)
        keys[piece.key] = None
    for ranking in ranks.rankings.values():
        ranking.narrow()
    for piece in _pieces(plan, look, kernels) if ranks.rankings else ():
        ranks.look(piece)
    found = {key: ranks.kept(key) for key in keys}
    if ranks.cut is Cut.EXACT:
        found.update(_count_out(plan, look, kernels, ranks.rankings))
    return found


def _count_out(plan: MergePlan, look: Look, kernels: Kernels, rankings: Mapping[int, Ranking]) -> dict[Place, Kept]:
    """Where more elements equal a threshold than belong to the rank: the first by tensor name and flat place."""
    left = {place: ranking.quota for place, ranking in rankings.items() if ranking.quota < ranking.equals}
    found: dict[Place, Kept] = {}
    for step, one, base, operand in _operands(plan, look):
        ranking, place = rankings.get(one.participant), one.participant
        if ranking is None or place not in left:
            continue
        assert step.base is not None  # noqa: S101 - others are combined into backbone tensors
        dtype = step.base.dtype
        pieces = window_values(operand, base, dtype, kernels)
        here = sum(count_equal(values, ranking.threshold) for _, values in pieces)
        pieces = window_values(operand, base, dtype, kernels)
        last = nth_equal(pieces, ranking.threshold, min(left[place], here), kernels)
        found[place, one.record.name] = Kept(ranking.threshold, last)
        left[place] -= min(left[place], here)
    return found


def contributed(plan: MergePlan, place: int) -> int:
    """Elements that an expert contributes by the recipe's scope, unchanged ones too: what a density is of."""
    if place == plan.routed:
        return 0
    compressed = plan.recipe.scope is Scope.COMPRESSED
    records = (record for record in plan.participants[place].manifest.tensors if can_combine(record))
    return sum(
        math.prod(record.base.shape)
        for record in records
        if record.base is not None and not (compressed and (record.is_exact or record.is_unchanged))
    )


# --- the sign of most ---------------------------------------------------------------------------------------


def _balance(plan: MergePlan, look: Look, kernels: Kernels, kept: Mapping[Place, Kept]) -> int:
    """Elements of the model whose elected sign is +, less those where it is -."""
    arithmetic, balance, seen = plan.recipe.arithmetic, 0, set()
    for step in plan.steps:
        key = tuple((one.participant, one.record.name) for one in step.others)
        if not key or key in seen or step.base is None:
            continue
        seen.add(key)
        base, operands = look(step)
        view = matrix_view(operands, base)
        matrices = [in_view(operand, view, kernels) for operand in operands]
        for rows in row_windows(view):
            votes = []
            for one, place, matrix in zip(step.others, key, matrices, strict=True):
                piece = base.reshape(view)[rows]
                values = task_vector(rows_of(matrix, rows), piece, step.base.dtype, kernels)
                values = kept.get(place, KEEP_ALL).apply(values, rows.start * view[1], kernels)
                weight = 1.0 if arithmetic.when is When.AFTER else plan.participants[one.participant].weight
                votes.append(np.float32(weight) * values)
            balance += election_balance(votes)
    return balance


# --- walking ------------------------------------------------------------------------------------------------


def _pieces(plan: MergePlan, look: Look, kernels: Kernels) -> Iterator[Piece]:
    """Everything that is combined, once, in pieces."""
    for step, one, base, operand in _operands(plan, look):
        assert step.base is not None  # noqa: S101 - others are combined into backbone tensors
        bits = one.record.encoding == "sign1"
        for _, values in window_values(operand, base, step.base.dtype, kernels):
            yield Piece((one.participant, one.record.name), bits, values)


def _operands(plan: MergePlan, look: Look) -> Iterator[tuple[Step, Contribution, Words, Operand]]:
    """Every operand once, though an alias has a step of its own (obm-1 clause 5.8), by the tensor's name."""
    seen: set[Place] = set()
    for step in sorted(plan.steps, key=lambda step: "" if step.base is None else step.base.name):
        fresh = [place for place, one in enumerate(step.others) if (one.participant, one.record.name) not in seen]
        if not fresh:
            continue
        base, operands = look(step)
        for place in fresh:
            one, operand = step.others[place], operands[place]
            seen.add((one.participant, one.record.name))
            if not isinstance(operand, ZeroOperand) and base.size:
                yield step, one, base, operand
