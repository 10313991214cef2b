"""Dropping by chance (DARE): which elements stay, and what they are multiplied by.

The choice depends on seed, expert, tensor name and flat place alone, never on chunks, threads or devices.
Source: reference 1.8, case D1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32
from obm_format.merge.methods import Rescale

SMALL = 1e-7  # sums of magnitudes below it are not matched


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The elements of one tensor of one expert that chance keeps.

    Element i stays where the top 53 bits of splitmix64(key + (i + 1) * 0x9E3779B97F4A7C15) are below
    density * 2^53.

    Args:
        key: 0 to 2^64-1, of the tensor; see `tensor_key`.
        density: probability to stay, 0 to 1.
    """

    key: int
    density: float

    def apply(self, values: Float32, start: int, kernels: Kernels) -> Float32:
        """The values that stay, and +0 for the others; nothing is rescaled.

        Args:
            values: float32 of any shape, C-contiguous: a piece of the tensor.
            start: flat place of its first element in the tensor.
            kernels: who computes.
        """
        if self.density >= 1:
            return values
        return kernels.keep_drawn(values, self.key, start, int(Fraction(self.density) * (1 << 53)))


def tensor_key(seed: int, expert: str, tensor: str) -> int:
    """The key of one tensor of one expert: the first 8 bytes, little-endian, of a SHA-256.

    It is that of the seed in decimal, the artifact id and the tensor's name in the backbone, each ended by LF.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\n{expert}\n{tensor}\n".encode()).digest()[:8], "little")


def rescaled(values: Float32, rescale: Rescale, density: float, l1: tuple[float, float] = (1.0, 1.0)) -> Float32:
    """Kept values, multiplied by what makes up for the dropped ones.

    Args:
        values: float32, +0 where dropped.
        rescale: DENSITY: v / density. L1: v * (before / after), which restores the sum of magnitudes. NONE.
        density: what was kept, 0 to 1; at 1 nothing is rescaled.
        l1: for L1, the sums of magnitudes of the whole tensor before and after; sums below 1e-7 are not
            matched.
    """
    if rescale is Rescale.NONE or density in (0, 1):
        return values
    if rescale is Rescale.DENSITY:
        return np.asarray(values / np.float32(density))
    before, after = l1
    if before < SMALL or after < SMALL:
        return values
    return np.asarray(values * np.float32(np.float32(before) / np.float32(after)))
