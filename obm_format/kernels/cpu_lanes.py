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

import numba.extending
from llvmlite import binding, ir  # type: ignore[import-untyped] # it carries no types
from numba import types
from numba.core import cgutils

from obm_format.kernels.cpu_names import WORD
from obm_format.kernels.reference import SUM_LANES

_HAS_MASKS = binding.get_host_cpu_features().get("avx512bw", False)  # registers that hold one bit per lane

_intrinsic: Any = numba.extending.intrinsic  # what it returns takes other arguments than what it is given
_I1, _I8, _I16, _I32, _I64, _REAL = (*map(ir.IntType, (1, 8, 16, 32, 64)), ir.FloatType())
_REALS = ir.VectorType(_REAL, WORD)
_SUMS, _LANE_PLACES = ir.VectorType(ir.DoubleType(), SUM_LANES), ir.VectorType(_I32, SUM_LANES)

# --- bits and addresses -------------------------------------------------------------------------------------


@_intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """The bits of a float32 as uint32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), build


@_intrinsic
def float_of(typing: Any, bits: Any) -> Any:
    """The float32 of uint32 bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _REAL)

    return types.float32(types.uint32), build


@_intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer, for `carray`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


def _reader(kind: Any, numba_type: Any) -> Any:
    @_intrinsic
    def read(typing: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

        return numba_type(types.int64), build

    return read


# What is at an address, of any alignment. In a word of sign bits the first element's bit is the lowest.
byte_at, word_at, float_at = _reader(_I8, types.uint8), _reader(_I32, types.uint32), _reader(_REAL, types.float32)

# --- choices by sign bits -----------------------------------------------------------------------------------


def _lanes(builder: Any, value: Any) -> Any:
    """A scalar in all lanes."""
    vector = ir.VectorType(value.type, WORD)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(
        single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, WORD), [0] * WORD)
    )


def _all(kind: Any, number: float) -> Any:
    return ir.Constant(ir.VectorType(kind, WORD), [number] * WORD)


def _lanes_at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _REALS.as_pointer())


def _is_set(builder: Any, word: Any) -> Any:
    """Per lane, its bit of a word. Without mask registers each bit is moved to the sign of its lane, where choices look
    for it: from a plain bitcast LLVM then makes many times the instructions.
    """  # noqa: D205
    if _HAS_MASKS:
        return builder.bitcast(word, ir.VectorType(_I1, WORD))
    places = ir.Constant(ir.VectorType(_I32, WORD), [WORD - 1 - lane for lane in range(WORD)])
    return builder.icmp_signed("<", builder.shl(_lanes(builder, word), places), _all(_I32, 0))


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
    octets, ones = ir.VectorType(_I8, WORD), [1 << lane % 8 for lane in range(WORD)]
    patterns = _all(_I8, 0)
    for place, word in enumerate(cgutils.unpack_tuple(builder, words)):
        if _HAS_MASKS:
            is_set = builder.bitcast(word, ir.VectorType(_I1, WORD))
        else:
            few = builder.bitcast(word, ir.VectorType(_I8, 4))
            spread = ir.Constant(ir.VectorType(_I32, WORD), [lane // 8 for lane in range(WORD)])
            each = builder.shuffle_vector(few, ir.Constant(few.type, ir.Undefined), spread)
            is_set = builder.icmp_unsigned("!=", builder.and_(each, ir.Constant(octets, ones)), _all(_I8, 0))
        patterns = builder.or_(patterns, builder.select(is_set, _all(_I8, 1 << place), _all(_I8, 0)))
    return patterns


def _looked_up(builder: Any, table: Any, patterns: Any) -> Any:
    """Per lane, the float at its pattern in the table at an address; one load each, which is faster than a gather."""
    values = ir.Constant(_REALS, ir.Undefined)
    place = builder.inttoptr(table, _REAL.as_pointer())
    longs = builder.bitcast(patterns, ir.VectorType(_I64, WORD // 8))
    for lane in range(WORD):
        long = builder.extract_element(longs, _I32(lane // 8))
        pattern = builder.and_(builder.lshr(long, _I64(lane % 8 * 8)), _I64(0xFF))
        values = builder.insert_element(values, builder.load(builder.gep(place, [pattern])), _I32(lane))
    return values


def _entry(builder: Any, table: Any, words: Any) -> Any:
    """Per lane, the entry of a table of floats, or of the table at an address, for the lane's bits of the words."""
    if table.type == _I64:
        return _looked_up(builder, table, _patterns(builder, words))
    return _chosen(builder, table, words)


def _table_of(planes: int) -> Any:
    return types.UniTuple(types.float32, 1 << planes) if planes <= 4 else types.int64


def _chooser(planes: int, adds: bool) -> Any:
    @_intrinsic
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


def _sum(builder: Any, values: Callable[[Any], Any], count: Any) -> Any:
    so_far = cgutils.alloca_once_value(builder, values(_I64(0)))
    with cgutils.for_range(builder, count, start=_I64(1)) as loop:
        builder.store(builder.fadd(builder.load(so_far), values(loop.index)), so_far)
    return builder.load(so_far)


def _mean(builder: Any, values: Callable[[Any], Any], count: Any) -> Any:
    number = builder.sitofp(count, _REAL)
    return builder.fdiv(_sum(builder, values, count), _lanes(builder, number))


def _ties(builder: Any, values: Callable[[Any], Any], count: Any) -> Any:
    """The mean of the values that have the sign of their sum; 0 where there are none."""
    zero, one = _all(_REAL, 0.0), _all(_REAL, 1.0)
    is_positive = builder.fcmp_ordered(">=", _sum(builder, values, count), zero)
    agreed = cgutils.alloca_once_value(builder, zero)
    number = cgutils.alloca_once_value(builder, zero)
    with cgutils.for_range(builder, count) as loop:
        value = values(loop.index)
        above, below = builder.fcmp_ordered(">", value, zero), builder.fcmp_ordered("<", value, zero)
        agrees = builder.select(is_positive, above, below)
        sum_so_far, number_so_far = builder.load(agreed), builder.load(number)
        builder.store(builder.select(agrees, builder.fadd(sum_so_far, value), sum_so_far), agreed)
        builder.store(builder.select(agrees, builder.fadd(number_so_far, one), number_so_far), number)
    found = builder.load(number)
    divisor = builder.select(builder.fcmp_ordered(">", found, zero), found, one)
    return builder.fdiv(builder.load(agreed), divisor)


def _ties_of_two(builder: Any, values: Callable[[Any], Any], count: Any) -> Any:
    return _elected_of_two(builder, values(_I64(0)), values(_I64(1)))


def _elected_of_two(builder: Any, x: Any, y: Any) -> Any:
    """`_ties` by cases: two agree, and half their sum is the mean; or the elected one stands alone.

    Half of a float is its quotient by 2, bit for bit; the sum with 0 gives +0 where no value agrees. The order of the
    two does not matter.
    """
    zero = _all(_REAL, 0.0)
    total = builder.fadd(x, y)
    is_larger = builder.fcmp_ordered(">", x, y)
    high, low = builder.select(is_larger, x, y), builder.select(is_larger, y, x)
    elected = builder.select(builder.fcmp_ordered(">=", total, zero), high, low)
    both = builder.or_(builder.fcmp_ordered(">", low, zero), builder.fcmp_ordered("<", high, zero))
    return builder.select(both, builder.fmul(total, _all(_REAL, 0.5)), builder.fadd(elected, zero))


def _combiner(rule: Callable[[Any, Callable[[Any], Any], Any], Any]) -> Any:
    @_intrinsic
    def combine(typing: Any, to: Any, rows: Any, stride: Any, count: Any, weights: Any, lam: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, rows, stride, count, weights, lam = args

            def values(k: Any) -> Any:
                weight_place = builder.add(weights, builder.mul(k, _I64(4)))
                weight = builder.load(builder.inttoptr(weight_place, _REAL.as_pointer()))
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
put_sum, put_mean, put_ties = _combiner(_sum), _combiner(_mean), _combiner(_ties)
put_ties_of_two = _combiner(_ties_of_two)

# --- a whole merge in BF16 ----------------------------------------------------------------------------------


def _brains_at(builder: Any, address: Any) -> Any:
    """32 BF16 elements as floats."""
    place = builder.inttoptr(address, ir.VectorType(_I16, WORD).as_pointer())
    wide = builder.zext(builder.load(place, align=1), ir.VectorType(_I32, WORD))
    return builder.bitcast(builder.shl(wide, _all(_I32, 16)), _REALS)


def _rounded_brains(builder: Any, values: Any) -> Any:
    """RNE to BF16, as in `cpu_loops`."""
    bits = builder.bitcast(values, ir.VectorType(_I32, WORD))
    high = builder.lshr(bits, _all(_I32, 16))
    half = builder.add(_all(_I32, 0x7FFF), builder.and_(high, _all(_I32, 1)))
    rounded = builder.lshr(builder.add(bits, half), _all(_I32, 16))
    is_nan = builder.fcmp_unordered("uno", values, values)
    word = builder.select(is_nan, builder.or_(high, _all(_I32, 0x40)), rounded)
    return builder.trunc(word, ir.VectorType(_I16, WORD))


def _brain_adder(planes: int) -> Any:
    @_intrinsic
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


@_intrinsic
def put_mixed(typing: Any, places: Any, choices: Any, words: Any, weight: Any, lam: Any) -> Any:
    """Merge 32 BF16 elements under TIES of one exact and one sign expert, with or without a routed sign expert.

    `places` are the addresses of output, source, backbone and the exact expert's words; `choices` the sign expert's
    values for a clear and a set bit, times its weight, then the routed expert's; `words` their sign bits; `weight` that
    of the exact expert.
    """
    experts = len(words)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, source, base, exact = cgutils.unpack_tuple(builder, args[0])
        values = cgutils.unpack_tuple(builder, args[1])
        is_set = [_is_set(builder, word) for word in cgutils.unpack_tuple(builder, args[2])]
        signs = [
            builder.select(bit, _lanes(builder, high), _lanes(builder, low))
            for bit, low, high in zip(is_set, values[0::2], values[1::2], strict=True)
        ]
        d = builder.fsub(_brains_at(builder, exact), _brains_at(builder, base))
        elected = _elected_of_two(builder, builder.fmul(d, _lanes(builder, args[3])), signs[0])
        shift = builder.fmul(elected, _lanes(builder, args[4]))
        if experts == 2:
            shift = builder.fadd(signs[1], shift)
        result = _rounded_brains(builder, builder.fadd(_brains_at(builder, source), shift))
        builder.store(result, builder.inttoptr(out, result.type.as_pointer()), align=1)
        return context.get_dummy_value()

    real, tuple_of = types.float32, types.UniTuple
    numbers = (tuple_of(real, 2 * experts), tuple_of(types.uint32, experts), real, real)
    return types.void(tuple_of(types.int64, 4), *numbers), build


# --- sign bits and sums of a pair ---------------------------------------------------------------------------


def _reals_at(builder: Any, address: Any) -> Any:
    """32 F32 elements."""
    return builder.load(_lanes_at(builder, address), align=1)


def _halves(builder: Any, values: Any) -> list[Any]:
    """Elements 0 to 15 and 16 to 31 of 32 floats, as float64."""
    masks = [ir.Constant(_LANE_PLACES, list(range(start, start + SUM_LANES))) for start in (0, SUM_LANES)]
    parts = [builder.shuffle_vector(values, ir.Constant(_REALS, ir.Undefined), mask) for mask in masks]
    return [builder.fpext(part, _SUMS) for part in parts]


def _packer(read: Callable[[Any, Any], Any], nbytes: int) -> Any:
    @_intrinsic
    def pack(typing: Any, bits: Any, tuned: Any, base: Any, sums: Any, words: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bits, tuned, base, sums, words = args
            places = [builder.inttoptr(builder.add(sums, _I64(at)), _SUMS.as_pointer()) for at in (0, 8 * SUM_LANES)]
            s1, s2 = (cgutils.alloca_once_value(builder, builder.load(place, align=8)) for place in places)
            with cgutils.for_range(builder, words) as loop:
                at = builder.mul(loop.index, _I64(WORD * nbytes))
                d = builder.fsub(read(builder, builder.add(tuned, at)), read(builder, builder.add(base, at)))
                is_set = builder.fcmp_ordered(">=", d, _all(_REAL, 0.0))
                to = builder.inttoptr(builder.add(bits, builder.mul(loop.index, _I64(4))), _I32.as_pointer())
                builder.store(builder.bitcast(is_set, _I32), to, align=1)
                magnitude = builder.and_(builder.bitcast(d, ir.VectorType(_I32, WORD)), _all(_I32, 0x7FFF_FFFF))
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
