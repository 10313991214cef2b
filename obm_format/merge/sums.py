"""Exact sums of magnitudes, so that they depend neither on pieces nor on their order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from obm_format.kernels.words import Float32

_BLOCK = 1 << 24  # elements whose 24-bit fractions add up exactly in float64


class MagnitudeSum:
    """The sum of the magnitudes of float32 values: integers, one for each exponent."""

    def __init__(self) -> None:
        self._sums: npt.NDArray[np.int64] = np.zeros(256, np.int64)
        self.size = 0

    def add(self, values: Float32) -> None:
        """Take some values, finite, of any shape."""
        bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        for start in range(0, bits.size, _BLOCK):
            block = bits[start : start + _BLOCK]
            exponent = (block >> np.uint32(23)) & np.uint32(0xFF)
            fraction = (block & np.uint32(0x7F_FFFF)) | ((exponent > 0).astype(np.uint32) << np.uint32(23))
            self._sums += np.bincount(exponent, weights=fraction, minlength=256).astype(np.int64)
        self.size += bits.size

    @property
    def total(self) -> Fraction:
        """The sum."""
        scaled = sum(int(part) << max(exponent, 1) for exponent, part in enumerate(self._sums))
        return Fraction(scaled, 1 << 150)

    @property
    def mean(self) -> Fraction:
        """The sum by the number of values; 0 of none."""
        return self.total / self.size if self.size else Fraction(0)
