# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops for merges of exact operands alone, where all elements are of one kind and rows do not matter.

One pass from the words to the output, without scratch in between. Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_loops import MEAN, SUM, Operands
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
    mean_brains,
    mean_reals,
    sum_brains,
    sum_reals,
)

FLAT_OPERANDS = MOST
_REAL, _BRAIN = 4, 2  # bytes
_ROW = STEP * _REAL
SCRATCH = _ROW * (3 + FLAT_OPERANDS)  # bytes


class Rest(NamedTuple):
    """Scratch for what does not fill a step.

    Args:
        ops: int64[n, 5], as of `cpu_loops.Operands`.
        part: uint8[SCRATCH].
    """

    ops: npt.NDArray[np.int64]
    part: npt.NDArray[np.uint8]


@step
def _merge_reals(job, operands, places, at, steps):
    ops, weights = operands.ops.ctypes.data, operands.weights.ctypes.data
    if job.combine == SUM:
        sum_reals(places, ops, weights, job.others, job.lam, at, steps)
    elif job.combine == MEAN:
        mean_reals(places, ops, weights, job.others, job.lam, at, steps)
    elif job.others == 2:
        elect_reals_of_two(places, ops, weights, job.others, job.lam, at, steps)
    elif job.others == 3:
        elect_reals_of_three(places, ops, weights, job.others, job.lam, at, steps)
    else:
        elect_reals(places, ops, weights, job.others, job.lam, at, steps)


@step
def _merge_brains(job, operands, places, at, steps):
    ops, weights = operands.ops.ctypes.data, operands.weights.ctypes.data
    if job.combine == SUM:
        sum_brains(places, ops, weights, job.others, job.lam, at, steps)
    elif job.combine == MEAN:
        mean_brains(places, ops, weights, job.others, job.lam, at, steps)
    elif job.others == 2:
        elect_brains_of_two(places, ops, weights, job.others, job.lam, at, steps)
    elif job.others == 3:
        elect_brains_of_three(places, ops, weights, job.others, job.lam, at, steps)
    else:
        elect_brains(places, ops, weights, job.others, job.lam, at, steps)


@step
def _places(job, offset):
    return job.out + offset, job.source + offset, job.base + offset


@step
def _bring_rest(job, operands, rest, nbytes, at, n):
    """Copy n elements from place `at` on, fewer than a step, into the scratch; where output, source and base are."""
    part = rest.part.ctypes.data
    places = part, part + _ROW, part + 2 * _ROW
    copy(places[1], job.source + nbytes * at, nbytes * n)
    copy(places[2], job.base + nbytes * at, nbytes * n)
    for k in range(operands.ops.shape[0]):
        words = part + _ROW * (3 + k)
        copy(words, operands.ops[k, 1] + nbytes * at, nbytes * n)
        rest.ops[k] = operands.ops[k]
        rest.ops[k, 1] = words - nbytes * at  # the address of place 0
    return places


@kernel
def merge_reals(job, operands, rest, start, stop):
    """Merge the F32 elements start .. stop."""
    steps = (stop - start) // STEP
    _merge_reals(job, operands, _places(job, _REAL * start), start, steps)
    at = start + STEP * steps
    if at < stop:
        places = _bring_rest(job, operands, rest, _REAL, at, stop - at)
        _merge_reals(job, Operands(rest.ops, operands.planes, operands.weights), places, at, 1)
        copy(job.out + _REAL * at, places[0], _REAL * (stop - at))


@kernel
def merge_brains(job, operands, rest, start, stop):
    """Merge the BF16 elements start .. stop."""
    steps = (stop - start) // STEP
    _merge_brains(job, operands, _places(job, _BRAIN * start), start, steps)
    at = start + STEP * steps
    if at < stop:
        places = _bring_rest(job, operands, rest, _BRAIN, at, stop - at)
        _merge_brains(job, Operands(rest.ops, operands.planes, operands.weights), places, at, 1)
        copy(job.out + _BRAIN * at, places[0], _BRAIN * (stop - at))
