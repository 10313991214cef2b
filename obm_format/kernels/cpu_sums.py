# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops over runs, which add in the pinned order of obm-1 clause 11.3.

A run is what is summed from 0: at most one block of one group. All loops run without the GIL and start no threads;
adding the sums of the runs is up to `cpu`. No fastmath. Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_elements import BF16, F32, load, longs_at, width
from obm_format.kernels.cpu_names import WORD, carray, float_of, pack_brains, pack_reals, pointer
from obm_format.kernels.reference import SUM_LANES

_TILE = 1024  # elements converted at a time; a multiple of WORD
_ZERO = np.float32(0)


class Pair(NamedTuple):
    """A fine-tune and its backbone, matrices of `cols` columns.

    Args:
        tuned, base: addresses of the words.
        tuned_kind, base_kind: their elements.
        bits: address of the sign bits; each row begins on a byte.
        cols: elements of a row.
    """

    tuned: int
    tuned_kind: int
    base: int
    base_kind: int
    bits: int
    cols: int


@step
def _lanes_added(lanes):
    """The sum of 16 lanes by the fixed tree; `lanes` is spent."""
    half = SUM_LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@kernel
def sum_runs(d, runs, start, stop):
    """The sums of the runs start .. stop of float32 at address `d`."""
    first, second = np.empty(SUM_LANES, np.float64), np.empty(SUM_LANES, np.float64)
    for run in range(start, stop):
        n = runs.ends[run] - runs.begins[run]
        values = longs_at(d + 4 * runs.begins[run], n)
        first[:] = 0.0
        second[:] = 0.0
        for i in range(n // SUM_LANES):
            for lane in range(SUM_LANES):
                value = np.float64(float_of(values[SUM_LANES * i + lane]))
                first[lane] += abs(value)
                second[lane] += value * value
        for i in range(n - n % SUM_LANES, n):
            value = np.float64(float_of(values[i]))
            first[i % SUM_LANES] += abs(value)
            second[i % SUM_LANES] += value * value
        runs.s1[run], runs.s2[run] = _lanes_added(first), _lanes_added(second)


@step
def _pack_converted(pair, bits, at, n, work, sums):
    """Pack elements at .. at + n by way of float32, padded by zeros to whole words; those change no sum."""
    tuned, base = work[0], work[1]
    load(tuned, pair.tuned + at * width(pair.tuned_kind), pair.tuned_kind, n)
    load(base, pair.base + at * width(pair.base_kind), pair.base_kind, n)
    words = (n + WORD - 1) // WORD
    for i in range(n, WORD * words):
        tuned[i] = base[i] = _ZERO
    # the zeros' bits are set; only whole bytes are copied out, and the rest of the last one is cleared
    packed = work[2].ctypes.data
    pack_reals(packed, tuned.ctypes.data, base.ctypes.data, sums, words)
    count = (n + 7) // 8
    source, out = carray(pointer(packed), (count,), np.uint8), carray(pointer(bits), (count,), np.uint8)
    for byte in range(count):
        out[byte] = source[byte]
    if n % 8:
        out[count - 1] &= np.uint8((1 << (n % 8)) - 1)


@step
def _pack_run(pair, begin, n, work, sums):
    """Sign bits of elements begin .. begin + n, and their |d| and d*d added to the lanes at address `sums`."""
    bits = pair.bits + begin // pair.cols * ((pair.cols + 7) // 8) + begin % pair.cols // 8
    done = np.int64(0)
    if pair.tuned_kind == pair.base_kind == BF16:
        done = n - n % WORD
        pack_brains(bits, pair.tuned + 2 * begin, pair.base + 2 * begin, sums, done // WORD)
    elif pair.tuned_kind == pair.base_kind == F32:
        done = n - n % WORD
        pack_reals(bits, pair.tuned + 4 * begin, pair.base + 4 * begin, sums, done // WORD)
    while done < n:
        count = min(_TILE, n - done)
        _pack_converted(pair, bits + done // 8, begin + done, count, work, sums)
        done += count


@kernel
def pack_runs(pair, runs, start, stop):
    """Sign bits and sums of the runs start .. stop.

    Each run begins and ends on a byte of the bits, or ends with a row; runs go beyond a row only where all rows end on
    a byte.
    """
    work, sums = np.empty((3, _TILE), np.float32), np.empty((2, SUM_LANES), np.float64)
    for run in range(start, stop):
        sums[:] = 0.0
        _pack_run(pair, runs.begins[run], runs.ends[run] - runs.begins[run], work, sums.ctypes.data)
        runs.s1[run], runs.s2[run] = _lanes_added(sums[0]), _lanes_added(sums[1])
