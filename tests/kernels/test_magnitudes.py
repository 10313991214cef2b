"""Counting magnitudes, keeping the largest, and what chance keeps: both kernels against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_operands import make_kernels

from obm_format.errors import UsageError
from obm_format.kernels import Kernels, ReferenceKernels

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 1.0000001, 3.4e38, -3.4e38, 0.5]


def values(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < 0.5, rng.choice(SPECIAL, size), rng.normal(size=size)).astype(np.float32)


@pytest.fixture(params=["reference", "numba", "numba-3-threads"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "reference":
        return ReferenceKernels()
    from obm_format.kernels import cpu

    monkeypatch.setattr(cpu, "_INLINE", 64)
    return make_kernels(request.param)


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 5000])
def test_count_magnitudes_counts_halves(kernels: Kernels, size: int) -> None:
    found = values(size)
    bits = np.abs(found).view(np.uint32)
    high, low = np.ones(1 << 15, np.int64), np.zeros(1 << 16, np.int64)
    kernels.count_magnitudes(found, None, high)
    assert np.array_equal(high, 1 + np.bincount(bits >> 16, minlength=1 << 15)), "they are added"
    kernels.count_magnitudes(found.reshape(1, -1), 0x3F80, low)
    assert np.array_equal(low, np.bincount(bits[bits >> 16 == 0x3F80] & 0xFFFF, minlength=1 << 16))


@pytest.mark.parametrize("last", [-5, -1, 0, 3, 200, 999, 5000])
@pytest.mark.parametrize("threshold", [0.0, 1e-45, 0.5, 1.0, 3.4e38, np.inf])
def test_keep_largest_is_the_definition(kernels: Kernels, threshold: float, last: int) -> None:
    found = values(1000, 1)
    kept = kernels.keep_largest(found.reshape(20, 50), threshold, last)
    limit = np.float32(threshold)
    keep = [abs(v) > limit or (abs(v) == limit and i <= last) for i, v in enumerate(found)]
    wanted = np.where(keep, found, np.float32(0))
    assert kept.shape == (20, 50)
    assert np.array_equal(kept.reshape(-1).view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 12345, 2**40])
def test_keep_drawn_is_the_definition(kernels: Kernels, key: int, start: int) -> None:
    found, wide = values(700, 2), 2**64 - 1

    def bits(i: int) -> int:
        z = (key + (i + 1) * 0x9E3779B97F4A7C15) & wide
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wide
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wide
        return (z ^ (z >> 31)) >> 11

    limit = 3 << 51  # three quarters
    wanted = np.where([bits(start + i) < limit for i in range(700)], found, np.float32(0))
    kept = kernels.keep_drawn(found.reshape(7, 100), key, start, limit)
    assert np.array_equal(kept.reshape(-1).view(np.uint32), wanted.view(np.uint32))
    assert np.array_equal(kernels.keep_drawn(found, key, start, 1 << 53), found)
    assert not kernels.keep_drawn(found, key, start, 0).any()


def test_other_arrays_refused(kernels: Kernels) -> None:
    counts = np.zeros(1 << 15, np.int64)
    for bad in (np.zeros(4), np.zeros((4, 4), np.float32)[:, ::2]):
        with pytest.raises(UsageError):
            kernels.count_magnitudes(bad, None, counts)
        with pytest.raises(UsageError):
            kernels.keep_largest(bad, 1.0, 0)
    with pytest.raises(UsageError):
        kernels.count_magnitudes(np.zeros(4, np.float32), 3, counts)
