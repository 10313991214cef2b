# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops for merges of exact operands alone, where all elements are of one kind and rows do not matter.

One pass from the words to the output, without scratch in between. Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_loops import MEAN, OP_COLUMNS, SUM, Int
from obm_format.kernels.cpu_names import (
    MOST,
    STEP,
    copy,
    elect_brains,
    elect_brains_of_three,
    elect_brains_of_two,
    elect_reals,
    elect_reals_of_three,
    elect_reals_of_two,
    long_at,
    mean_brains,
    mean_reals,
    put_long,
    sum_brains,
    sum_reals,
)

FLAT_OPERANDS = MOST
_REAL, _BRAIN = 4, 2  # bytes
_ROW = STEP * _REAL  # of elements, in the scratch
_OP = 8 * OP_COLUMNS  # bytes of a row of `cpu_loops.Operands.ops`
_WORDS = 8  # where in it the address of the words is
_OPS = _ROW * (3 + FLAT_OPERANDS)  # where such rows lie in the scratch
SCRATCH = _OPS + _OP * FLAT_OPERANDS  # bytes


class _Others(NamedTuple):
    """Addresses of `cpu_loops.Operands`; no arrays, whose references would be counted at every call."""

    ops: Int
    weights: Int


@step
def _merge_reals(job, others, places, at, steps):
    if job.combine == SUM:
        return sum_reals(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.combine == MEAN:
        return mean_reals(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.others == 2:
        return elect_reals_of_two(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.others == 3:
        return elect_reals_of_three(places, others.ops, others.weights, job.others, job.lam, at, steps)
    return elect_reals(places, others.ops, others.weights, job.others, job.lam, at, steps)


@step
def _merge_brains(job, others, places, at, steps):
    if job.combine == SUM:
        return sum_brains(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.combine == MEAN:
        return mean_brains(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.others == 2:
        return elect_brains_of_two(places, others.ops, others.weights, job.others, job.lam, at, steps)
    if job.others == 3:
        return elect_brains_of_three(places, others.ops, others.weights, job.others, job.lam, at, steps)
    return elect_brains(places, others.ops, others.weights, job.others, job.lam, at, steps)


@step
def _others_of(operands):
    return _Others(np.int64(operands.ops.ctypes.data), np.int64(operands.weights.ctypes.data))


@step
def _places(job, offset):
    return job.out + offset, job.source + offset, job.base + offset


@step
def _bring_rest(job, others, own, nbytes, at, n):
    """Copy n elements from place `at` on, fewer than a step, to the scratch at address `own`: they are the others now.

    Output, source and base are at `own` and one and two rows after it. What is behind n is 0, and stays 0.
    """
    copy(own + _ROW, job.source + nbytes * at, nbytes * n)
    copy(own + 2 * _ROW, job.base + nbytes * at, nbytes * n)
    copy(own + _OPS, others.ops, _OP * job.others)
    for k in range(job.others):
        words = own + _ROW * (3 + k)
        copy(words, long_at(others.ops + _OP * k + _WORDS) + nbytes * at, nbytes * n)
        put_long(own + _OPS + _OP * k + _WORDS, words - nbytes * at)  # the address of place 0
    return _Others(own + _OPS, others.weights)


@kernel
def merge_reals(job, operands, scratch, start, stop):
    """Merge the F32 elements start .. stop; `scratch` is uint8[SCRATCH].

    Returns:
        the largest magnitude that was noted, as an integer, and how many words are not the backbone's.
    """
    others, own, steps = _others_of(operands), np.int64(scratch.ctypes.data), (stop - start) // STEP
    most, moved = _merge_reals(job, others, _places(job, _REAL * start), start, steps)
    at = start + STEP * steps
    if at < stop:
        rest = _bring_rest(job, others, own, _REAL, at, stop - at)
        more = _merge_reals(job, rest, (own, own + _ROW, own + 2 * _ROW), at, 1)
        copy(job.out + _REAL * at, own, _REAL * (stop - at))
        most, moved = max(most, more[0]), moved + more[1]
    return most, moved


@kernel
def merge_brains(job, operands, scratch, start, stop):
    """As `merge_reals`, of BF16 elements."""
    others, own, steps = _others_of(operands), np.int64(scratch.ctypes.data), (stop - start) // STEP
    most, moved = _merge_brains(job, others, _places(job, _BRAIN * start), start, steps)
    at = start + STEP * steps
    if at < stop:
        rest = _bring_rest(job, others, own, _BRAIN, at, stop - at)
        more = _merge_brains(job, rest, (own, own + _ROW, own + 2 * _ROW), at, 1)
        copy(job.out + _BRAIN * at, own, _BRAIN * (stop - at))
        most, moved = max(most, more[0]), moved + more[1]
    return most, moved
