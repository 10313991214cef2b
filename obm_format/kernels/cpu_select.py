# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops that choose or find elements: by counts of magnitudes, by a magnitude, by chance, by a difference.

Magnitudes of finite float32 order like their bits without the sign. Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_elements import load, longs_at, shorts_at, width

_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_LOW = np.uint32(0xFFFF)
_HIGH = np.uint32(0x7FFF_0000)
_HALF = np.uint32(16)
_ZERO = np.uint32(0)
_TILE = 1024  # elements that stay in the first cache
_FEW = 32
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@kernel
def count_high(values, n, counts):
    """Count `n` float32 at address `values` by the upper half of their magnitudes into int64 at address `counts`."""
    longs = longs_at(values, n)
    for i in range(n):
        counts[(longs[i] & _MAGNITUDE) >> _HALF] += 1


@kernel
def count_low(values, n, high, counts):
    """Likewise by the lower half, those whose upper half is `high`."""
    longs = longs_at(values, n)
    for i in range(n):
        magnitude = longs[i] & _MAGNITUDE
        if magnitude >> _HALF == high:
            counts[magnitude & _LOW] += 1


@kernel
def keep_from(values, n, threshold, out):
    """Copy to address `out` the float32 whose magnitude is at least `threshold` (its bits), and +0 for the others."""
    longs, kept = longs_at(values, n), longs_at(out, n)
    for i in range(n):
        kept[i] = longs[i] if (longs[i] & _MAGNITUDE) >= threshold else _ZERO


@kernel
def keep_drawn(values, n, drawn, out):
    """Copy to address `out` the float32 that chance keeps, and +0 for the others; all of `drawn` is uint64."""
    key, first, limit = drawn
    longs, kept = longs_at(values, n), longs_at(out, n)
    state = key + first * _STEP
    for i in range(n):
        z = (state ^ (state >> _S30)) * _FIRST
        z = (z ^ (z >> _S27)) * _SECOND
        kept[i] = longs[i] if ((z ^ (z >> _S31)) >> _S11) < limit else _ZERO
        state += _STEP


# --- of the difference of two tensors -----------------------------------------------------------------------


class Difference(NamedTuple):
    """A fine-tune and its backbone, flat: addresses of the words, and their element kinds."""

    tuned: int
    tuned_kind: int
    base: int
    base_kind: int


@step
def _subtract(work, pair, at, n):
    """The bits of f32(tuned) - f32(base) of elements at .. at + n, in the place of work[0]."""
    d, base = work[0], work[1]
    load(d, pair.tuned + at * width(pair.tuned_kind), pair.tuned_kind, n)
    load(base, pair.base + at * width(pair.base_kind), pair.base_kind, n)
    for i in range(n):
        d[i] -= base[i]
    return longs_at(d.ctypes.data, n)


@step
def _matches(words, n, mask, wanted):
    """How many of words & mask are `wanted`."""
    count = np.uint32(0)
    for i in range(n):
        count = np.uint32(count + np.uint32((words[i] & mask) == wanted))
    return count


@kernel
def count_differences_high(pair, start, stop, counts):
    """As `count_high`, for the differences of elements start .. stop."""
    work = np.empty((2, _TILE), np.float32)
    for at in range(start, stop, _TILE):
        n = min(_TILE, stop - at)
        longs = _subtract(work, pair, at, n)
        for i in range(n):
            counts[(longs[i] & _MAGNITUDE) >> _HALF] += 1


@kernel
def count_differences_low(pair, start, stop, high, counts):
    """As `count_low`, for the differences of elements start .. stop."""
    work, wanted = np.empty((2, _TILE), np.float32), np.uint32(high)
    for at in range(start, stop, _TILE):
        n = min(_TILE, stop - at)
        _subtract(work, pair, at, n)
        for first in range(0, n, _FEW):
            count = min(_FEW, n - first)
            few = longs_at(work.ctypes.data + 4 * first, count)
            if _matches(few, count, _HIGH, np.uint32(wanted << _HALF)):  # one in a hundred does: most runs have none
                for i in range(count):
                    magnitude = few[i] & _MAGNITUDE
                    if magnitude >> _HALF == wanted:
                        counts[magnitude & _LOW] += 1


@kernel
def nth_difference(pair, n, magnitude, number):
    """(place of the `number`-th difference with these bits of a magnitude, number), or (-1, how many there are)."""
    work, seen = np.empty((2, _TILE), np.float32), np.int64(0)
    for at in range(0, n, _TILE):
        count = min(_TILE, n - at)
        longs = _subtract(work, pair, at, count)
        here = _matches(longs, count, _MAGNITUDE, magnitude)
        if seen + here < number:
            seen += here
            continue
        for i in range(count):
            if (longs[i] & _MAGNITUDE) == magnitude:
                seen += 1
                if seen == number:
                    return at + i, seen
    return -1, seen


# --- of words -----------------------------------------------------------------------------------------------


@step
def _largest(words, n, mask):
    """The largest of words & mask."""
    most = words[0] & mask
    for i in range(n):
        found = words[i] & mask
        most = found if found > most else most
    return most


@kernel
def first_full_short(address, n, mask):
    """Place of the first of `n` uint16 that has all bits of `mask`, or -1."""
    for at in range(0, n, _TILE):
        count = min(_TILE, n - at)
        words = shorts_at(address + 2 * at, count)
        if _largest(words, count, mask) == mask:
            for i in range(count):
                if words[i] & mask == mask:
                    return at + i
    return -1


@kernel
def first_full_long(address, n, mask):
    """Likewise of uint32."""
    for at in range(0, n, _TILE):
        count = min(_TILE, n - at)
        words = longs_at(address + 4 * at, count)
        if _largest(words, count, mask) == mask:
            for i in range(count):
                if words[i] & mask == mask:
                    return at + i
    return -1


@step
def _unequal(a, b, n):
    count = np.uint32(0)
    for i in range(n):
        count = np.uint32(count + np.uint32(a[i] != b[i]))
    return count


@kernel
def unequal_shorts(a, b, start, stop):
    """How many of the uint16 start .. stop at two addresses differ."""
    count = np.int64(0)
    for at in range(start, stop, _TILE):
        n = min(_TILE, stop - at)
        count += _unequal(shorts_at(a + 2 * at, n), shorts_at(b + 2 * at, n), n)
    return count


@kernel
def unequal_longs(a, b, start, stop):
    """Likewise of uint32."""
    count = np.int64(0)
    for at in range(start, stop, _TILE):
        n = min(_TILE, stop - at)
        count += _unequal(longs_at(a + 4 * at, n), longs_at(b + 4 * at, n), n)
    return count
