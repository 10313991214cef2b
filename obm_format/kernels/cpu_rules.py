# ruff: noqa: ANN401 - LLVM objects are untyped
# mypy: allow-untyped-calls
"""T of several vectors, as LLVM instructions: their sum, their mean, or what TIES elects (obm-1 clause 9.3).

A rule takes a function that gives vector k at a place in the code, and their number: one that is known only when the
loop runs, or one that is known before, and then there is no loop. What lives across the turns of a loop are floats and
integers, never vectors of single bits, for which LLVM has no registers on most processors. None of the operations is
fused or reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numba.core import cgutils

from obm_format.kernels.cpu_vectors import I32, I64, broadcast, constant, like

Values = Callable[[Any], Any]
Rule = Callable[[Any, Values, Any], Any]


def turns(builder: Any, count: Any, start: int = 0) -> Iterator[Any]:
    """The numbers start .. count, one after the other in the code where `count` is an int, else by one loop in it."""
    if isinstance(count, int):
        yield from map(I64, range(start, count))
        return
    with cgutils.for_range(builder, count, start=I64(start)) as loop:
        yield loop.index


def rule_of_sum(builder: Any, values: Values, count: Any) -> Any:
    """SUM."""
    so_far = cgutils.alloca_once_value(builder, values(I64(0)))
    for k in turns(builder, count, 1):
        builder.store(builder.fadd(builder.load(so_far), values(k)), so_far)
    return builder.load(so_far)


def rule_of_mean(builder: Any, values: Values, count: Any) -> Any:
    """MEAN."""
    total = rule_of_sum(builder, values, count)
    number = builder.sitofp(count, total.type.element)
    return builder.fdiv(total, broadcast(builder, number, total.type.count))


def rule_of_ties(builder: Any, values: Values, count: Any) -> Any:
    """TIES: the mean of the values that have the sign of their sum; 0 where there are none."""
    total = rule_of_sum(builder, values, count)
    zero, one, lanes = like(total, 0.0), like(total, 1.0), total.type.count
    is_positive = builder.fcmp_ordered(">=", total, zero)
    turn = builder.select(is_positive, constant(I32, 0, lanes), constant(I32, 1 << 31, lanes))
    agreed, number = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
    for k in turns(builder, count):
        value = values(k)
        turned = builder.bitcast(builder.xor(builder.bitcast(value, turn.type), turn), value.type)
        agrees = builder.fcmp_ordered(">", turned, zero)
        for so_far, more in ((agreed, value), (number, one)):
            before = builder.load(so_far)
            builder.store(builder.select(agrees, builder.fadd(before, more), before), so_far)
    found = builder.load(number)
    divisor = builder.select(builder.fcmp_ordered(">", found, zero), found, one)
    return builder.fdiv(builder.load(agreed), divisor)


def elected_of_two(builder: Any, x: Any, y: Any) -> Any:
    """TIES of two vectors by cases: two agree, and half their sum is the mean; or the elected one stands alone.

    Half of a float is its quotient by 2, bit for bit; the sum with 0 gives +0 where no value agrees. The order of the
    two does not matter.
    """
    zero = like(x, 0.0)
    total = builder.fadd(x, y)
    is_larger = builder.fcmp_ordered(">", x, y)
    high, low = builder.select(is_larger, x, y), builder.select(is_larger, y, x)
    elected = builder.select(builder.fcmp_ordered(">=", total, zero), high, low)
    both = builder.or_(builder.fcmp_ordered(">", low, zero), builder.fcmp_ordered("<", high, zero))
    return builder.select(both, builder.fmul(total, like(x, 0.5)), builder.fadd(elected, zero))


def rule_of_ties_of_two(builder: Any, values: Values, count: Any) -> Any:
    """TIES of two."""
    return elected_of_two(builder, values(I64(0)), values(I64(1)))
