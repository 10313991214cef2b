"""The arithmetic of one tensor: from operands and a recipe to the call of the merge kernel.

Pure functions over arrays; all matrices of one call get one view. Source: design, "Maths"; reference 1.3,
1.6, 1.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from obm_format.kernels.contract import (
    Combine,
    ExactOperand,
    Kernels,
    Operand,
    SignOperand,
    ValueOperand,
    ZeroOperand,
)
from obm_format.kernels.words import Float32, Words
from obm_format.merge.recipe import Method, Recipe
from obm_format.merge.ties import drop, trim
from obm_format.model import DType


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """What one expert brings to the combination of a tensor.

    Args:
        expert: its artifact id.
        weight: its factor.
        operand: its task vector for this tensor.
    """

    expert: str
    weight: float
    operand: Operand


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseMatrix:
    """The backbone's words of one tensor, in any view, with their dtype and the tensor's name."""

    name: str
    words: Words
    dtype: DType


def merge_tensor(
    base: BaseMatrix,
    routed: Operand | None,
    shares: Sequence[Share],
    *,
    recipe: Recipe,
    kernels: Kernels,
    out: Words,
    out_dtype: DType,
) -> None:
    """Merge one tensor into `out` by the pinned arithmetic of `Kernels.merge`.

    Args:
        base: the backbone's tensor.
        routed: the task vector that is applied whole, or None.
        shares: the experts that are combined, by ascending artifact id.
        recipe: method, lam, density, cut, seed.
        kernels: who computes.
        out: words of as many elements as the base, C-contiguous, written.
        out_dtype: F16, BF16 or F32.
    """
    combine = recipe.rules.combine or Combine.SUM
    shares = [replace(share, operand=_thinned(share, base, recipe, kernels)) for share in shares]
    if combine is not Combine.MEAN:  # a mean counts who brings nothing
        shares = [share for share in shares if not isinstance(share.operand, ZeroOperand)]
    operands = [share.operand for share in shares]
    view = matrix_view([*operands, *([] if routed is None else [routed])], base.words)
    kernels.merge(
        base.words.reshape(view),
        base.dtype,
        None if routed is None else in_view(routed, view, kernels),
        [in_view(operand, view, kernels) for operand in operands],
        combine=combine,
        weights=[share.weight for share in shares],
        lam=recipe.lam if recipe.rules.combine else 0.0,
        out=out.reshape(view),
        out_dtype=out_dtype,
    )


def _thinned(share: Share, base: BaseMatrix, recipe: Recipe, kernels: Kernels) -> Operand:
    """The operand after trimming or dropping; as it is at density 1, so that sign bits stay packed."""
    if recipe.density == 1 or isinstance(share.operand, ZeroOperand):
        return share.operand
    values = task_vector(share.operand, base, kernels)
    if recipe.method is Method.DARE:
        values = drop(values, recipe.density, seed=recipe.seed, expert=share.expert, tensor=base.name)
    else:
        values = trim(values, recipe.density, recipe.cut)
    return ValueOperand(values=values)


def task_vector(operand: SignOperand | ExactOperand | ValueOperand, base: BaseMatrix, kernels: Kernels) -> Float32:
    """The float32 values [rows, cols] of an operand (obm-1 clause 9.2)."""
    match operand:
        case SignOperand():
            return kernels.sign_values(operand)
        case ExactOperand(words=words, dtype=dtype):
            return kernels.subtract(words, dtype, base.words.reshape(words.shape), base.dtype)
        case ValueOperand(values=values):
            return values


def matrix_view(operands: Sequence[Operand], base: Words) -> tuple[int, int]:
    """(rows, cols) that one call works in: that of the first sign operand, which cannot be viewed otherwise.

    Without one, any view gives the same elements; rows by the first dimension keep the work in large pieces.
    """
    for operand in operands:
        if isinstance(operand, SignOperand):
            return operand.shape
    rows = base.shape[0] if base.ndim >= 2 and base.size else 1
    return rows, base.size // rows


def in_view(operand: Operand, view: tuple[int, int], kernels: Kernels) -> Operand:
    """The operand as a matrix of shape `view`; sign bits packed for other rows are decoded."""
    match operand:
        case ZeroOperand():
            return operand
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=words.reshape(view), dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=values.reshape(view))
        case SignOperand():
            if operand.shape == view:
                return operand
            return ValueOperand(values=kernels.sign_values(operand).reshape(view))
