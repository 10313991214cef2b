# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled loops for merges of sign operands alone, where a table has the shift of every pattern of sign bits.

Within a row and a group of alphas the shift depends only on an element's sign bits, so it is computed once for each
pattern, in the same order and with the same roundings as for an element (obm-1 clauses 6.6 and 9.2). Source:
`contract.Kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_elements import BF16
from obm_format.kernels.cpu_loops import (
    ALPHA,
    ALPHA_GROUP,
    ALPHA_ROW,
    BITS,
    BITS_ROW,
    GROUP,
    INTO,
    MEAN,
    OP_COLUMNS,
    PLANE_COLUMNS,
    SUM,
    TILE,
    Int,
    Tile,
    finish,
    part_of,
)
from obm_format.kernels.cpu_names import (
    BLOCK,
    FEW,
    MANY,
    PATTERNS,
    SUM_ROW,
    SUM_ROWS,
    WORD,
    add_brains1,
    add_brains2,
    add_brains3,
    add_brains4,
    add_brains8,
    add_few,
    add_many,
    add_to_all,
    begin,
    byte_at,
    copy,
    float_at,
    grow,
    long_at,
    put_choice1,
    put_choice2,
    put_choice3,
    put_choice4,
    put_choice8,
    put_elected,
    put_float,
    put_long,
    put_mean_of,
    put_total,
    word_at,
)

TABLE_PLANES = MANY  # most sign planes under one table

u32 = np.uint32  # numba widens sums of u32 to u64 unless told
_ZERO, _NO_ALPHA = np.float32(0), np.float32(-1)
_ROW_BYTES = BLOCK // 8  # of one plane, in the scratch for part of a block
_PART_IN, _PART_OUT = MANY * _ROW_BYTES, MANY * _ROW_BYTES + 2 * BLOCK
# Where things are in the scratch, in bytes
_SHIFTS = 0
_SUMS = _SHIFTS + 4 * ((1 << MANY) + PATTERNS)  # the most patterns, and what is written beyond them
_CHOICES = _SUMS + 2 * 4 * SUM_ROWS * SUM_ROW
_BITS = _CHOICES + 2 * 4 * MANY
_PART = _BITS + 8 * MANY
SCRATCH = _PART + _PART_OUT + 2 * BLOCK


class Table(NamedTuple):
    """Addresses of the operands and of the scratch; no arrays, whose references would be counted at every call.

    Args:
        ops, planes, weights: as of `cpu_loops.Operands`.
        depth: number of planes.
        shifts: the table, float32[2^depth]; with fewer than 4 planes it has 16 entries and repeats.
        sums: float32[2, SUM_ROWS, SUM_ROW].
        choices: float32[2, 8]: the value of each plane for a clear bit and for a set one.
        bits: int64[8]: addresses of the sign bits of each plane.
        part: room for part of a block.
    """

    ops: Int
    planes: Int
    weights: Int
    depth: Int
    shifts: Int
    sums: Int
    choices: Int
    bits: Int
    part: Int


@step
def _new_table(operands, scratch):
    """A table that knows no alpha yet."""
    place = np.int64(scratch.ctypes.data)
    table = Table(
        np.int64(operands.ops.ctypes.data),
        np.int64(operands.planes.ctypes.data),
        np.int64(operands.weights.ctypes.data),
        np.int64(operands.planes.shape[0]),
        place + _SHIFTS,
        place + _SUMS,
        place + _CHOICES,
        place + _BITS,
        place + _PART,
    )
    for p in range(MANY):
        put_float(table.choices + 4 * (MANY + p), _NO_ALPHA)
    return table


@step
def _op(table, k, column):
    return long_at(table.ops + 8 * (OP_COLUMNS * k + column))


@step
def _plane(table, p, column):
    return long_at(table.planes + 8 * (PLANE_COLUMNS * p + column))


@step
def _bits(table, p):
    return long_at(table.bits + 8 * p)


@step
def _choice(table, is_set, p):
    return float_at(table.choices + 4 * (MANY * is_set + p))


# --- the table ----------------------------------------------------------------------------------------------


@step
def _read_alphas(table, row, col):
    """Put the values of one place into the choices; whether any of them changed."""
    changed = False
    for p in range(table.depth):
        group = _plane(table, p, GROUP)
        place = col // group if col >= group else np.int64(0)
        alpha = float_at(
            _plane(table, p, ALPHA) + row * _plane(table, p, ALPHA_ROW) + place * _plane(table, p, ALPHA_GROUP)
        )
        if alpha != _choice(table, 1, p):
            # an alpha of 0 gives +0 whatever the bit (obm-1 clause 6.6)
            put_float(table.choices + 4 * p, -alpha if alpha > _ZERO else alpha)
            put_float(table.choices + 4 * (MANY + p), alpha)
            changed = True
    return changed


@step
def _value(table, k, c):
    """The value of operand k for pattern c of its planes' bits: their sum in order."""
    first, number = _op(table, k, 1), _op(table, k, 2)
    total = _choice(table, c & 1, first)
    for i in range(1, number):
        total += _choice(table, (c >> i) & 1, first + i)
    return total


@step
def _registers(size):
    return (size + PATTERNS - 1) // PATTERNS


@step
def _sum_others(table, others):
    """Sums of the others for every pattern of their bits; their address, where others may be, and how many patterns."""
    here, there, size = table.sums, table.sums + 4 * SUM_ROWS * SUM_ROW, np.int64(1)
    begin(here)
    for k in range(others):
        number, weight = _op(table, k, 2), float_at(table.weights + 4 * k)
        for c in range(1 << number):
            grow(there + 4 * size * c, here, _value(table, k, c) * weight, _registers(size))
        here, there, size = there, here, size << number
    return here, there, size


@step
def _make(job, table):
    """Fill the table."""
    sums, shifts, size = _sum_others(table, job.others)
    to, registers = table.shifts, _registers(size)
    if job.others == 0:
        shifts = sums  # what adds nothing, not even to -0
    elif job.combine == SUM:
        put_total(shifts, sums, job.others, job.lam, registers)
    elif job.combine == MEAN:
        put_mean_of(shifts, sums, job.others, job.lam, registers)
    else:
        put_elected(shifts, sums, job.others, job.lam, registers)
    if job.shifts:
        number = _op(table, job.others, 2)
        for c in range(1 << number):
            add_to_all(to + 4 * size * c, shifts, _value(table, job.others, c), registers)
        size <<= number
    else:
        copy(to, shifts, 4 * size)
    while size < 1 << FEW:
        copy(to + 4 * size, to, 4 * size)
        size *= 2


# --- looking up, on processors with byte shuffles -----------------------------------------------------------


@step
def _add_blocks(table, out, source, blocks):
    """Add the shifts of whole blocks, from addresses `source` to `out`; `table.bits` has those of the sign bits."""
    few = _bits(table, 0), _bits(table, 1), _bits(table, 2), _bits(table, 3)
    if table.depth <= FEW:  # planes that are not there repeat the first; the table repeats too
        add_few(out, source, table.shifts, few, blocks)
    else:
        many = (*few, _bits(table, 4), _bits(table, 5), _bits(table, 6), _bits(table, 7))
        add_many(out, source, table.shifts, many, np.uint8((1 << table.depth) - 1), blocks)


@step
def _add_part(table, out, source, done, n):
    """As `_add_blocks` for n elements, less than a block, after `done` ones; by way of the scratch."""
    for p in range(MANY):
        if p < table.depth:
            copy(table.part + _ROW_BYTES * p, _bits(table, p) + done // 8, (n + 7) // 8)
        put_long(table.bits + 8 * p, table.part + _ROW_BYTES * (p if p < table.depth else 0))
    copy(table.part + _PART_IN, source + 2 * done, 2 * n)
    _add_blocks(table, table.part + _PART_OUT, table.part + _PART_IN, np.int64(1))
    copy(out + 2 * done, table.part + _PART_OUT, 2 * n)


@step
def _add_run(table, out, source, n):
    """BF16 elements, n of them, at the address `out` become RNE(f32(element at `source`) + shift)."""
    blocks = n // BLOCK
    _add_blocks(table, out, source, blocks)
    done = BLOCK * blocks
    if done < n:
        _add_part(table, out, source, done, n - done)


# --- looking up, on any processor ---------------------------------------------------------------------------


@step
def _word(table, p, w):
    """The word of plane p that is `w` bytes on; 0 for a plane that is not there."""
    return word_at(_bits(table, p) + w) if p < table.depth else u32(0)


@step
def _four_words(table, first, w):
    second, third = _word(table, first + 1, w), _word(table, first + 2, w)
    return _word(table, first, w), second, third, _word(table, first + 3, w)


@step
def _eight_words(table, w):
    return _four_words(table, 0, w) + _four_words(table, 4, w)


@step
def _entries(table, first):
    """Eight entries of the table."""
    t = table.shifts + 4 * first
    low = float_at(t), float_at(t + 4), float_at(t + 8), float_at(t + 12)
    return (*low, float_at(t + 16), float_at(t + 20), float_at(t + 24), float_at(t + 28))


@step
def _add_words(table, out, source, n):
    """As `_add_run`, but only the whole words; how many elements those have."""
    whole, low, high = n // WORD, _entries(table, 0), _entries(table, 8)
    for w in range(0, 4 * whole, 4):
        to, by = out + 16 * w, source + 16 * w
        if table.depth <= FEW:
            a, b, c, d = _four_words(table, 0, w)
            if table.depth == 1:
                add_brains1(to, by, (low[0], low[1]), (a,))
            elif table.depth == 2:
                add_brains2(to, by, (low[0], low[1], low[2], low[3]), (a, b))
            elif table.depth == 3:
                add_brains3(to, by, low, (a, b, c))
            else:
                add_brains4(to, by, low + high, (a, b, c, d))
        else:
            add_brains8(to, by, table.shifts, _eight_words(table, w))
    return WORD * whole


@step
def _pattern(table, i):
    """The sign bits of element i, that of the first plane lowest."""
    pattern = np.int64(0)
    for p in range(table.depth):
        pattern |= ((byte_at(_bits(table, p) + (i >> 3)) >> (i & 7)) & 1) << p
    return pattern


@step
def _look_up(into, table, n):
    """into[i] = the shift for the sign bits of element i."""
    to, whole, low, high = np.int64(into.ctypes.data), n // WORD, _entries(table, 0), _entries(table, 8)
    for w in range(0, 4 * whole, 4):
        if table.depth <= FEW:
            a, b, c, d = _four_words(table, 0, w)
            if table.depth == 1:
                put_choice1(to + 32 * w, (low[0], low[1]), (a,))
            elif table.depth == 2:
                put_choice2(to + 32 * w, (low[0], low[1], low[2], low[3]), (a, b))
            elif table.depth == 3:
                put_choice3(to + 32 * w, low, (a, b, c))
            else:
                put_choice4(to + 32 * w, low + high, (a, b, c, d))
        else:
            put_choice8(to + 32 * w, table.shifts, _eight_words(table, w))
    for i in range(WORD * whole, n):
        into[i] = float_at(table.shifts + 4 * _pattern(table, i))


# --- merge --------------------------------------------------------------------------------------------------


@step
def _prepare(job, table, part, col):
    """Make the table right for a part's columns from `col` on; the run of columns that it holds for."""
    if _read_alphas(table, part.row, col):
        _make(job, table)
    n = min(part.end - col, job.table - (col % job.table if col >= job.table else col))
    _point(table, part.row, col)
    return Tile(part.row, col, n, part.row * job.cols + col)


@step
def _point(table, row, col):
    """Let the bits be those from a place on; planes that are not there repeat the first."""
    for p in range(MANY):
        q = p if p < table.depth else 0
        put_long(table.bits + 8 * p, _plane(table, q, BITS) + row * _plane(table, q, BITS_ROW) + col // 8)


@step
def _merge_run(job, table, work, run):
    done = np.int64(0)
    if job.source_kind == BF16 and job.out_kind == BF16:
        done = _add_words(table, job.out + 2 * run.place, job.source + 2 * run.place, run.n)
    while done < run.n:
        n = min(TILE, run.n - done)
        _point(table, run.row, run.col + done)
        _look_up(work[INTO], table, n)
        finish(job, work, Tile(run.row, run.col + done, n, run.place + done))
        done += n


@kernel
def merge_tiles_by_table(job, operands, scratch, work, start, stop):
    """As `cpu_loops.merge_tiles`, for sign operands alone; `scratch` is uint8[SCRATCH], and `work` as there."""
    number, table = start, _new_table(operands, scratch)
    while number < stop:
        part = part_of(job.cols, number, stop)
        col, number = part.col, part.next
        while col < part.end:
            run = _prepare(job, table, part, col)
            _merge_run(job, table, work, run)
            col += run.n


@kernel
def add_tiles_by_table(job, operands, scratch, start, stop):
    """As `merge_tiles_by_table`, where source and output are BF16 and the processor has byte shuffles."""
    number, table = start, _new_table(operands, scratch)
    while number < stop:
        part = part_of(job.cols, number, stop)
        col, number = part.col, part.next
        while col < part.end:
            run = _prepare(job, table, part, col)
            _add_run(table, job.out + 2 * run.place, job.source + 2 * run.place, run.n)
            col += run.n
