"""Trimming: the numeric cases of the reference, the largest by brute force, and no dependence on windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thinning import KERNELS, trim

from obm_format.merge.methods import Count, Cut
from obm_format.merge.trim import KEEP_ALL, KEEP_NONE, Kept, kept_count, select


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
    assert trim(values, 1.0, Cut.EXACT).tolist() == [0, -1, 2]
    assert select(lambda: [(0, values)], 3, 3, Cut.EXACT, KERNELS) == KEEP_ALL


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.integers(-4, 4).map(float)),
    st.integers(1, 99),
    st.sampled_from([Cut.EXACT, Cut.INCLUSIVE]),
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


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        # of 100 elements at 0.29 (float64 product 28.999999999999996), of 4 at 0.2, of 5 at 0
        (Count.UP, [29, 1, 0]),
        (Count.DOWN, [29, 0, 0]),
        (Count.FLOAT_DOWN, [28, 0, 0]),
        (Count.AT_LEAST_ONE, [28, 1, 0]),
        (Count.ONE_MORE, [29, 1, 1]),
    ],
)
def test_kept_count_rounds_as_it_is_told(count: Count, wanted: list[int]) -> None:
    assert [kept_count(0.29, 100, count), kept_count(0.2, 4, count), kept_count(0, 5, count)] == wanted
    assert kept_count(1.0, 7, count) == 7


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, 1.5])),
    st.integers(0, 100),
    st.sampled_from([Cut.EXACT, Cut.INCLUSIVE]),
    st.integers(1, 61),
)
def test_trim_does_not_depend_on_windows(values: np.ndarray, percent: int, cut: Cut, window: int) -> None:
    whole = trim(values, percent / 100, cut)
    assert np.array_equal(trim(values, percent / 100, cut, window=window).view(np.uint32), whole.view(np.uint32))


def test_select_finds_neighbouring_floats_apart() -> None:
    values = np.arange(0x3F80_0000, 0x3F80_0000 + 50, dtype=np.uint32).view(np.float32)
    kept = select(lambda: [(0, values)], 20, 50, Cut.EXACT, KERNELS)
    assert np.flatnonzero(kept.apply(values, 0, KERNELS)).tolist() == list(range(30, 50))


def test_kept_ends_equal_magnitudes_at_a_flat_place() -> None:
    values = floats(2, -2, 3, 2, 1)
    assert Kept(2.0, 1).apply(values, 0, KERNELS).tolist() == [2, -2, 3, 0, 0]
    assert Kept(2.0, 11).apply(values, 10, KERNELS).tolist() == [2, -2, 3, 0, 0]
    assert Kept(2.0, 9).apply(values, 10, KERNELS).tolist() == [0, 0, 3, 0, 0]
    assert KEEP_ALL.apply(values, 0, KERNELS) is values
    assert not KEEP_NONE.apply(values, 0, KERNELS).any()
