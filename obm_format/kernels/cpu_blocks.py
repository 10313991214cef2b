# ruff: noqa: ANN401 - numba and LLVM objects are untyped
# mypy: allow-untyped-calls, allow-untyped-decorators
"""Blocks of 256 BF16 elements plus what a table has for their sign bits, by byte shuffles, for `cpu_tables`.

A shuffle looks up 32 bytes at once, each in a table of 16. Four of them, one for each byte of a float, look up 32
floats for up to 4 sign bits. The bits of 4 planes are brought together in the same way, so that no element's bit is
ever touched alone (ADR 0041). Needs AVX2 (`cpu_processor.HAS_SHUFFLES`); `cpu_lanes` has steps for any processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # it carries no types
from numba import types
from numba.core import cgutils

from obm_format.kernels.cpu_brains import brains_at, store_brains
from obm_format.kernels.cpu_names import BLOCK, FEW, MANY
from obm_format.kernels.cpu_vectors import (
    I8,
    I16,
    I32,
    I64,
    REAL,
    constant,
    intrinsic,
    like,
    load,
    shuffled,
    store,
)

_LANE, _REGISTER = 16, 32  # bytes that a shuffle looks at together, and in a register
_OCTETS, _SHORTS = ir.VectorType(I8, _REGISTER), ir.VectorType(I16, _REGISTER // 2)
_REALS = ir.VectorType(REAL, _REGISTER // 4)
_STEP = _REGISTER // 2  # BF16 elements in a register

# --- registers of bytes -------------------------------------------------------------------------------------


def _chosen(builder: Any, table: Any, places: Any) -> Any:
    """Each byte becomes the one at that place, of 16, in its lane of the table."""
    kind = ir.FunctionType(_OCTETS, [_OCTETS, _OCTETS])
    shuffle = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
    return builder.call(shuffle, [table, places])


def _shifted(builder: Any, value: Any, shift: int) -> Any:
    """Pairs of bytes shifted to the right, or to the left if `shift` is negative."""
    shorts, distance = builder.bitcast(value, _SHORTS), constant(I16, abs(shift), _SHORTS.count)
    moved = builder.lshr(shorts, distance) if shift > 0 else builder.shl(shorts, distance)
    return builder.bitcast(moved, _OCTETS)


def _masked(builder: Any, value: Any, mask: int) -> Any:
    return builder.and_(value, like(value, mask))


def _halves(builder: Any, value: Any) -> tuple[Any, Any]:
    """The lower 4 bits of each byte, and the upper ones."""
    return _masked(builder, value, 0x0F), _masked(builder, _shifted(builder, value, 4), 0x0F)


def _interleaved(builder: Any, a: Any, b: Any, size: int) -> list[Any]:
    """Runs of `size` bytes of two registers in turn, of the lower and then of the upper half of each lane."""
    halves = []
    for half in (0, _LANE // 2):
        places = []
        for lane in range(0, _REGISTER, _LANE):
            for at in range(lane + half, lane + half + _LANE // 2, size):
                places += [*range(at, at + size), *range(_REGISTER + at, _REGISTER + at + size)]
        halves.append(shuffled(builder, a, b, places))
    return halves


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The bytes of 4 registers in turn: 4 registers, each of a quarter of every lane."""
    firsts, lasts = (_interleaved(builder, rows[at], rows[at + 1], 1) for at in (0, 2))
    return [part for a, b in zip(firsts, lasts, strict=True) for part in _interleaved(builder, a, b, 2)]


# --- patterns of sign bits ----------------------------------------------------------------------------------


def _quarters(builder: Any, places: list[Any]) -> list[Any]:
    """Sign bits of 256 elements in 4 planes at addresses: 4 registers, one for each 64 elements, 4 bits an element.

    Byte 4 m + q of lane k lower half first, the elements 2 q and 2 q + 1 after element 16 m + 8 k: the order in
    which `brains_at` has 16 m to 16 m + 15.
    """
    turned = [*range(0, _REGISTER, 2), *range(1, _REGISTER, 2)]  # even bytes to the first lane
    quarters = [constant(I8, 0, _REGISTER)] * 4
    for plane, place in enumerate(places):
        bits = load(builder, place, _OCTETS)
        # of 4 elements' bits, those of the first two and of the last two, each in one half of a byte
        pairs = [[(four >> at & 1 | (four >> at + 1 & 1) << 4) << plane for four in range(16)] for at in (0, 2)]
        found = [
            _chosen(builder, ir.Constant(_OCTETS, pair * 2), half)
            for half in _halves(builder, shuffled(builder, bits, bits, turned))
            for pair in pairs
        ]
        quarters = [builder.or_(quarter, one) for quarter, one in zip(quarters, found, strict=True)]
    return _transposed(builder, quarters)


def _patterns(builder: Any, places: list[Any], known: Any) -> list[Any]:
    """Sign bits of 256 elements in 8 planes: for each quarter, of elements at even places and then of the others.

    Bytes lie as in `_quarters`; `known` has a bit for each plane that counts.
    """
    mask = builder.shuffle_vector(
        builder.insert_element(ir.Constant(_OCTETS, ir.Undefined), known, I32(0)),
        ir.Constant(_OCTETS, ir.Undefined),
        constant(I32, 0, _REGISTER),
    )
    patterns = []
    for low, high in zip(_quarters(builder, places[:4]), _quarters(builder, places[4:]), strict=True):
        even = builder.or_(_masked(builder, low, 0x0F), _masked(builder, _shifted(builder, high, -4), 0xF0))
        odd = builder.or_(_masked(builder, _shifted(builder, low, 4), 0x0F), _masked(builder, high, 0xF0))
        patterns += [builder.and_(even, mask), builder.and_(odd, mask)]
    return patterns


# --- floats of a table --------------------------------------------------------------------------------------


def _bytes_of_table(builder: Any, table: Any) -> list[Any]:
    """The lowest bytes of 16 floats at an address, in both lanes; then the bytes above, to the highest."""
    entries = load(builder, table, ir.VectorType(I8, 4 * _LANE))
    return [shuffled(builder, entries, entries, [*range(byte, 4 * _LANE, 4)] * 2) for byte in range(4)]


def _floats(builder: Any, table: list[Any], patterns: Any) -> list[Any]:
    """32 floats as 4 registers, for the patterns in the bytes of one."""
    rows = [_chosen(builder, part, patterns) for part in table]
    return [builder.bitcast(row, _REALS) for row in _transposed(builder, rows)]


def _gathered(builder: Any, table: Any, patterns: Any, at: Any) -> Any:
    """8 floats of a table of 256 at an address: those for 4 patterns of each lane, `at` bytes after an address."""
    floats = ir.Constant(_REALS, ir.Undefined)
    place = builder.inttoptr(table, REAL.as_pointer())
    for i in range(8):
        pattern = load(builder, builder.add(patterns, at), I8, _LANE * (i // 4) + i % 4)
        value = builder.load(builder.gep(place, [builder.zext(pattern, I64)]))
        floats = builder.insert_element(floats, value, I32(i))
    return floats


# --- merge --------------------------------------------------------------------------------------------------


def _add(builder: Any, out: Any, source: Any, evens: Any, odds: Any) -> None:
    """16 elements at `out` become those at `source` plus shifts."""
    even, odd = brains_at(builder, source, _REALS.count)
    store_brains(builder, builder.fadd(even, evens), builder.fadd(odd, odds), out)


@intrinsic
def add_few(typing: Any, out: Any, source: Any, table: Any, planes: Any, blocks: Any) -> Any:
    """256 BF16 elements at `out` become RNE(f32(element at `source`) + its entry of a table), and so on for each block.

    The table is 16 floats at an address, for the bits of 4 planes at addresses, that of the first plane lowest.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, source, table, planes, blocks = args
        parts, planes = _bytes_of_table(builder, table), cgutils.unpack_tuple(builder, planes)
        with cgutils.for_range(builder, blocks) as loop:
            bits = builder.mul(loop.index, I64(BLOCK // 8))
            quarters = _quarters(builder, [builder.add(place, bits) for place in planes])
            for number, quarter in enumerate(quarters):
                evens, odds = (_floats(builder, parts, half) for half in _halves(builder, quarter))
                for m in range(4):
                    at = builder.add(builder.mul(loop.index, I64(2 * BLOCK)), I64(_REGISTER * (4 * number + m)))
                    _add(builder, builder.add(out, at), builder.add(source, at), evens[m], odds[m])
        return context.get_dummy_value()

    address = types.int64
    return types.void(address, address, address, types.UniTuple(address, FEW), types.int64), build


@intrinsic
def add_many(typing: Any, out: Any, source: Any, table: Any, planes: Any, known: Any, blocks: Any) -> Any:
    """As `add_few`, for 8 planes, of which those count that have a bit in `known`: the table has no more entries."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, source, table, planes, known, blocks = args
        planes = cgutils.unpack_tuple(builder, planes)
        scratch = cgutils.alloca_once(builder, _OCTETS, size=8)
        patterns_at = builder.ptrtoint(scratch, I64)
        with cgutils.for_range(builder, blocks) as loop:
            bits = builder.mul(loop.index, I64(BLOCK // 8))
            places = [builder.add(place, bits) for place in planes]
            for number, patterns in enumerate(_patterns(builder, places, known)):
                store(builder, patterns, patterns_at, _REGISTER * number)
            with cgutils.for_range(builder, I64(BLOCK // _STEP)) as inner:
                step = inner.index
                # quarter step / 4 has its two registers there, and step % 4 its four bytes in each lane
                at = builder.add(
                    builder.mul(builder.lshr(step, I64(2)), I64(2 * _REGISTER)),
                    builder.mul(builder.and_(step, I64(3)), I64(4)),
                )
                evens = _gathered(builder, table, patterns_at, at)
                odds = _gathered(builder, table, patterns_at, builder.add(at, I64(_REGISTER)))
                offset = builder.add(builder.mul(loop.index, I64(2 * BLOCK)), builder.mul(step, I64(_REGISTER)))
                _add(builder, builder.add(out, offset), builder.add(source, offset), evens, odds)
        return context.get_dummy_value()

    address = types.int64
    kinds = types.UniTuple(address, MANY), types.uint8, types.int64
    return types.void(address, address, address, *kinds), build
