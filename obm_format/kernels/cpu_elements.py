# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""Elements to float32 and back, in the compiled loops: a run of words at an address, a run of floats in an array.

All integers and exact, but for the one rounding to nearest even (obm-1 clause 1.2). Never looks at the whole tensor.
"""

from __future__ import annotations

import numpy as np

from obm_format.kernels.cpu_compile import step
from obm_format.kernels.cpu_names import bits_of, carray, float_of, pointer

F16, BF16, F32 = 0, 1, 2  # element kinds

u32 = np.uint32  # numba widens sums of uint32 to uint64 unless told
_HALF = np.float32(0.5)  # the step of floats from 0.5 to 1 is that of small F16
_TINY = np.float32(2.0**-24)  # step of F16 below its least normal number


@step
def width(kind):
    """Bytes of an element."""
    return 4 if kind == F32 else 2


@step
def shorts_at(address, n):
    """The uint16[n] at an address."""
    return carray(pointer(address), (n,), np.uint16)


@step
def longs_at(address, n):
    """The uint32[n] at an address."""
    return carray(pointer(address), (n,), np.uint32)


@step
def _widen_half(half):
    sign = u32((half & u32(0x8000)) << u32(16))
    rest = u32(half & u32(0x7FFF))
    normal = u32(u32(rest << u32(13)) + u32(0x3800_0000))
    infinite = u32(normal + u32(0x3800_0000))
    small = bits_of(np.float32(np.int32(rest)) * _TINY)
    value = small if rest < u32(0x0400) else normal
    return float_of(u32(sign | (infinite if rest >= u32(0x7C00) else value)))


@step
def _narrow_half(value):
    """RNE to F16 by integers; below the least normal number the sum with 0.5 rounds to the right step."""
    bits = bits_of(value)
    sign = u32(u32(bits >> u32(16)) & u32(0x8000))
    rest = u32(bits & u32(0x7FFF_FFFF))
    even = u32(u32(rest >> u32(13)) & u32(1))
    normal = u32(u32(u32(rest + u32(0xC800_0FFF)) + even) >> u32(13))
    small = u32(bits_of(float_of(rest) + _HALF) - u32(0x3F00_0000))
    half = small if rest < u32(0x3880_0000) else normal
    half = u32(0x7C00) if rest >= u32(0x477F_F000) else half
    half = u32(0x7E00) if rest > u32(0x7F80_0000) else half
    return u32(sign | half)


@step
def _narrow_brain(value):
    bits = bits_of(value)
    high = u32(bits >> u32(16))
    rounded = u32(u32(u32(bits + u32(0x7FFF)) + u32(high & u32(1))) >> u32(16))
    return u32(high | u32(0x40)) if u32(bits & u32(0x7FFF_FFFF)) > u32(0x7F80_0000) else rounded


@step
def load(into, address, kind, n):
    """into[i] = f32(element i)."""
    if kind == BF16:
        shorts = shorts_at(address, n)
        for i in range(n):
            into[i] = float_of(u32(u32(shorts[i]) << u32(16)))
    elif kind == F16:
        shorts = shorts_at(address, n)
        for i in range(n):
            into[i] = _widen_half(u32(shorts[i]))
    else:
        longs = longs_at(address, n)
        for i in range(n):
            into[i] = float_of(longs[i])


@step
def store(address, kind, values, n):
    """Element i = RNE(values[i])."""
    if kind == BF16:
        shorts = shorts_at(address, n)
        for i in range(n):
            shorts[i] = np.uint16(_narrow_brain(values[i]))
    elif kind == F16:
        shorts = shorts_at(address, n)
        for i in range(n):
            shorts[i] = np.uint16(_narrow_half(values[i]))
    else:
        longs = longs_at(address, n)
        for i in range(n):
            longs[i] = bits_of(values[i])


@step
def add_brain(source, out, shift, n):
    """BF16 out[i] = RNE(f32(source[i]) + shift[i]): the most common pair of kinds, without a stop in between."""
    shorts_in, shorts_out = shorts_at(source, n), shorts_at(out, n)
    for i in range(n):
        value = float_of(u32(u32(shorts_in[i]) << u32(16))) + shift[i]
        shorts_out[i] = np.uint16(_narrow_brain(value))


@step
def keep_large(address, n, least):
    """The float32[n] at an address become +0 where the bits of their magnitude are below `least`."""
    longs = longs_at(address, n)
    for i in range(n):
        longs[i] = longs[i] if (longs[i] & u32(0x7FFF_FFFF)) >= least else u32(0)


@step
def round_in_place(values, kind, n):
    """values[i] becomes the word of RNE(values[i]), in the place of the float."""
    if kind == BF16:
        for i in range(n):
            values[i] = float_of(_narrow_brain(values[i]))
    elif kind == F16:
        for i in range(n):
            values[i] = float_of(_narrow_half(values[i]))
