"""Runs: the pieces that are summed from 0 in the pinned order, at most one block of one group each.

What all fast kernels share of obm-1 clause 11.3: where the runs are, and how their sums become those of the groups.
Never touches the values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from obm_format.kernels.contract import Bounds, Float64
from obm_format.kernels.reference import SUM_BLOCK

Int64 = npt.NDArray[np.int64]


class Runs(NamedTuple):
    """Which elements make up each run, and where its sums of |d| and d*d go.

    Args:
        begins, ends: first element, and the one behind the last, in the flat array.
        s1, s2: the sums, written.
    """

    begins: Int64
    ends: Int64
    s1: Float64
    s2: Float64


def split_groups(bounds: Bounds) -> tuple[Int64, Runs]:
    """The runs of all groups, and the group of each."""
    sizes = np.diff(bounds)
    counts = -(-sizes // SUM_BLOCK)
    groups = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = bounds[:-1][groups] + within * SUM_BLOCK
    ends = np.minimum(begins + SUM_BLOCK, bounds[1:][groups])
    return groups, Runs(begins, ends, np.empty(len(groups)), np.empty(len(groups)))


def are_on_bytes(runs: Runs, cols: int) -> bool:
    """Whether no two runs share a byte of the sign bits, and each run's bytes follow one another without a pad."""
    begins, ends = runs.begins % cols, runs.ends % cols
    is_whole = cols % 8 == 0 or bool((begins + (runs.ends - runs.begins) <= cols).all())
    return is_whole and not (begins % 8).any() and not (ends % 8).any()


def add_in_order(runs: Runs, groups: Int64, count: int) -> tuple[Float64, Float64]:
    """The sums of each group's runs, added one after the other, starting from 0."""
    s1, s2 = np.zeros(count), np.zeros(count)
    np.add.at(s1, groups, runs.s1)
    np.add.at(s2, groups, runs.s2)
    return s1, s2
