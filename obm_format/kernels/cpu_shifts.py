# ruff: noqa: ANN401 - numba and LLVM objects are untyped
# mypy: allow-untyped-calls, allow-untyped-decorators
"""The shifts of all patterns of sign bits, as LLVM vector instructions on 8 patterns at a time, for `cpu_tables`.

A pattern of more bits has the sums of the pattern of its lower bits, plus one value more. So the sums for all patterns
grow from operand to operand, each in the same order and with the same roundings as for an element (obm-1 clause 9.3),
and never are more computed than there are patterns. Which sign TIES elects is known only in the end: the values above
and below 0 are summed apart until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # it carries no types
from numba import types
from numba.core import cgutils

from obm_format.kernels.cpu_names import PATTERNS, SUM_ROW
from obm_format.kernels.cpu_vectors import I64, REAL, broadcast, constant, intrinsic, like, load, store

_REALS = ir.VectorType(REAL, PATTERNS)
_START = -0.0, 0.0, 0.0, 0.0, 0.0  # -0 is what changes no sum, not even that of -0


@intrinsic
def begin(typing: Any, to: Any) -> Any:
    """Store the sums of no value, of the one pattern without bits, at the address `to`: float32[SUM_ROWS, SUM_ROW]."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for row, number in enumerate(_START):
            store(builder, constant(REAL, number, PATTERNS), args[0], 4 * SUM_ROW * row)
        return context.get_dummy_value()

    return types.void(types.int64), build


def _for_registers(builder: Any, count: Any, step: Callable[[Any], None]) -> None:
    with cgutils.for_range(builder, count) as loop:
        step(builder.mul(loop.index, I64(4 * PATTERNS)))


@intrinsic
def grow(typing: Any, to: Any, source: Any, value: Any, registers: Any) -> Any:
    """Store the sums at the address `source`, of `registers` times 8 patterns, with one value more at `to`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source, value, registers = args
        values, zero = broadcast(builder, value, PATTERNS), constant(REAL, 0.0, PATTERNS)
        is_above, is_below = (builder.fcmp_ordered(sign, values, zero) for sign in (">", "<"))
        more = [values]
        more += [builder.select(wanted, values, zero) for wanted in (is_above, is_below)]
        more += [builder.select(wanted, like(zero, 1.0), zero) for wanted in (is_above, is_below)]

        def step(at: Any) -> None:
            for row, summand in enumerate(more):
                sums = load(builder, builder.add(source, at), _REALS, 4 * SUM_ROW * row)
                store(builder, builder.fadd(sums, summand), builder.add(to, at), 4 * SUM_ROW * row)

        _for_registers(builder, registers, step)
        return context.get_dummy_value()

    address = types.int64
    return types.void(address, address, types.float32, types.int64), build


@intrinsic
def add_to_all(typing: Any, to: Any, source: Any, value: Any, registers: Any) -> Any:
    """Store value + float for `registers` times 8 floats at the address `source` at the address `to`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source, value, registers = args
        values = broadcast(builder, value, PATTERNS)

        def step(at: Any) -> None:
            floats = load(builder, builder.add(source, at), _REALS)
            store(builder, builder.fadd(values, floats), builder.add(to, at))

        _for_registers(builder, registers, step)
        return context.get_dummy_value()

    address = types.int64
    return types.void(address, address, types.float32, types.int64), build


Combiner = Callable[[Any, Callable[[int], Any], Any], Any]


def _total(builder: Any, row: Callable[[int], Any], count: Any) -> Any:
    return row(0)


def _mean(builder: Any, row: Callable[[int], Any], count: Any) -> Any:
    return builder.fdiv(row(0), broadcast(builder, builder.sitofp(count, REAL), PATTERNS))


def _elected(builder: Any, row: Callable[[int], Any], count: Any) -> Any:
    zero, one = constant(REAL, 0.0, PATTERNS), constant(REAL, 1.0, PATTERNS)
    is_positive = builder.fcmp_ordered(">=", row(0), zero)
    agreed, found = (builder.select(is_positive, row(above), row(above + 1)) for above in (1, 3))
    return builder.fdiv(agreed, builder.select(builder.fcmp_ordered(">", found, zero), found, one))


def _putter(combined: Combiner) -> Any:
    @intrinsic
    def put(typing: Any, to: Any, source: Any, count: Any, lam: Any, registers: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, source, count, lam, registers = args

            def step(at: Any) -> None:
                place = builder.add(source, at)
                total = combined(builder, lambda row: load(builder, place, _REALS, 4 * SUM_ROW * row), count)
                store(builder, builder.fmul(total, broadcast(builder, lam, PATTERNS)), builder.add(to, at))

            _for_registers(builder, registers, step)
            return context.get_dummy_value()

        address = types.int64
        return types.void(address, address, types.int64, types.float32, types.int64), build

    return put


# put_X(to, source, count, lam, registers): store lam * T at the address `to`, for the sums of `count` values and of
# `registers` times 8 patterns at the address `source`
put_total, put_mean_of, put_elected = map(_putter, (_total, _mean, _elected))
