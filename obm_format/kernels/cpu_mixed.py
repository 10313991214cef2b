# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops for TIES of one exact and one sign operand in BF16, with or without a routed sign operand.

So most matrices are merged whose experts have the positions of the papers. All signs have one plane, and one alpha per
row at most. Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_loops import ALPHA, ALPHA_ROW, BITS, BITS_ROW, EXACT, PLANE_COLUMNS, Int, Tile, part_of
from obm_format.kernels.cpu_names import STEP, copy, float_at, long_at, merge_mixed

_ZERO = np.float32(0)
_ROW = 2 * STEP  # bytes of BF16 elements
_BITS = 4 * _ROW  # where sign bits lie in the scratch
SCRATCH = _BITS + 2 * STEP // 8  # bytes


class _Mixed(NamedTuple):
    """The operands; no arrays, whose references would be counted at every call.

    Args:
        words: address of the exact operand's.
        weight: that of the exact operand.
        planes: address of `cpu_loops.Operands.planes`.
        sign, sign_weight: the sign operand's plane and weight.
        routed: the routed operand's plane, or the sign operand's again where there is none.
    """

    words: Int
    weight: np.float32
    planes: Int
    sign: Int
    sign_weight: np.float32
    routed: Int


@step
def _new_mixed(job, operands):
    ops, weights, planes = operands.ops, operands.weights, np.int64(operands.planes.ctypes.data)
    e = np.int64(0) if ops[0, 0] == EXACT else np.int64(1)
    sign = ops[1 - e, 1]
    return _Mixed(ops[e, 1], weights[e], planes, sign, weights[1 - e], ops[2, 1] if job.shifts else sign)


@step
def _plane(mixed, p, column):
    return long_at(mixed.planes + 8 * (PLANE_COLUMNS * p + column))


@step
def _choices(mixed, p, row):
    """The values of plane p in a row, for a clear and for a set bit; an alpha of 0 gives +0 (obm-1 clause 6.6)."""
    alpha = float_at(_plane(mixed, p, ALPHA) + row * _plane(mixed, p, ALPHA_ROW))
    return -alpha if alpha > _ZERO else alpha, alpha


@step
def _merge(job, mixed, places, bits, row, words):
    """Merge `words` times 32 elements of a row."""
    low, high = _choices(mixed, mixed.sign, row)
    low, high = low * mixed.sign_weight, high * mixed.sign_weight
    if job.shifts:
        routed_low, routed_high = _choices(mixed, mixed.routed, row)
        merge_mixed(places, bits, (low, high, routed_low, routed_high), mixed.weight, job.lam, words)
    else:
        merge_mixed(places, (bits[0],), (low, high), mixed.weight, job.lam, words)


@step
def _bits_of(mixed, p, tile):
    return _plane(mixed, p, BITS) + tile.row * _plane(mixed, p, BITS_ROW) + tile.col // 8


@step
def _bits_at(mixed, tile):
    """Addresses of the sign operand's bits and of the routed one's."""
    return _bits_of(mixed, mixed.sign, tile), _bits_of(mixed, mixed.routed, tile)


@step
def _places_at(job, mixed, tile):
    """Addresses of output, source, backbone and the exact operand's words."""
    at = 2 * tile.place
    return job.out + at, job.source + at, job.base + at, mixed.words + at


@step
def _merge_rest(job, mixed, own, tile):
    """Merge fewer than 32 elements by way of the scratch at the address `own`."""
    bits, places = _bits_at(mixed, tile), _places_at(job, mixed, tile)
    own_places = own, own + _ROW, own + 2 * _ROW, own + 3 * _ROW
    own_bits = own + _BITS, own + _BITS + STEP // 8
    for i in range(1, 4):
        copy(own_places[i], places[i], 2 * tile.n)
    for i in range(2):
        copy(own_bits[i], bits[i], (tile.n + 7) // 8)
    _merge(job, mixed, own_places, own_bits, tile.row, np.int64(1))
    copy(places[0], own, 2 * tile.n)


@kernel
def merge_mixed_tiles(job, operands, part, start, stop):
    """As `cpu_loops.merge_tiles`; `part` is scratch, uint8[SCRATCH]."""
    number, mixed, own = start, _new_mixed(job, operands), np.int64(part.ctypes.data)
    while number < stop:
        row = part_of(job.cols, number, stop)
        number, words = row.next, (row.end - row.col) // STEP
        tile = Tile(row.row, row.col, row.end - row.col, row.row * job.cols + row.col)
        _merge(job, mixed, _places_at(job, mixed, tile), _bits_at(mixed, tile), row.row, words)
        done = STEP * words
        if done < tile.n:
            _merge_rest(job, mixed, own, Tile(row.row, row.col + done, tile.n - done, tile.place + done))
