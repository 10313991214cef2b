# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0913 - Triton is not quite Python
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The Triton kernels of the write side: sign bits, and sums in the pinned order of obm-1 clause 11.3.

A run is what is summed from 0: at most one block of one group. Its 16 lanes lie beside each other in a program, which
adds to them step by step and then folds them by the fixed tree. Launch without floating-point fusion.
Source: `contract.Kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from obm_format.device.triton_elements import widen


@triton.jit
def _halved(x, RUNS: tl.constexpr, HALF: tl.constexpr):
    """[RUNS, 2 * HALF] to [RUNS, HALF]: element i plus element i + HALF."""
    low, high = tl.split(tl.permute(tl.reshape(x, [RUNS, 2, HALF]), (0, 2, 1)))
    return low + high


@triton.jit
def _folded(lanes, RUNS: tl.constexpr):
    """The sum of 16 lanes by the fixed tree, [RUNS]."""
    lanes = _halved(_halved(_halved(lanes, RUNS, 8), RUNS, 4), RUNS, 2)
    return tl.reshape(_halved(lanes, RUNS, 1), [RUNS])


@triton.jit(do_not_specialize=["steps", "runs"])
def pack_runs(
    tuned, base, bits, begins, ends, s1, s2, cols, runs, steps,
    TUNED: tl.constexpr, BASE: tl.constexpr, IS_PAIR: tl.constexpr, HAS_BITS: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Sums of |d| and d*d of runs of d = f32(tuned) - f32(base) and, where HAS_BITS, its sign bits.

    Without IS_PAIR d is f32(tuned). With HAS_BITS each run begins and ends on a byte of the bits, or ends with a row,
    and runs go beyond a row only where all rows end on a byte. `steps` is what the longest run takes, of 16 elements.
    """
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    begin = tl.load(begins + run, run < runs, other=0)
    end = tl.load(ends + run, run < runs, other=0)
    lane = tl.arange(0, 16)[None, :]
    packed = bits + begin // cols * tl.cdiv(cols, 8) + begin % cols // 8
    first = tl.zeros([RUNS, 16], tl.float64)
    second = tl.zeros([RUNS, 16], tl.float64)
    for step in range(steps):
        done = begin + step * 16
        place = done[:, None] + lane
        mask = place < end[:, None]
        d = widen(tl.load(tuned + place, mask, other=0), TUNED)
        if IS_PAIR:
            d = d - widen(tl.load(base + place, mask, other=0), BASE)
        wide = d.to(tl.float64)
        first = first + tl.abs(wide)
        second = second + wide * wide
        if HAS_BITS:
            word = tl.sum(((d >= 0) & mask).to(tl.int32) << lane, axis=1)
            tl.store(packed + step * 2, (word & 255).to(tl.uint8), done < end)
            tl.store(packed + step * 2 + 1, (word >> 8).to(tl.uint8), done + 8 < end)
    tl.store(s1 + run, _folded(first, RUNS), run < runs)
    tl.store(s2 + run, _folded(second, RUNS), run < runs)


@triton.jit
def pack_tiles(d, bits, rows, cols, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """Sign bits uint8[rows, ceil(cols / 8)] of float32 words (obm-1 clause 6.2)."""
    across = tl.cdiv(cols, BYTES * 8)
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    byte = (program % across) * BYTES + tl.arange(0, BYTES)[None, :]
    lane = tl.arange(0, 8)[None, None, :]
    col = byte[:, :, None] * 8 + lane
    mask = (row[:, :, None] < rows) & (col < cols)
    value = tl.load(d + row[:, :, None] * cols + col, mask, other=-1.0)
    packed = tl.sum((value >= 0).to(tl.int32) << lane, axis=2)
    tl.store(bits + row * tl.cdiv(cols, 8) + byte, packed.to(tl.uint8), (row < rows) & (byte * 8 < cols))
