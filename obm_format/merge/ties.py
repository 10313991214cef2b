"""Combining: from weighted task vectors to one, by sum, weighted mean, or elected mean (TIES).

float32 throughout, each operation rounded once, sums in the order of the arguments. For what the kernels' own
`merge` does as well, it is the slow twin. Source: reference 1.5 to 1.8, cases T1 to T15.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from obm_format.kernels.contract import Combine
from obm_format.kernels.words import Float32
from obm_format.merge.methods import Arithmetic, Divisor, When

SMALL = 1e-8  # sums of weights below it do not divide


def combine(
    values: Sequence[Float32], weights: Sequence[float], arithmetic: Arithmetic, *, zero_is_positive: bool = True
) -> Float32:
    """T of some task vectors.

    Args:
        values: float32 arrays of one shape, at least one, trimmed already.
        weights: one number for each, rounded to float32.
        arithmetic: combine, when, divisor.
        zero_is_positive: the elected sign where the sum is 0.

    Returns:
        float32 array of that shape.
    """
    factors = [np.float32(weight) for weight in weights]
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = [factor * value for factor, value in zip(factors, values, strict=True)]
        if arithmetic.combine is Combine.TIES:
            votes = values if arithmetic.when is When.AFTER else scaled
            agrees = agreeing(votes, zero_is_positive=zero_is_positive)
            return _elected_mean(scaled, factors, agrees, arithmetic.divisor)
        total = added(scaled)
        if arithmetic.divisor is Divisor.NONE:
            return total
        divisor = added([np.asarray(factor) for factor in factors])
        return np.asarray(total if abs(divisor) < SMALL else total / divisor)


def added(values: Sequence[Float32]) -> Float32:
    """The float32 sum of arrays in their order."""
    total = values[0]
    for value in values[1:]:
        total = np.asarray(total + value)
    return total


def agreeing(votes: Sequence[Float32], *, zero_is_positive: bool = True) -> list[npt.NDArray[np.bool_]]:
    """For each task vector where it is not 0 and has the elected sign: that of the sum of all.

    Args:
        votes: float32 arrays of one shape.
        zero_is_positive: the sign of a sum of 0.
    """
    total = added(votes)
    positive = total >= 0 if zero_is_positive else total > 0
    return [np.where(positive, vote > 0, vote < 0) for vote in votes]


def election_balance(votes: Sequence[Float32]) -> int:
    """Elements whose sum is positive, less those whose sum is negative."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = added(votes)
    return int(np.count_nonzero(total > 0)) - int(np.count_nonzero(total < 0))


def _elected_mean(
    scaled: Sequence[Float32],
    factors: Sequence[np.float32],
    agrees: Sequence[npt.NDArray[np.bool_]],
    divisor: Divisor,
) -> Float32:
    total = np.zeros_like(scaled[0])
    count = np.zeros_like(scaled[0])
    for value, factor, mine in zip(scaled, factors, agrees, strict=True):
        total = np.where(mine, total + value, total)
        count += mine if divisor is Divisor.COUNT else np.where(mine, factor, np.float32(0))
    if divisor is Divisor.NONE:
        return total
    return np.asarray(total / np.where(count == 0, np.float32(1), count))
