"""Trimming and dropping: which elements of a task vector a density keeps.

Both depend on values, names and flat places alone, never on chunks, threads or the order of tensors.
Source: reference 1.5 to 1.8 (TIES, DARE), cases T1 to T12 and D1.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from obm_format.kernels.words import Float32
from obm_format.merge.recipe import Cut

_BLOCK = 1 << 18  # elements whose random numbers are made together


def trim(values: Float32, density: float, cut: Cut) -> Float32:
    """Keep the elements of largest magnitude of one tensor, and set the others to 0.

    `inclusive`: all whose magnitude is at least that of rank ceil(density * n), so equal ones stay or go
    together.
    `exact`: floor(density * n) of them; of equal ones those with the lower flat index. Both counts are those
    of the density as it is written: 0.07 of 100 elements are 7.

    Args:
        values: float32, finite, any shape.
        density: in (0, 1].
        cut: inclusive or exact.

    Returns:
        a new array of the same shape; `values` itself when all are kept.

    Source: reference 1.7.
    """
    share = Fraction(repr(float(density)))
    kept = math.ceil(share * values.size) if cut is Cut.INCLUSIVE else math.floor(share * values.size)
    if kept >= values.size:
        return values
    if kept == 0:
        return np.zeros_like(values)
    magnitude = np.abs(values).reshape(-1)
    threshold = np.partition(magnitude, values.size - kept)[values.size - kept]
    keep = magnitude >= threshold if cut is Cut.INCLUSIVE else _first_largest(magnitude, threshold, kept)
    return np.where(keep.reshape(values.shape), values, np.float32(0))


def _first_largest(magnitude: Float32, threshold: np.float32, kept: int) -> npt.NDArray[np.bool_]:
    keep = magnitude > threshold
    equal = np.flatnonzero(magnitude == threshold)
    keep[equal[: kept - int(np.count_nonzero(keep))]] = True
    return keep


def drop(values: Float32, density: float, *, seed: int, expert: str, tensor: str) -> Float32:
    """Keep each element with probability `density`, divided by it, and set the others to 0 (DARE).

    Element i is kept where the top 53 bits of splitmix64(key + (i + 1) * 0x9E3779B97F4A7C15) are below
    density * 2^53; the key is the first 8 bytes, little-endian, of the SHA-256 of seed, artifact id and
    tensor name, each ended by LF.

    Args:
        values: float32, any shape.
        density: in (0, 1].
        seed: 0 to 2^64-1.
        expert: artifact id: every expert has a mask of its own.
        tensor: the tensor's name in the backbone.

    Returns:
        a new array of the same shape; `values` itself at density 1.

    Source: reference 1.8, without mergekit's L1 matching: the survivors are v / density in float32.
    """
    if density == 1:
        return values
    digest = hashlib.sha256(f"{seed}\n{expert}\n{tensor}\n".encode()).digest()
    key = int.from_bytes(digest[:8], "little")
    limit = np.uint64(int(Fraction(density) * (1 << 53)))
    flat = values.reshape(-1)
    out = np.zeros_like(flat)
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, flat.size))
        keep = _random_bits(key, block) < limit
        out[block][keep] = flat[block][keep] / np.float32(density)
    return out.reshape(values.shape)


def _random_bits(key: int, places: slice) -> npt.NDArray[np.uint64]:
    """53 random bits for each flat place: splitmix64, as a function of the place."""
    z = np.arange(places.start + 1, places.stop + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11))
