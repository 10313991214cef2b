"""Dropping by chance: values, shares, the documented generator, and what the choice does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from thinning import KERNELS, drop

from obm_format.merge.dare import Drawn, rescaled, tensor_key
from obm_format.merge.methods import Rescale


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_drop_d1_values_and_share() -> None:
    values = np.where(np.arange(100_000) % 2 == 0, 0.5, -0.5).astype(np.float32)
    out = drop(values, 0.25, seed=1, expert="e", tensor="t")
    assert set(np.unique(out).tolist()) == {-2.0, 0.0, 2.0}
    kept = np.count_nonzero(out)
    assert abs(kept - 25_000) < 5 * np.sqrt(100_000 * 0.25 * 0.75)
    assert np.array_equal(np.sign(out[out != 0]), np.sign(values[out != 0]))


@pytest.mark.parametrize("window", [1, 333, 4999])
def test_drop_does_not_depend_on_windows(window: int) -> None:
    values = np.linspace(-1, 1, 5000, dtype=np.float32)
    drawn = Drawn(key=tensor_key(7, "e", "t"), density=0.5)
    pieces = [drawn.apply(values[start : start + window], start, KERNELS) for start in range(0, 5000, window)]
    assert np.array_equal(np.concatenate(pieces), drawn.apply(values, 0, KERNELS))


def test_drop_depends_on_seed_expert_and_tensor_only() -> None:
    values = np.linspace(-1, 1, 5000, dtype=np.float32).reshape(50, 100)
    out = drop(values, 0.5, seed=7, expert="e", tensor="t")
    assert np.array_equal(out, drop(values, 0.5, seed=7, expert="e", tensor="t"))
    for other in ({"seed": 8}, {"expert": "f"}, {"tensor": "u"}):
        assert not np.array_equal(out, drop(values, 0.5, **{"seed": 7, "expert": "e", "tensor": "t", **other}))


def test_drop_is_the_documented_splitmix() -> None:
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"3\ne\nt\n").digest()[:8], "little")
    mask = 2**64 - 1

    def bits(i: int) -> int:
        z = (key + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 11

    out = drop(np.ones(64, np.float32), 0.5, seed=3, expert="e", tensor="t")
    assert [value != 0 for value in out.tolist()] == [bits(i) < 2**52 for i in range(64)]


def test_drop_density_one_keeps_all_and_density_zero_nothing() -> None:
    values = floats(1, 2)
    assert drop(values, 1.0, seed=0, expert="e", tensor="t") is values
    assert drop(values, 0.0, seed=0, expert="e", tensor="t").tolist() == [0, 0]


def test_rescale_by_density_and_by_the_sum_of_magnitudes() -> None:
    kept = floats(0, -2, 0, 6)
    assert rescaled(kept, Rescale.DENSITY, 0.5).tolist() == [0, -4, 0, 12]
    assert rescaled(kept, Rescale.L1, 0.5, (12.0, 8.0)).tolist() == [0, -3, 0, 9]
    assert rescaled(kept, Rescale.NONE, 0.5).tolist() == kept.tolist()
    assert rescaled(kept * 0, Rescale.L1, 0.5, (12.0, 0.0)).tolist() == [0, 0, 0, 0]
    assert rescaled(kept, Rescale.L1, 1.0, (12.0, 8.0)) is kept
