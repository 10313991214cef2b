# ruff: noqa: ANN001, ANN201, ANN202, D403, N803, PLR0913, RET505, RUF005, SIM108 - Triton is not quite Python
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The Triton kernels over one matrix: merge (fused, or by a table of shifts), decode, subtract, count what is absorbed.

A program takes a tile of ROWS rows and BYTES * 8 columns, in the shape [ROWS, BYTES, 8], so that a byte of sign bits is
loaded once for its eight elements. What kind an operand is, a kernel knows when it is compiled: KINDS and, beside it,
DETAILS (the planes of a sign operand, the element kind of another), BY_ROW and GROUPS (whether its alphas differ among
rows, and columns per alpha; 0 for all). Launch without floating-point fusion. Source: `contract.Kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from obm_format.device.triton_elements import EXACT, SIGN, VALUE, choose, combined, narrow, widen


@triton.jit
def _tile(rows, cols, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """(row, byte in the row, flat place, mask of rows and bytes, mask of elements) of this program's tile."""
    across = tl.cdiv(cols, BYTES * 8)
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    byte = (program % across) * BYTES + tl.arange(0, BYTES)[None, :, None]
    col = byte * 8 + tl.arange(0, 8)[None, None, :]
    return row, byte, row * cols + col, (row < rows) & (byte * 8 < cols), (row < rows) & (col < cols)


@triton.jit
def _group(byte, cols, GROUP: tl.constexpr):
    """(groups of a row, group of a byte of sign bits)."""
    if GROUP == 0:
        return 1, byte * 0
    else:
        return tl.cdiv(cols, GROUP), byte * 8 // GROUP


@triton.jit
def _alpha(alphas, plane, row, byte, rows, cols, mask, BY_ROW: tl.constexpr, GROUP: tl.constexpr):
    """The alphas, of float32[planes, rows or 1, groups], of some rows and bytes."""
    groups, group = _group(byte, cols, GROUP)
    if BY_ROW:
        place = (row + plane * rows) * groups + group
    else:
        place = row * 0 + plane * groups + group
    return tl.load(alphas + place, mask, other=0.0)


@triton.jit
def _bit(bits, plane, row, byte, rows, cols, mask):
    """The sign bits, of uint8[planes, rows, bytes], of a tile, as 0 or 1."""
    packed = tl.load(bits + (row + plane * rows) * tl.cdiv(cols, 8) + byte, mask, other=0).to(tl.int32)
    return (packed >> tl.arange(0, 8)[None, None, :]) & 1


@triton.jit
def _signs(bits, alphas, row, byte, rows, cols, mask, PLANES: tl.constexpr, BY_ROW: tl.constexpr, GROUP: tl.constexpr):
    """The float32 sum over the planes, in order (obm-1 clause 6.6)."""
    alpha = _alpha(alphas, 0, row, byte, rows, cols, mask, BY_ROW, GROUP)
    total = choose(_bit(bits, 0, row, byte, rows, cols, mask) != 0, alpha)
    for plane in tl.static_range(1, PLANES):
        alpha = _alpha(alphas, plane, row, byte, rows, cols, mask, BY_ROW, GROUP)
        total = total + choose(_bit(bits, plane, row, byte, rows, cols, mask) != 0, alpha)
    return total


@triton.jit
def _value(
    data, alphas, before, tile, rows, cols,
    KIND: tl.constexpr, DETAIL: tl.constexpr, BY_ROW: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """d of an operand in a tile (obm-1 clause 9.2), where `before` is the float32 of the backbone."""
    row, byte, place, some, mask = tile
    if KIND == SIGN:
        return _signs(data, alphas, row, byte, rows, cols, some, DETAIL, BY_ROW, GROUP)
    elif KIND == VALUE:
        return widen(tl.load(data + place, mask, other=0), DETAIL)
    elif KIND == EXACT:
        return widen(tl.load(data + place, mask, other=0), DETAIL) - before
    else:
        return tl.zeros(before.shape, tl.float32)


@triton.jit
def merge_tiles(
    base, source, out, data, alphas, scales, rows, cols,
    BASE: tl.constexpr, SOURCE: tl.constexpr, OUT: tl.constexpr,
    KINDS: tl.constexpr, DETAILS: tl.constexpr, BY_ROW: tl.constexpr, GROUPS: tl.constexpr,
    OTHERS: tl.constexpr, COMBINE: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write RNE(f32(source) + shift).

    The shift is lam*T of the first OTHERS operands; where one operand more comes after them, its d plus that.
    """
    tile = _tile(rows, cols, ROWS, BYTES)
    place, mask = tile[2], tile[4]
    before = widen(tl.load(base + place, mask, other=0), BASE)
    values = ()
    for k in tl.static_range(len(KINDS)):
        value = _value(data[k], alphas[k], before, tile, rows, cols, KINDS[k], DETAILS[k], BY_ROW[k], GROUPS[k])
        values = values + (value,)
    result = widen(tl.load(source + place, mask, other=0), SOURCE)
    if OTHERS > 0:
        shift = combined(values, scales, COMBINE, OTHERS)
        if len(KINDS) > OTHERS:
            shift = values[OTHERS] + shift
        result = result + shift
    elif len(KINDS) > 0:
        result = result + values[0]
    tl.store(out + place, narrow(result, OUT), mask)


@triton.jit
def _pattern_value(
    pattern, alphas, row, byte, rows, cols, mask, PLANES: tl.constexpr, BY_ROW: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """As `_signs`, for the lowest bits of a pattern, one per plane."""
    total = choose((pattern & 1) != 0, _alpha(alphas, 0, row, byte, rows, cols, mask, BY_ROW, GROUP))
    for plane in tl.static_range(1, PLANES):
        alpha = _alpha(alphas, plane, row, byte, rows, cols, mask, BY_ROW, GROUP)
        total = total + choose(((pattern >> plane) & 1) != 0, alpha)
    return total


@triton.jit
def _pattern(bits, row, byte, rows, cols, mask, PLANES: tl.constexpr):
    """The sign bits of all planes of an operand in a tile: bit p is that of plane p."""
    pattern = _bit(bits, 0, row, byte, rows, cols, mask)
    for plane in tl.static_range(1, PLANES):
        pattern = pattern | (_bit(bits, plane, row, byte, rows, cols, mask) << plane)
    return pattern


@triton.jit
def make_tables(
    tables, alphas, scales, count, rows, cols,
    PLANES: tl.constexpr, BY_ROW: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    OTHERS: tl.constexpr, COMBINE: tl.constexpr, TABLES: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Write float32[count, ENTRIES]: the shift for every pattern of sign bits, one table per row and group.

    Bit p of a pattern is that of plane p, counted through all operands. `scales` and the operands as in `merge_tiles`,
    all of them sign operands.
    """
    table = (tl.program_id(0) * TABLES + tl.arange(0, TABLES)[:, None]).to(tl.int64)
    pattern = tl.arange(0, ENTRIES)[None, :]
    mask = table < count
    groups = 1
    if GROUP > 0:
        groups = tl.cdiv(cols, GROUP)
    row, byte = table // groups, table % groups * (GROUP // 8)
    values = ()
    for k in tl.static_range(len(PLANES)):
        value = _pattern_value(
            pattern, alphas[k], row, byte, rows, cols, mask, PLANES[k], BY_ROW[k], GROUPS[k]
        )  # fmt: skip
        values = values + (value,)
        pattern = pattern >> PLANES[k]
    if OTHERS > 0:
        shift = combined(values, scales, COMBINE, OTHERS)
        if len(PLANES) > OTHERS:
            shift = values[OTHERS] + shift
    else:
        shift = values[0]
    tl.store(tables + table * ENTRIES + tl.arange(0, ENTRIES)[None, :], shift, mask)


@triton.jit
def merge_tiles_by_table(
    source, out, tables, bits, rows, cols,
    SOURCE: tl.constexpr, OUT: tl.constexpr, PLANES: tl.constexpr, BY_ROW: tl.constexpr, GROUP: tl.constexpr,
    ENTRIES: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """As `merge_tiles`, with the shift looked up in what `make_tables` wrote."""
    row, byte, place, some, mask = _tile(rows, cols, ROWS, BYTES)
    pattern = tl.zeros([ROWS, BYTES, 8], tl.int32)
    first = 0
    for k in tl.static_range(len(PLANES)):
        pattern = pattern | (_pattern(bits[k], row, byte, rows, cols, some, PLANES[k]) << first)
        first = first + PLANES[k]
    groups, table = _group(byte, cols, GROUP)
    if BY_ROW:
        table = row * groups + table
    shift = tl.load(tables + table * ENTRIES + pattern, mask, other=0.0)
    result = widen(tl.load(source + place, mask, other=0), SOURCE) + shift
    tl.store(out + place, narrow(result, OUT), mask)


@triton.jit
def value_tiles(
    base, out, data, alphas, rows, cols,
    BASE: tl.constexpr, KIND: tl.constexpr, DETAIL: tl.constexpr, BY_ROW: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write d of one operand as float32."""
    tile = _tile(rows, cols, ROWS, BYTES)
    before = widen(tl.load(base + tile[2], tile[4], other=0), BASE)
    d = _value(data, alphas, before, tile, rows, cols, KIND, DETAIL, BY_ROW, GROUP)
    tl.store(out + tile[2], d, tile[4])


@triton.jit
def absorbed_tiles(
    base, counts, data, alphas, rows, cols,
    BASE: tl.constexpr, OUT: tl.constexpr, KIND: tl.constexpr, DETAIL: tl.constexpr, BY_ROW: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write int32[programs, 2]: elements of a tile whose d rounding swallows, and elements with d != 0."""
    tile = _tile(rows, cols, ROWS, BYTES)
    before = widen(tl.load(base + tile[2], tile[4], other=0), BASE)
    d = _value(data, alphas, before, tile, rows, cols, KIND, DETAIL, BY_ROW, GROUP)
    counted = (d != 0) & tile[4]
    swallowed = counted & (narrow(before + d, OUT) == narrow(before, OUT))
    at = counts + 2 * tl.program_id(0)
    tl.store(at, tl.sum(swallowed.to(tl.int32)))
    tl.store(at + 1, tl.sum(counted.to(tl.int32)))
