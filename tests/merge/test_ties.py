"""Trimming and dropping: the numeric cases of the reference, and what they do not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from obm_format.merge import ties
from obm_format.merge.recipe import Cut
from obm_format.merge.ties import drop, trim


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_trim_t1_inclusive_keeps_the_equal_ones() -> None:
    assert trim(floats(2, 2, -1, -6, 0), 0.4, Cut.INCLUSIVE).tolist() == [2, 2, 0, -6, 0]


def test_trim_t1_exact_keeps_the_lower_index() -> None:
    assert trim(floats(2, 2, -1, -6, 0), 0.4, Cut.EXACT).tolist() == [2, 0, 0, -6, 0]
    assert trim(floats(1, -2, 3, -4, 5), 0.4, Cut.EXACT).tolist() == [0, 0, 0, -4, 5]


def test_trim_t6_equal_magnitudes() -> None:
    assert trim(floats(2, -2, 2, 1), 0.25, Cut.INCLUSIVE).tolist() == [2, -2, 2, 0]
    assert trim(floats(2, -2, 2, 1), 0.25, Cut.EXACT).tolist() == [2, 0, 0, 0]


def test_trim_t8_less_than_one_element() -> None:
    assert trim(floats(1, 2, 3, 4), 0.2, Cut.EXACT).tolist() == [0, 0, 0, 0]
    assert trim(floats(1, 2, 3, 4), 0.2, Cut.INCLUSIVE).tolist() == [0, 0, 0, 4]


def test_trim_t12_one_bit_tensor() -> None:
    values = np.where(np.arange(1000) % 3 == 0, -0.5, 0.5).astype(np.float32).reshape(20, 50)
    exact = trim(values, 0.2, Cut.EXACT)
    assert np.array_equal(exact.reshape(-1)[:200], values.reshape(-1)[:200])
    assert not exact.reshape(-1)[200:].any()
    assert np.array_equal(trim(values, 0.2, Cut.INCLUSIVE), values)


def test_trim_density_counts_as_written() -> None:
    values = np.arange(1, 101, dtype=np.float32)
    # 0.07 * 100 is 7.000000000000001 in float64
    assert np.count_nonzero(trim(values, 0.07, Cut.INCLUSIVE)) == 7
    assert np.count_nonzero(trim(values, 0.29, Cut.EXACT)) == 29


def test_trim_density_one_keeps_all() -> None:
    values = floats(0, -1, 2)
    assert trim(values, 1.0, Cut.EXACT) is values


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.integers(-4, 4).map(float)),
    st.integers(1, 99),
    st.sampled_from(Cut),
)
def test_trim_keeps_the_largest(values: np.ndarray, percent: int, cut: Cut) -> None:
    kept = trim(values, percent / 100, cut) != 0
    largest = sorted(range(values.size), key=lambda i: (-abs(values[i]), i))
    if cut is Cut.EXACT:
        wanted = set(largest[: values.size * percent // 100])
    else:
        rank = -(-values.size * percent // 100)
        wanted = {i for i in largest if abs(values[i]) >= abs(values[largest[rank - 1]])}
    assert set(np.flatnonzero(kept)) == {i for i in wanted if values[i]}


def test_drop_d1_values_and_share() -> None:
    values = np.where(np.arange(100_000) % 2 == 0, 0.5, -0.5).astype(np.float32)
    out = drop(values, 0.25, seed=1, expert="e", tensor="t")
    assert set(np.unique(out).tolist()) == {-2.0, 0.0, 2.0}
    kept = np.count_nonzero(out)
    assert abs(kept - 25_000) < 5 * np.sqrt(100_000 * 0.25 * 0.75)
    assert np.array_equal(np.sign(out[out != 0]), np.sign(values[out != 0]))


def test_drop_depends_on_seed_expert_and_tensor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(-1, 1, 5000, dtype=np.float32).reshape(50, 100)
    out = drop(values, 0.5, seed=7, expert="e", tensor="t")
    monkeypatch.setattr(ties, "_BLOCK", 333)
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


def test_drop_density_one_keeps_all() -> None:
    values = floats(1, 2)
    assert drop(values, 1.0, seed=0, expert="e", tensor="t") is values
