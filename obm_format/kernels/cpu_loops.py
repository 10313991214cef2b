# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops of the numba kernels: merge, subtract and pack over tiles that stay in the first cache.

Arrays come as addresses, so that one compiled version serves every dtype, shape and number of experts, and a cold start
compiles once. A tile is a run of `TILE` elements of one row; each step is a plain loop over one tile that LLVM turns
into vector code. All loops run without the GIL and start no threads: `cpu` shares tiles among its own.

Nothing here may be fused or reordered: no fastmath, float32 throughout (obm-1 clause 1.2). Source: `contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_elements import (
    BF16,
    add_brain,
    keep_large,
    load,
    longs_at,
    round_in_place,
    store,
    width,
)
from obm_format.kernels.cpu_names import (
    WORD,
    add_choice1,
    bits_of,
    byte_at,
    carray,
    float_at,
    float_of,
    pointer,
    put_choice1,
    put_mean,
    put_sum,
    put_ties,
    put_ties_of_two,
    word_at,
)

TILE = 1024  # elements; a multiple of WORD
ROW = TILE + 80  # floats from row to row of the scratch: rows a power of two apart would collide in the cache

SIGN, EXACT, VALUE, ZERO, TRIMMED = 0, 1, 2, 3, 4  # operand kinds
SUM, MEAN, TIES = 0, 1, 2

# Columns of `planes`: address of the bits, bytes from row to row, address of the alphas, bytes from row to row and from
# group to group, columns of a group
BITS, BITS_ROW, ALPHA, ALPHA_ROW, ALPHA_GROUP, GROUP = 0, 1, 2, 3, 4, 5
OP_COLUMNS, PLANE_COLUMNS = 5, 6

# Rows of the scratch float32[FIRST + operands, ROW]: the result of a step, a spare one, f32 of the backbone, the values
INTO, SPARE, BASE, FIRST = 0, 1, 2, 3

Int = int | np.int64
u32 = np.uint32  # numba widens sums of u32 to u64 unless told
_ZERO = np.float32(0)


class Job(NamedTuple):
    """What is the same for all tiles of one call: addresses and kinds of words, and the merge.

    Args:
        base, base_kind: the backbone.
        source, source_kind: what the shift is added to: the backbone, or an exact routed expert.
        out, out_kind: the output.
        cols: elements of a row.
        others: number of others; 0 when lam*T is absent.
        shifts: whether a routed operand adds to the shift; it comes after the others.
        combine, lam: SUM, MEAN or TIES, and what T is multiplied by.
        table: columns that share one table of shifts, or 0 for no table.
        needs_base: whether an operand is exact, so that its d needs the backbone.
    """

    base: int
    base_kind: int
    source: int
    source_kind: int
    out: int
    out_kind: int
    cols: int
    others: int
    shifts: int
    combine: int
    lam: np.float32
    table: int
    needs_base: int


class Operands(NamedTuple):
    """The others in their order, then the routed one if it adds to the shift.

    Args:
        ops: int64[n, 5]: (SIGN, first plane, number of planes, 0, 0), (EXACT or VALUE, address, kind, 0, 0), (ZERO, 0,
            0, 0, 0) or (TRIMMED, address, kind, bits of the threshold, flat places at which it is kept too).
        planes: int64[planes, 6], columns as above.
        weights: float32, one per other.
    """

    ops: npt.NDArray[np.int64]
    planes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Tile(NamedTuple):
    """Elements col .. col + n of a row; `place` is the flat index of the first."""

    row: Int
    col: Int
    n: Int
    place: Int


@step
def _tile(number, cols):
    """Tile `number` of a matrix, counted along its rows; each row ends with a tile of its own."""
    per_row = -(-cols // TILE)
    row, col = number // per_row, (number % per_row) * TILE
    return Tile(row, col, min(TILE, cols - col), row * cols + col)


class Part(NamedTuple):
    """Columns col .. end of a row: what the tiles from some number on have of it; and the first tile after them."""

    row: int
    col: int
    end: int
    next: int


@step
def part_of(cols, number, stop):
    """What the tiles number .. stop have of the first row that they touch."""
    per_row = -(-cols // TILE)
    row, first = number // per_row, number % per_row
    last = min(per_row, first + stop - number)
    return Part(row, first * TILE, min(cols, last * TILE), number + last - first)


# --- operands to float32 (obm-1 clauses 6.6 and 9.2) --------------------------------------------------------


@step
def _plane(into, planes, p, is_first, tile):
    """Add plane `p` of a tile to `into`, or set it when it is the first of its operand."""
    group, end = planes[p, GROUP], tile.col + tile.n
    col = tile.col
    while col < end:
        place = col // group
        run = min(end - col, (place + 1) * group - col)
        alpha = float_at(planes[p, ALPHA] + tile.row * planes[p, ALPHA_ROW] + place * planes[p, ALPHA_GROUP])
        bits = planes[p, BITS] + tile.row * planes[p, BITS_ROW] + col // 8
        # an alpha of 0 gives +0 whatever the bit (obm-1 clause 6.6)
        low = -alpha if alpha > _ZERO else alpha
        _signs(into, col - tile.col, run, bits, (low, alpha), is_first)
        col += run


@step
def _signs(into, start, n, bits, values, is_first):
    """into[start + i] becomes, or grows by, values[0] for a clear bit and values[1] for a set one."""
    to, step = into.ctypes.data + 4 * start, 4 * WORD
    whole = n // WORD
    if is_first:
        for word in range(whole):
            put_choice1(to + step * word, values, (word_at(bits + 4 * word),))
    else:
        for word in range(whole):
            add_choice1(to + step * word, values, (word_at(bits + 4 * word),))
    for i in range(WORD * whole, n):
        value = values[1] if (byte_at(bits + (i >> 3)) >> (i & 7)) & 1 else values[0]
        into[start + i] = value if is_first else into[start + i] + value


@step
def _values(work, to, operands, k, tile):
    """work[to] = d of operand k; f32 of the backbone is in work[BASE]."""
    into, ops = work[to], operands.ops
    kind = ops[k, 0]
    if kind == SIGN:
        for plane in range(ops[k, 2]):
            _plane(into, operands.planes, ops[k, 1] + plane, plane == 0, tile)
    elif kind == ZERO:
        for i in range(tile.n):
            into[i] = _ZERO
    else:  # VALUE, or EXACT or TRIMMED, whose backbone is still to be taken off
        load(into, ops[k, 1] + tile.place * width(ops[k, 2]), ops[k, 2], tile.n)
        if kind != VALUE:
            base = work[BASE]
            for i in range(tile.n):
                into[i] -= base[i]
        if kind == TRIMMED:
            head = min(tile.n, max(np.int64(0), ops[k, 4] - tile.place))
            keep_large(into.ctypes.data, head, u32(ops[k, 3]))
            keep_large(into.ctypes.data + 4 * head, tile.n - head, u32(ops[k, 3] + 1))


# --- merge --------------------------------------------------------------------------------------------------


@step
def _combine(work, job, weights, n):
    """work[INTO] = lam * T of the values in work[FIRST] and after; may touch the elements up to the next whole word."""
    to, rows, stride = work[INTO].ctypes.data, work[FIRST].ctypes.data, np.int64(4 * work.shape[1])
    scales, count, lam = weights.ctypes.data, job.others, job.lam
    for at in range(0, 4 * n, 4 * WORD):
        if job.combine == SUM:
            put_sum(to + at, rows + at, stride, count, scales, lam)
        elif job.combine == MEAN:
            put_mean(to + at, rows + at, stride, count, scales, lam)
        elif count == 2:
            put_ties_of_two(to + at, rows + at, stride, count, scales, lam)
        else:
            put_ties(to + at, rows + at, stride, count, scales, lam)


@step
def _shift(job, operands, work, tile):
    """work[INTO] = what is added: d of the routed operand + lam*T, or the one of them that there is."""
    if job.others == 0:
        _values(work, np.int64(INTO), operands, np.int64(0), tile)
        return
    for k in range(operands.ops.shape[0]):
        _values(work, FIRST + k, operands, k, tile)
    _combine(work, job, operands.weights, tile.n)
    if job.shifts:
        into, routed = work[INTO], work[FIRST + job.others]
        for i in range(tile.n):
            into[i] = routed[i] + into[i]


@step
def finish(job, work, tile):
    """Write the output: RNE(f32(source) + shift)."""
    into, n = work[INTO], tile.n
    source = job.source + tile.place * width(job.source_kind)
    out = job.out + tile.place * width(job.out_kind)
    if job.source_kind == BF16 and job.out_kind == BF16:
        add_brain(source, out, into, n)
        return
    values = work[SPARE]
    load(values, source, job.source_kind, n)
    for i in range(n):
        into[i] = values[i] + into[i]
    store(out, job.out_kind, into, n)


@kernel
def merge_tiles(job, operands, work, start, stop):
    """Merge the tiles start .. stop. `work` is scratch, float32[FIRST + operands, ROW]."""
    for number in range(start, stop):
        tile = _tile(number, job.cols)
        if job.needs_base:
            load(work[BASE], job.base + tile.place * width(job.base_kind), job.base_kind, tile.n)
        _shift(job, operands, work, tile)
        finish(job, work, tile)


# --- the other kernels --------------------------------------------------------------------------------------


@kernel
def value_tiles(job, operands, work, start, stop):
    """float32 values of operand 0 to the output, tiles as in `merge_tiles`."""
    for number in range(start, stop):
        tile = _tile(number, job.cols)
        if job.needs_base:
            load(work[BASE], job.base + tile.place * width(job.base_kind), job.base_kind, tile.n)
        _values(work, np.int64(INTO), operands, np.int64(0), tile)
        into, out = work[INTO], longs_at(job.out + 4 * tile.place, tile.n)
        for i in range(tile.n):
            out[i] = bits_of(into[i])


@kernel
def absorbed_tiles(job, operands, work, start, stop):
    """(elements whose d rounding swallows, elements with d != 0) of operand 0, tiles as in `merge_tiles`."""
    swallowed, nonzero = np.int64(0), np.int64(0)
    d, before, after = work[INTO], work[BASE], work[SPARE]
    for number in range(start, stop):
        tile = _tile(number, job.cols)
        load(before, job.base + tile.place * width(job.base_kind), job.base_kind, tile.n)
        _values(work, np.int64(INTO), operands, np.int64(0), tile)
        for i in range(tile.n):
            after[i] = before[i] + d[i]
        round_in_place(before, job.out_kind, tile.n)
        round_in_place(after, job.out_kind, tile.n)
        for i in range(tile.n):
            counts = np.int64(d[i] != _ZERO)
            nonzero += counts
            swallowed += counts & np.int64(bits_of(before[i]) == bits_of(after[i]))
    return swallowed, nonzero


@step
def _packed(values, start, n):
    bits = u32(0)
    for j in range(n):
        bits |= u32(u32(float_of(values[start + j]) >= _ZERO) << u32(j))
    return np.uint8(bits)


@kernel
def pack_tiles(d, out, cols, start, stop):
    """Sign bits of float32 at address `d` to bytes at address `out`, tiles as in `merge_tiles` (obm-1 clause 6.2)."""
    stride = (cols + 7) // 8
    for number in range(start, stop):
        tile = _tile(number, cols)
        values = longs_at(d + 4 * tile.place, tile.n)
        packed = carray(pointer(out + tile.row * stride + tile.col // 8), ((tile.n + 7) // 8,), np.uint8)
        for byte in range(tile.n // 8):
            packed[byte] = _packed(values, 8 * byte, 8)
        if tile.n % 8:
            packed[tile.n // 8] = _packed(values, tile.n - tile.n % 8, tile.n % 8)
