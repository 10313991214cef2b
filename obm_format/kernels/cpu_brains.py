# ruff: noqa: ANN401 - LLVM objects are untyped
# mypy: allow-untyped-calls
"""BF16 elements as LLVM vectors of floats, and back by rounding to nearest even (obm-1 clause 1.2).

Elements at even places are in one vector and those at odd places in another, which needs no more than a shift, a mask
and a blend. NaN is right where the lower half of its float is 0: that of a BF16 word, or the processor's own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # it carries no types

from obm_format.kernels.cpu_vectors import I16, I32, REAL, like, load, shuffled, store


def brains_at(builder: Any, address: Any, lanes: int) -> list[Any]:
    """Of twice as many elements, those at even places as floats, and the others."""
    pairs = load(builder, address, ir.VectorType(I32, lanes))
    low, high = builder.shl(pairs, like(pairs, 16)), builder.and_(pairs, like(pairs, 0xFFFF_0000))
    return [builder.bitcast(one, ir.VectorType(REAL, lanes)) for one in (low, high)]


def rounded(builder: Any, even: Any, odd: Any) -> Any:
    """The words of floats, rounded, at even and odd places.

    The lower halves of the floats tell what is added to the upper ones: 1 above the middle, and in the middle where
    the upper half is odd. With the middle as 0: where the lower half is above the upper one's last bit, negated.
    """
    size = 2 * even.type.count
    in_turn = [place + size * (place % 2) for place in range(size)]
    low, high = (builder.bitcast(value, ir.VectorType(I32, even.type.count)) for value in (even, odd))

    def words(first: Any, second: Any) -> Any:
        halves = [builder.bitcast(half, ir.VectorType(I16, size)) for half in (first, second)]
        return shuffled(builder, halves[0], halves[1], in_turn)

    upper = words(builder.lshr(low, like(low, 16)), high)
    lower = words(low, builder.shl(high, like(high, 16)))
    is_odd = builder.sub(like(upper, 0), builder.and_(upper, like(upper, 1)))
    goes_up = builder.icmp_signed(">", builder.xor(lower, like(lower, 0x8000)), is_odd)
    return builder.sub(upper, builder.sext(goes_up, upper.type))


def store_brains(builder: Any, even: Any, odd: Any, address: Any) -> None:
    """Round floats and put them at even and odd places from an address on."""
    store(builder, rounded(builder, even, odd), address)
