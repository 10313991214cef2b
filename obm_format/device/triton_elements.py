# ruff: noqa: ANN001, ANN201, ANN202, D403, N803, RET505 - Triton is not quite Python
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Elements to float32 and back, sign bits to values, and the combination of values, inside Triton kernels.

Rounding is done on integers, so that it does not depend on what a compiler or interpreter makes of a cast. Never loads
whole tensors. Source: obm-1 clauses 1.2 and 6.6; `contract.Kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

F16, BF16, F32 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # element kinds
SIGN, EXACT, VALUE, ZERO = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # operand kinds
SUM, MEAN, TIES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def widen(words, KIND: tl.constexpr):
    """The float32 of words, exactly."""
    if KIND == F32:
        return words.to(tl.float32, bitcast=True)
    elif KIND == BF16:
        return (words.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return words.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _narrow_brain(bits):
    rest = bits & 0x7FFFFFFF
    rounded = (rest + 0x7FFF + ((rest >> 16) & 1)) >> 16
    quiet = (rest >> 16) | 0x40
    return ((bits >> 16) & 0x8000) | tl.where(rest > 0x7F800000, quiet, rounded)


@triton.jit
def _narrow_half(bits):
    """Below the least normal number the sum with 0.5 rounds to the right step, that of floats from 0.5 to 1."""
    rest = (bits & 0x7FFFFFFF).to(tl.int32)
    normal = (rest - 0x37FFF001 + ((rest >> 13) & 1)) >> 13
    small = (rest.to(tl.float32, bitcast=True) + 0.5).to(tl.int32, bitcast=True) - 0x3F000000
    half = tl.where(rest < 0x38800000, small, normal)
    half = tl.where(rest >= 0x477FF000, 0x7C00, half)
    half = tl.where(rest > 0x7F800000, 0x7E00, half)
    return ((bits >> 16) & 0x8000) | half.to(tl.uint32)


@triton.jit
def narrow(values, KIND: tl.constexpr):
    """The words of RNE(values)."""
    bits = values.to(tl.uint32, bitcast=True)
    if KIND == F32:
        return bits
    elif KIND == BF16:
        return _narrow_brain(bits).to(tl.uint16)
    else:
        return _narrow_half(bits).to(tl.uint16)


@triton.jit
def choose(is_set, alpha):
    """+alpha where a sign bit is set, else -alpha; an alpha of 0 gives +0 whatever the bit (obm-1 clause 6.6)."""
    alpha = tl.abs(alpha)
    return tl.where(is_set, alpha, tl.where(alpha > 0, -alpha, alpha))


@triton.jit
def combined(values, scales, COMBINE: tl.constexpr, COUNT: tl.constexpr):
    """lam * T of the first COUNT values; `scales` points to lam and then to one weight per value."""
    total = values[0] * tl.load(scales + 1)
    for k in tl.static_range(1, COUNT):
        total = total + values[k] * tl.load(scales + 1 + k)
    if COMBINE == MEAN:
        total = tl.div_rn(total, tl.full(total.shape, COUNT, tl.float32))
    if COMBINE == TIES:
        positive = total >= 0
        agreed = tl.zeros(total.shape, tl.float32)
        count = tl.zeros(total.shape, tl.float32)
        for k in tl.static_range(COUNT):
            value = values[k] * tl.load(scales + 1 + k)
            agrees = tl.where(positive, value > 0, value < 0)
            agreed = tl.where(agrees, agreed + value, agreed)
            count = count + tl.where(agrees, 1.0, 0.0)
        # a bare / may be off by two units in the last place on a GPU
        total = tl.div_rn(agreed, tl.maximum(count, 1.0))
    return total * tl.load(scales)
