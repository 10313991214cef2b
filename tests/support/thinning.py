"""Trimming and dropping of a whole array at once, as the definitions have it."""

from __future__ import annotations

import numpy as np

from obm_format.kernels.reference import ReferenceKernels
from obm_format.merge.dare import Drawn, rescaled, tensor_key
from obm_format.merge.methods import Count, Cut, Rescale
from obm_format.merge.trim import kept_count, select

KERNELS = ReferenceKernels()


def trim(values: np.ndarray, density: float, cut: Cut, count: Count | None = None, window: int = 1 << 20) -> np.ndarray:
    flat = values.reshape(-1)
    count = count or (Count.DOWN if cut is Cut.EXACT else Count.UP)
    starts = range(0, max(1, flat.size), window)
    kept = select(
        lambda: ((start, flat[start : start + window]) for start in starts),
        kept_count(density, flat.size, count),
        flat.size,
        cut,
        KERNELS,
    )
    pieces = [kept.apply(flat[start : start + window], start, KERNELS) for start in starts]
    return np.concatenate(pieces).reshape(values.shape)


def drop(values: np.ndarray, density: float, *, seed: int, expert: str, tensor: str) -> np.ndarray:
    drawn = Drawn(key=tensor_key(seed, expert, tensor), density=density)
    return rescaled(drawn.apply(values, 0, KERNELS), Rescale.DENSITY, density)
