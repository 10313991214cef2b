"""Counting magnitudes and keeping the largest: both kernels against brute force, and against each other."""

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


def test_other_arrays_refused(kernels: Kernels) -> None:
    counts = np.zeros(1 << 15, np.int64)
    for bad in (np.zeros(4), np.zeros((4, 4), np.float32)[:, ::2]):
        with pytest.raises(UsageError):
            kernels.count_magnitudes(bad, None, counts)
        with pytest.raises(UsageError):
            kernels.keep_largest(bad, 1.0, 0)
    with pytest.raises(UsageError):
        kernels.count_magnitudes(np.zeros(4, np.float32), 3, counts)
