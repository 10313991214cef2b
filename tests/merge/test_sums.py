"""Sums of magnitudes are exact, in whatever pieces values come."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from obm_format.merge.sums import MagnitudeSum

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, max_size=30), st.integers(0, 30))
def test_sum_is_exact_in_any_pieces(values: list[float], cut: int) -> None:
    whole, pieces = MagnitudeSum(), MagnitudeSum()
    array = np.array(values, np.float32)
    whole.add(array)
    pieces.add(array[cut:])
    pieces.add(array[:cut])
    wanted = sum((abs(Fraction(value)) for value in values), Fraction(0))
    assert whole.total == pieces.total == wanted
    assert whole.mean == (wanted / len(values) if values else 0)
