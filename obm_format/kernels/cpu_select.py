# ruff: noqa: ANN001, ANN201 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops over magnitudes: counting them, and keeping the large ones.

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
