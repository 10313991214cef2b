# ruff: noqa: ANN001, ANN201 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops that choose elements: by counts of magnitudes, by a magnitude, by chance.

Magnitudes of finite float32 order like their bits without the sign. Source: `contract.Kernels`.
"""

from __future__ import annotations

import numpy as np

from obm_format.kernels.cpu_compile import kernel
from obm_format.kernels.cpu_elements import longs_at

_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_LOW = np.uint32(0xFFFF)
_HALF = np.uint32(16)
_ZERO = np.uint32(0)
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
