# ruff: noqa: ANN401 - numba and LLVM objects are untyped
# mypy: allow-untyped-calls, allow-untyped-decorators
"""Steps on 32 elements at a time, as LLVM vector instructions, for the loops of `cpu_loops`.

From a loop over the bits of a word LLVM makes anything from 2 to 100 instructions, depending on its version; so these
steps are spelt out as operations on 32 lanes, which it splits to the width of the processor's vectors. None of them
carries a fast-math flag, so none is fused or reordered (obm-1 clause 1.2). They check nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # it carries no types
from numba import types
from numba.core import cgutils

from obm_format.kernels.cpu_names import WORD
from obm_format.kernels.cpu_processor import HAS_MASKS
from obm_format.kernels.cpu_rules import (
    Rule,
    rule_of_mean,
    rule_of_sum,
    rule_of_ties,
    rule_of_ties_of_two,
)
from obm_format.kernels.cpu_vectors import (
    I1,
    I8,
    I16,
    I32,
    I64,
    REAL,
    broadcast,
    constant,
    intrinsic,
    pointer_at,
    shuffled,
    store,
)
from obm_format.kernels.reference import SUM_LANES

_REALS = ir.VectorType(REAL, WORD)
_SUMS = ir.VectorType(ir.DoubleType(), SUM_LANES)

# --- bits and addresses -------------------------------------------------------------------------------------


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """The bits of a float32 as uint32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), build


@intrinsic
def float_of(typing: Any, bits: Any) -> Any:
    """The float32 of uint32 bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], REAL)

    return types.float32(types.uint32), build


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer, for `carray`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


def _reader(kind: Any, numba_type: Any) -> Any:
    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

        return numba_type(types.int64), build

    return read


# What is at an address, of any alignment. In a word of sign bits the first element's bit is the lowest.
byte_at, word_at, float_at = _reader(I8, types.uint8), _reader(I32, types.uint32), _reader(REAL, types.float32)
long_at = _reader(I64, types.int64)


def _writer(numba_type: Any) -> Any:
    @intrinsic
    def write(typing: Any, address: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            store(builder, args[1], args[0])
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), build

    return write


put_long, put_float = _writer(types.int64), _writer(types.float32)


@intrinsic
def copy(typing: Any, to: Any, source: Any, nbytes: Any) -> Any:
    """Copy bytes between addresses that are not near each other."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source, nbytes = args
        cgutils.raw_memcpy(builder, pointer_at(builder, to, I8), pointer_at(builder, source, I8), nbytes, 1)
        return context.get_dummy_value()

    address = types.int64
    return types.void(address, address, types.int64), build


# --- choices by sign bits -----------------------------------------------------------------------------------


def _lanes(builder: Any, value: Any) -> Any:
    """A scalar in all lanes."""
    return broadcast(builder, value, WORD)


def _all(kind: Any, number: float) -> Any:
    return constant(kind, number, WORD)


def _lanes_at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _REALS.as_pointer())


def _is_set(builder: Any, word: Any) -> Any:
    """Per lane, its bit of a word. Without mask registers each bit is moved to the sign of its lane, where choices look
    for it: from a plain bitcast LLVM then makes many times the instructions.
    """  # noqa: D205
    if HAS_MASKS:
        return builder.bitcast(word, ir.VectorType(I1, WORD))
    places = ir.Constant(ir.VectorType(I32, WORD), [WORD - 1 - lane for lane in range(WORD)])
    return builder.icmp_signed("<", builder.shl(_lanes(builder, word), places), _all(I32, 0))


def _chosen(builder: Any, table: Any, words: Any) -> Any:
    """Per lane, the entry of `table` for the lane's bits of the words, the first word's bit lowest."""
    entries = [_lanes(builder, entry) for entry in cgutils.unpack_tuple(builder, table)]
    for word in cgutils.unpack_tuple(builder, words):
        is_set = _is_set(builder, word)
        pairs = zip(entries[0::2], entries[1::2], strict=True)
        entries = [builder.select(is_set, odd, even) for even, odd in pairs]
    return entries[0]


def _patterns(builder: Any, words: Any) -> Any:
    """Per lane a byte: bit p is the lane's bit of word p, of at most 8."""
    octets, ones = ir.VectorType(I8, WORD), [1 << lane % 8 for lane in range(WORD)]
    patterns = _all(I8, 0)
    for place, word in enumerate(cgutils.unpack_tuple(builder, words)):
        if HAS_MASKS:
            is_set = builder.bitcast(word, ir.VectorType(I1, WORD))
        else:
            few = builder.bitcast(word, ir.VectorType(I8, 4))
            spread = ir.Constant(ir.VectorType(I32, WORD), [lane // 8 for lane in range(WORD)])
            each = builder.shuffle_vector(few, ir.Constant(few.type, ir.Undefined), spread)
            is_set = builder.icmp_unsigned("!=", builder.and_(each, ir.Constant(octets, ones)), _all(I8, 0))
        patterns = builder.or_(patterns, builder.select(is_set, _all(I8, 1 << place), _all(I8, 0)))
    return patterns


def _looked_up(builder: Any, table: Any, patterns: Any) -> Any:
    """Per lane, the float at its pattern in the table at an address; one load each, which is faster than a gather."""
    values = ir.Constant(_REALS, ir.Undefined)
    place = builder.inttoptr(table, REAL.as_pointer())
    longs = builder.bitcast(patterns, ir.VectorType(I64, WORD // 8))
    for lane in range(WORD):
        long = builder.extract_element(longs, I32(lane // 8))
        pattern = builder.and_(builder.lshr(long, I64(lane % 8 * 8)), I64(0xFF))
        values = builder.insert_element(values, builder.load(builder.gep(place, [pattern])), I32(lane))
    return values


def _entry(builder: Any, table: Any, words: Any) -> Any:
    """Per lane, the entry of a table of floats, or of the table at an address, for the lane's bits of the words."""
    if table.type == I64:
        return _looked_up(builder, table, _patterns(builder, words))
    return _chosen(builder, table, words)


def _table_of(planes: int) -> Any:
    return types.UniTuple(types.float32, 1 << planes) if planes <= 4 else types.int64


def _chooser(planes: int, adds: bool) -> Any:
    @intrinsic
    def choose(typing: Any, to: Any, table: Any, words: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            result, place = _entry(builder, args[1], args[2]), _lanes_at(builder, args[0])
            if adds:
                result = builder.fadd(builder.load(place, align=4), result)
            builder.store(result, place, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, _table_of(planes), types.UniTuple(types.uint32, planes)), build

    return choose


# put_choiceB(to, table, B words): store the chosen entries at the address `to`; add_choice1 adds them there. The table
# is 2^B floats, or their address for B = 8
put_choice1, put_choice2, put_choice3, put_choice4, put_choice8 = (_chooser(p, False) for p in (1, 2, 3, 4, 8))
add_choice1 = _chooser(1, True)

# --- T of the others ----------------------------------------------------------------------------------------


def _combiner(rule: Rule) -> Any:
    @intrinsic
    def combine(typing: Any, to: Any, rows: Any, stride: Any, count: Any, weights: Any, lam: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, rows, stride, count, weights, lam = args

            def values(k: Any) -> Any:
                weight_place = builder.add(weights, builder.mul(k, I64(4)))
                weight = builder.load(builder.inttoptr(weight_place, REAL.as_pointer()))
                value = builder.load(_lanes_at(builder, builder.add(rows, builder.mul(k, stride))), align=4)
                return builder.fmul(value, _lanes(builder, weight))  # exact where the weight is 1

            result = builder.fmul(rule(builder, values, count), _lanes(builder, lam))
            builder.store(result, _lanes_at(builder, to), align=4)
            return context.get_dummy_value()

        address = types.int64
        return types.void(address, address, address, address, address, types.float32), build

    return combine


# put_X(to, rows, stride, count, weights, lam): store lam * T at the address `to`; T is of `count` vectors, the first at
# the address `rows`, each `stride` bytes after the one before, times the `count` floats at the address `weights`
put_sum, put_mean, put_ties = map(_combiner, (rule_of_sum, rule_of_mean, rule_of_ties))
put_ties_of_two = _combiner(rule_of_ties_of_two)

# --- shifts of a table added in BF16 ----------------------------------------------------------------------------------


def _brains_at(builder: Any, address: Any) -> Any:
    """32 BF16 elements as floats."""
    place = builder.inttoptr(address, ir.VectorType(I16, WORD).as_pointer())
    wide = builder.zext(builder.load(place, align=1), ir.VectorType(I32, WORD))
    return builder.bitcast(builder.shl(wide, _all(I32, 16)), _REALS)


def _rounded_brains(builder: Any, values: Any) -> Any:
    """RNE to BF16, as in `cpu_loops`."""
    bits = builder.bitcast(values, ir.VectorType(I32, WORD))
    high = builder.lshr(bits, _all(I32, 16))
    half = builder.add(_all(I32, 0x7FFF), builder.and_(high, _all(I32, 1)))
    rounded = builder.lshr(builder.add(bits, half), _all(I32, 16))
    is_nan = builder.fcmp_unordered("uno", values, values)
    word = builder.select(is_nan, builder.or_(high, _all(I32, 0x40)), rounded)
    return builder.trunc(word, ir.VectorType(I16, WORD))


def _brain_adder(planes: int) -> Any:
    @intrinsic
    def add(typing: Any, out: Any, source: Any, table: Any, words: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, source, table, words = args
            shift = _entry(builder, table, words)
            result = _rounded_brains(builder, builder.fadd(_brains_at(builder, source), shift))
            builder.store(result, builder.inttoptr(out, result.type.as_pointer()), align=1)
            return context.get_dummy_value()

        words_type = types.UniTuple(types.uint32, planes)
        return types.void(types.int64, types.int64, _table_of(planes), words_type), build

    return add


# add_brainsB(out, source, table, B words): 32 BF16 elements at `out` become RNE(f32(element at `source`) + the entry
# that put_choiceB would store)
add_brains1, add_brains2, add_brains3, add_brains4, add_brains8 = map(_brain_adder, (1, 2, 3, 4, 8))

# --- sign bits and sums of a pair ---------------------------------------------------------------------------


def _reals_at(builder: Any, address: Any) -> Any:
    """32 F32 elements."""
    return builder.load(_lanes_at(builder, address), align=1)


def _halves(builder: Any, values: Any) -> list[Any]:
    """Elements 0 to 15 and 16 to 31 of 32 floats, as float64."""
    places = [list(range(start, start + SUM_LANES)) for start in (0, SUM_LANES)]
    parts = [shuffled(builder, values, values, part) for part in places]
    return [builder.fpext(part, _SUMS) for part in parts]


def _packer(read: Callable[[Any, Any], Any], nbytes: int) -> Any:
    @intrinsic
    def pack(typing: Any, bits: Any, tuned: Any, base: Any, sums: Any, words: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bits, tuned, base, sums, words = args
            places = [builder.inttoptr(builder.add(sums, I64(at)), _SUMS.as_pointer()) for at in (0, 8 * SUM_LANES)]
            s1, s2 = (cgutils.alloca_once_value(builder, builder.load(place, align=8)) for place in places)
            with cgutils.for_range(builder, words) as loop:
                at = builder.mul(loop.index, I64(WORD * nbytes))
                d = builder.fsub(read(builder, builder.add(tuned, at)), read(builder, builder.add(base, at)))
                is_set = builder.fcmp_ordered(">=", d, _all(REAL, 0.0))
                to = builder.inttoptr(builder.add(bits, builder.mul(loop.index, I64(4))), I32.as_pointer())
                builder.store(builder.bitcast(is_set, I32), to, align=1)
                magnitude = builder.and_(builder.bitcast(d, ir.VectorType(I32, WORD)), _all(I32, 0x7FFF_FFFF))
                for half in _halves(builder, builder.bitcast(magnitude, _REALS)):
                    builder.store(builder.fadd(builder.load(s1), half), s1)
                    builder.store(builder.fadd(builder.load(s2), builder.fmul(half, half)), s2)
            for place, total in zip(places, (s1, s2), strict=True):
                builder.store(builder.load(total), place, align=8)
            return context.get_dummy_value()

        address = types.int64
        return types.void(address, address, address, address, address), build

    return pack


# pack_X(bits, tuned, base, sums, words): of `words` times 32 elements at the addresses `tuned` and `base`, d = tuned -
# base; store the bits of d >= 0 at `bits`, and add |d| and d*d lane by lane to the 2 * 16 float64 at `sums`
pack_brains, pack_reals = _packer(_brains_at, 2), _packer(_reals_at, 4)
