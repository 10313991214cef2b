"""The arithmetic of one tensor: from operands and a recipe to merged words.

Pure functions over arrays. What the kernels' `merge` can do goes to it whole, so that sign bits stay packed; what
is trimmed, dropped or combined in a peer's way is made window by window. Source: design, "Maths"; reference 1.3,
1.6, 1.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from obm_format.kernels.contract import (
    Combine,
    Combined,
    ExactOperand,
    Kernels,
    Operand,
    Sight,
    TrimmedOperand,
    ValueOperand,
    ZeroOperand,
)
from obm_format.kernels.words import Float32, Words, from_float32, to_float32
from obm_format.merge.dare import Drawn, rescaled, tensor_key
from obm_format.merge.methods import Arithmetic, Cut, Divisor, Rescale, TrimScope, When
from obm_format.merge.recipe import Recipe
from obm_format.merge.sums import MagnitudeSum
from obm_format.merge.ties import combine
from obm_format.merge.trim import KEEP_ALL, KEEP_NONE, Kept, Windows, kept_count, select
from obm_format.merge.windows import Values, in_view, made, matrix_view, row_windows, rows_of, task_vector, window_looks
from obm_format.model import DType


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """What one expert brings to the combination of a tensor.

    Args:
        expert: its artifact id.
        weight: its factor.
        operand: its task vector for this tensor.
        density: share of its elements to keep.
        kept: what is kept, where that was found among all tensors; None: to be found in this one.
        thinning: how it is thinned, where only a piece of the tensor is at hand; None: to be found in all of it.
    """

    expert: str
    weight: float
    operand: Operand
    density: float = 1.0
    kept: Kept | None = None
    thinning: Thinning | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseMatrix:
    """The backbone's words of one tensor or a piece of it.

    Args:
        name: the tensor's.
        words: in any view.
        dtype: their dtype.
        start: flat place of the first word in the tensor.
    """

    name: str
    words: Words
    dtype: DType
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thinning:
    """How one operand becomes what is combined: choose, then rescale.

    Args:
        choice: which elements stay.
        rescale: what they are multiplied by.
        density: what was kept.
        l1: sums of magnitudes before and after, for `Rescale.L1`.
    """

    choice: Kept | Drawn
    rescale: Rescale = Rescale.NONE
    density: float = 1.0
    l1: tuple[float, float] = (1.0, 1.0)

    def apply(self, values: Float32, start: int, kernels: Kernels) -> Float32:
        """The thinned values of a piece of the tensor that begins at flat place `start`."""
        return rescaled(self.choice.apply(values, start, kernels), self.rescale, self.density, self.l1)


WHOLE = Thinning(choice=KEEP_ALL)


def merge_tensor(
    base: BaseMatrix,
    routed: Operand | None,
    shares: Sequence[Share],
    *,
    recipe: Recipe,
    kernels: Kernels,
    out: Words,
    out_dtype: DType,
    zero_is_positive: bool = True,
) -> Sight | None:
    """Merge one tensor into `out` by the pinned arithmetic of `Kernels.merge`.

    Args:
        base: the backbone's tensor.
        routed: the task vector that is applied whole, or None.
        shares: the experts that are combined, in the order of their sum.
        recipe: how they are thinned and combined; its weights and densities are those of the shares.
        kernels: who computes.
        out: words of as many elements as the base, C-contiguous, written.
        out_dtype: F16, BF16 or F32.
        zero_is_positive: the elected sign where a sum is 0.

    Returns:
        what the kernels saw of everything that is at hand here, or None.
    """
    arithmetic = recipe.arithmetic
    pairs = [(share, share.thinning or _thinning_here(share, base, recipe, kernels)) for share in shares]
    if arithmetic.combine is not Combine.MEAN:  # a mean counts who brings nothing
        pairs = [pair for pair in pairs if not _brings_nothing(*pair)]
    job = _Job(base, routed, pairs, kernels)
    lam = recipe.lam if arithmetic.combine else 0.0
    target = Target(out.reshape(job.view), out_dtype, lam)
    weights = [share.weight for share, _ in pairs]
    known = kernel_combine(arithmetic, weights, zero_is_positive=zero_is_positive)
    whole = job.whole_operands() if known is not None else None
    if known is not None and whole is not None:
        seen = job.merge(slice(None), whole, known, weights, target)
        return seen if len(pairs) == len(shares) else None
    for rows in row_windows(job.view):
        if arithmetic.whole:
            mixed = combine(job.whole_weights(rows), weights, arithmetic)
            target.words[rows] = from_float32(mixed, out_dtype)
        elif known is not None:
            operands: list[Combined] = [ValueOperand(values=values) for values in job.values(rows)]
            job.merge(rows, operands, known, weights, target)
        else:
            term = combine(job.values(rows), weights, arithmetic, zero_is_positive=zero_is_positive)
            job.merge(rows, [ValueOperand(values=term)], Combine.SUM, [1.0], target)
    return None


def _brings_nothing(share: Share, how: Thinning) -> bool:
    return isinstance(share.operand, ZeroOperand) or how.choice == KEEP_NONE


def kernel_combine(
    arithmetic: Arithmetic, weights: Sequence[float], *, zero_is_positive: bool = True
) -> Combine | None:
    """What the kernels' `merge` calls this way of combining; None where it has no word for it."""
    same = all(weight == 1 for weight in weights)
    match arithmetic.combine:
        case _ if not weights:
            return Combine.SUM  # of nothing
        case Combine.TIES if not zero_is_positive:
            return None
        case Combine.SUM if arithmetic.divisor is Divisor.NONE:
            return Combine.SUM
        case Combine.MEAN if same and arithmetic.divisor is Divisor.WEIGHTS and not arithmetic.whole:
            return Combine.MEAN
        case Combine.TIES if (same or arithmetic.when is When.BEFORE) and (
            arithmetic.divisor is Divisor.COUNT or (same and arithmetic.divisor is Divisor.WEIGHTS)
        ):
            return Combine.TIES
        case _:
            return None


def find_thinning(share: Share, name: str, size: int, windows: Windows, recipe: Recipe, kernels: Kernels) -> Thinning:
    """How a task vector is thinned; `WHOLE` at density 1, so that sign bits stay packed.

    Args:
        share: one expert's; its operand is not looked at.
        name: the tensor's name in the backbone.
        size: elements of the tensor.
        windows: gives (flat start, values) of its pieces in order, as often as it is called.
        recipe: cut, count, trim scope, rescale, seed.
        kernels: who computes.
    """
    if share.density >= 1:
        return WHOLE
    arithmetic = recipe.arithmetic
    choice = _choice(share, name, size, windows, recipe, kernels)
    how = Thinning(choice=choice, rescale=arithmetic.rescale, density=share.density)
    if choice in (KEEP_ALL, KEEP_NONE):
        return WHOLE if choice == KEEP_ALL else how
    if arithmetic.rescale is not Rescale.L1:
        return how
    before, after = MagnitudeSum(), MagnitudeSum()
    for start, values in windows():
        for place, some in made(values, kernels):
            before.add(some)
            after.add(choice.apply(some, start + place, kernels))
    return replace(how, l1=(float(before.total), float(after.total)))


def _thinning_here(share: Share, base: BaseMatrix, recipe: Recipe, kernels: Kernels) -> Thinning:
    if isinstance(share.operand, ZeroOperand):
        return WHOLE

    def windows() -> Iterable[tuple[int, Values]]:
        return window_looks(share.operand, base.words, base.dtype, kernels)

    return find_thinning(share, base.name, base.words.size, windows, recipe, kernels)


def _choice(share: Share, name: str, size: int, windows: Windows, recipe: Recipe, kernels: Kernels) -> Kept | Drawn:
    arithmetic = recipe.arithmetic
    if arithmetic.cut is Cut.RANDOM:
        key = tensor_key(recipe.seed, share.expert, name)
        return Drawn(key=key, density=share.density) if share.density else KEEP_NONE
    if arithmetic.trim_scope is TrimScope.GLOBAL:
        return KEEP_ALL if share.kept is None else share.kept
    return select(windows, kept_count(share.density, size, arithmetic.count), size, arithmetic.cut, kernels)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where merged words go: an array in the view of the job, its dtype, and the factor of what is combined."""

    words: Words
    dtype: DType
    lam: float


class _Job:
    """One tensor in one view, with its operands, thinned as they are asked for."""

    def __init__(
        self, base: BaseMatrix, routed: Operand | None, pairs: Sequence[tuple[Share, Thinning]], kernels: Kernels
    ) -> None:
        operands = [share.operand for share, _ in pairs]
        self.view = matrix_view([*operands, *([] if routed is None else [routed])], base.words)
        self.operands = [in_view(operand, self.view, kernels) for operand in operands]
        self._base, self._dtype, self._start = base.words.reshape(self.view), base.dtype, base.start
        self._routed = None if routed is None else in_view(routed, self.view, kernels)
        self._how, self._kernels = [how for _, how in pairs], kernels

    def whole_operands(self) -> list[Combined] | None:
        """The thinned task vectors as the kernels take them, or None where one of them has to be made first."""
        found = [self._whole(operand, how) for operand, how in zip(self.operands, self._how, strict=True)]
        known = [operand for operand in found if operand is not None]
        return known if len(known) == len(found) else None

    def _whole(self, operand: Operand, how: Thinning) -> Combined | None:
        if how is WHOLE:
            return operand
        choice = how.choice
        if not isinstance(operand, ExactOperand) or not isinstance(choice, Kept) or how.rescale is not Rescale.NONE:
            return None
        return TrimmedOperand(
            words=operand.words, dtype=operand.dtype, threshold=choice.threshold, last=choice.last - self._start
        )

    def values(self, rows: slice) -> list[Float32]:
        """The thinned task vectors in some rows."""
        base, start = self._base[rows], self._start + rows.start * self.view[1]
        return [
            how.apply(task_vector(rows_of(operand, rows), base, self._dtype, self._kernels), start, self._kernels)
            for how, operand in zip(self._how, self.operands, strict=True)
        ]

    def whole_weights(self, rows: slice) -> list[Float32]:
        """The float32 weights that each expert alone makes, in some rows: exact ones are the fine-tune's own."""
        base = to_float32(self._base[rows], self._dtype)
        return [
            to_float32(operand.words[rows], operand.dtype)
            if isinstance(operand, ExactOperand)
            else np.asarray(base + task_vector(rows_of(operand, rows), self._base[rows], self._dtype, self._kernels))
            for operand in self.operands
        ]

    def merge(
        self, rows: slice, operands: Sequence[Combined], how: Combine, weights: Sequence[float], target: Target
    ) -> Sight | None:
        """Let the kernels merge some rows."""
        base = self._base[rows]
        shape = (1, base.size) if self.view[1] == 1 else (base.shape[0], base.shape[1])
        routed = None if self._routed is None else in_view(rows_of(self._routed, rows), shape, self._kernels)
        operands = [
            replace(operand, words=operand.words.reshape(shape))
            if isinstance(operand, TrimmedOperand)
            else in_view(operand, shape, self._kernels)
            for operand in operands
        ]
        return self._kernels.merge(
            base.reshape(shape),
            self._dtype,
            routed,
            operands,
            combine=how,
            weights=weights,
            lam=target.lam,
            out=target.words[rows].reshape(shape),
            out_dtype=target.dtype,
        )
