"""Trimming: which elements of a task vector a density keeps, by their magnitudes.

A `Kept` says it for one tensor of one expert, so that it can be applied to any piece of it. It is found from
counts of magnitudes, gathered window by window: the task vector is never sorted, nor held as a whole.
Source: reference 1.5 to 1.7 (TIES), cases T1 to T12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from obm_format.kernels.contract import MAGNITUDE_BINS, MAGNITUDE_LOW_BINS, Counts, Kernels
from obm_format.kernels.words import Float32
from obm_format.merge.methods import Count, Cut
from obm_format.merge.windows import Difference, Values

Windows = Callable[[], Iterable[tuple[int, Values]]]

_ALL = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one tensor: larger magnitudes than `threshold`, and equal ones up to a flat place.

    Args:
        threshold: a float32 magnitude.
        last: the last flat place at which a magnitude of `threshold` is kept; -1 for none.
    """

    threshold: float
    last: int = _ALL

    def apply(self, values: Float32, start: int, kernels: Kernels) -> Float32:
        """The values that are kept, and +0 for the others.

        Args:
            values: float32 of any shape, C-contiguous: a piece of the tensor.
            start: flat place of its first element in the tensor.
            kernels: who computes.
        """
        if self == KEEP_ALL:
            return values
        return kernels.keep_largest(values, self.threshold, self.last - start)


KEEP_ALL = Kept(0.0)
KEEP_NONE = Kept(math.inf, -1)


def kept_count(density: float, size: int, count: Count) -> int:
    """How many of `size` elements a density keeps, 0 to `size`.

    Args:
        density: 0 to 1.
        size: number of elements.
        count: how it is rounded. UP and DOWN take the density as it is written: 0.07 of 100 elements are 7,
            though the float64 product is more.
    """
    if density >= 1:
        return size
    exact = Fraction(repr(float(density))) * size
    match count:
        case Count.UP:
            kept = math.ceil(exact)
        case Count.DOWN:
            kept = math.floor(exact)
        case Count.FLOAT_DOWN:
            kept = int(density * size)
        case Count.AT_LEAST_ONE:
            kept = max(1, int(density * size)) if density > 0 else 0
        case _:  # Count.ONE_MORE
            kept = int(size * density) + 1
    return min(kept, size)


class Ranking:
    """Finds the magnitude of a rank by counting, in two looks at the same values.

    Feed all values to `look`, call `narrow`, feed them again, and ask.

    Args:
        kept: the rank, from the largest; at least 1.
        kernels: who counts.
    """

    def __init__(self, kept: int, kernels: Kernels) -> None:
        self._kernels = kernels
        self._left = kept
        self._high: int | None = None
        self._counts: Counts = np.zeros(MAGNITUDE_BINS, np.int64)

    @property
    def is_narrow(self) -> bool:
        """Whether this is the second look."""
        return self._high is not None

    def look(self, values: Values) -> None:
        """Count some values."""
        if isinstance(values, Difference):
            tuned = values.tuned
            self._kernels.count_differences(
                tuned.words, tuned.dtype, values.base, values.base_dtype, self._high, self._counts
            )
        else:
            self._kernels.count_magnitudes(np.ascontiguousarray(values), self._high, self._counts)

    def narrow(self) -> None:
        """End the first look: from here on only magnitudes near the rank count."""
        self._high, self._left = _bin_of(self._counts, self._left)
        self._counts = np.zeros(MAGNITUDE_LOW_BINS, np.int64)

    @property
    def threshold(self) -> float:
        """The magnitude of the rank; 0 where there are fewer values."""
        low, _ = _bin_of(self._counts, self._left)
        return float(np.uint32(((self._high or 0) << 16) | low).view(np.float32))

    @property
    def quota(self) -> int:
        """How many of the values that equal the threshold belong to the rank and above."""
        return _bin_of(self._counts, self._left)[1]

    @property
    def equals(self) -> int:
        """How many values equal the threshold."""
        return int(self._counts[_bin_of(self._counts, self._left)[0]])


def select(windows: Windows, kept: int, size: int, cut: Cut, kernels: Kernels) -> Kept:
    """What a number of kept elements means for one tensor.

    Args:
        windows: gives (flat start, values) of the tensor's pieces in order, as often as it is called.
        kept: how many to keep, 0 to `size`.
        size: elements of the tensor.
        cut: INCLUSIVE: all whose magnitude is at least that of rank `kept`, so equal ones stay or go together;
            EXACT: `kept` of them, of equal ones those with the lower flat place.
        kernels: who computes.
    """
    if kept >= size:
        return KEEP_ALL
    if kept == 0:
        return KEEP_NONE
    ranking = Ranking(kept, kernels)
    for _, values in windows():
        ranking.look(values)
    ranking.narrow()
    for _, values in windows():
        ranking.look(values)
    if cut is not Cut.EXACT or ranking.quota == ranking.equals:
        return Kept(ranking.threshold)
    return Kept(ranking.threshold, nth_equal(windows(), ranking.threshold, ranking.quota, kernels))


def nth_equal(windows: Iterable[tuple[int, Values]], threshold: float, number: int, kernels: Kernels) -> int:
    """Flat place of the `number`-th element whose magnitude is `threshold`; -1 for number 0."""
    for start, values in windows if number else ():
        if isinstance(values, Difference):
            tuned = values.tuned
            place, seen = kernels.nth_difference(
                tuned.words, tuned.dtype, values.base, values.base_dtype, threshold, number
            )
            if place >= 0:
                return start + place
            number -= seen
            continue
        equal = np.flatnonzero(np.abs(values).reshape(-1) == np.float32(threshold))
        if number <= equal.size:
            return start + int(equal[number - 1])
        number -= equal.size
    return -1


def count_equal(values: Float32, threshold: float) -> int:
    """How many magnitudes are `threshold`."""
    return int(np.count_nonzero(np.abs(values) == np.float32(threshold)))


def _bin_of(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin of a rank from the top, and the rank within it; (0, all) where there are fewer."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, rank))
    if place == counts.size:
        return 0, int(counts[0])
    found = counts.size - 1 - place
    return found, rank - int(above[place] - counts[found])
