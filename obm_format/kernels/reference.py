"""The normative kernels: plain NumPy, one line per rule, slow.

Every faster implementation is tested to give the same bits. Works through matrices in blocks of rows, so that its
temporaries stay small. Never starts threads. Source: obm-1 clauses 6.6, 9.2, 9.3 and 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from obm_format.kernels.contract import (
    Bits,
    Bounds,
    Combine,
    Combined,
    Counts,
    ExactOperand,
    Float64,
    Operand,
    SignOperand,
    TrimmedOperand,
    ValueOperand,
    ZeroOperand,
    check_counts,
    check_groups,
    check_magnitudes,
    check_operand,
    check_operands,
    check_output,
    check_pack,
    check_pair,
    check_same_words,
    check_values_output,
    check_weights,
    combined_is_absent,
)
from obm_format.kernels.words import Float32, Words, cast, first_not_finite, from_float32, to_float32
from obm_format.model import DType

SUM_BLOCK = 65_536  # obm-1 clause 11.3: elements of a block
SUM_LANES = 16  # obm-1 clause 11.3: lanes of a block
_ROW_BLOCK = 1 << 18  # elements worked on together


class ReferenceKernels:
    """`Kernels` in NumPy, on the calling thread."""

    name = "reference"
    threads = 1

    def subtract(self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType) -> Float32:
        """See `Kernels.subtract`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        with np.errstate(over="ignore"):
            # obm-1 clause 11.2
            return np.asarray(to_float32(tuned, tuned_dtype) - to_float32(base, base_dtype))

    def group_sums(self, d: Float32, bounds: Bounds) -> tuple[Float64, Float64]:
        """See `Kernels.group_sums`."""
        check_groups(d, bounds)
        groups = len(bounds) - 1
        s1, s2 = np.zeros(groups), np.zeros(groups)
        for group in range(groups):
            values = d[bounds[group] : bounds[group + 1]]
            for start in range(0, values.size, SUM_BLOCK):
                block = values[start : start + SUM_BLOCK].astype(np.float64)
                s1[group] += _block_sum(np.abs(block))
                s2[group] += _block_sum(block * block)
        return s1, s2

    def pack_signs(self, d: Float32) -> Bits:
        """See `Kernels.pack_signs`."""
        check_operand(ValueOperand(values=d), d.shape, "d")
        # obm-1 clauses 6.2 and 11.2
        return np.packbits(d >= 0, axis=1, bitorder="little")

    def pack(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, bounds: Bounds
    ) -> tuple[Bits, Float64, Float64]:
        """See `Kernels.pack`."""
        check_pack(tuned, tuned_dtype, base, base_dtype, bounds)
        d = self.subtract(tuned, tuned_dtype, base, base_dtype)
        return self.pack_signs(d), *self.group_sums(d.reshape(-1), bounds)

    def sign_values(self, operand: SignOperand, out: Float32 | None = None) -> Float32:
        """See `Kernels.sign_values`."""
        check_operand(operand, operand.shape, "operand")
        values = _sign_values(operand, slice(None))
        if out is None:
            return values
        check_values_output(out, operand.shape)
        np.copyto(out, values)
        return out

    def merge(  # noqa: PLR0913 - a merge has this many parts
        self,
        base: Words,
        base_dtype: DType,
        routed: Operand | None,
        others: Sequence[Combined],
        *,
        combine: Combine,
        weights: Sequence[float],
        lam: float,
        out: Words,
        out_dtype: DType,
    ) -> None:
        """See `Kernels.merge`."""
        check_operands(base, base_dtype, [*others] if routed is None else [*others, routed])
        check_output(out, out_dtype, base.shape)
        check_weights(others, weights)
        absent = combined_is_absent(others, lam)
        for rows in _row_blocks(base.shape):
            with np.errstate(over="ignore", invalid="ignore"):
                term = None
                if not absent:
                    scaled = [
                        np.float32(weight) * _values(base, base_dtype, other, rows)
                        for other, weight in zip(others, weights, strict=True)
                    ]
                    term = np.float32(lam) * _combined(scaled, combine)
                out[rows] = _result(base[rows], base_dtype, _rows_of(routed, rows), term, out_dtype)

    def count_magnitudes(self, values: Float32, high: int | None, counts: Counts) -> None:
        """See `Kernels.count_magnitudes`."""
        check_magnitudes(values)
        check_counts(high, counts)
        flat = values.reshape(-1).view(np.uint32)
        for start in range(0, flat.size, _ROW_BLOCK):
            bits = flat[start : start + _ROW_BLOCK] & np.uint32(0x7FFF_FFFF)
            if high is None:
                counts += np.bincount(bits >> np.uint32(16), minlength=counts.size)
            else:
                low = bits[(bits >> np.uint32(16)) == high] & np.uint32(0xFFFF)
                counts += np.bincount(low, minlength=counts.size)

    def count_differences(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, high: int | None, counts: Counts
    ) -> None:
        """See `Kernels.count_differences`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        check_counts(high, counts)
        for block in _flat_blocks(base.size):
            d = self.subtract(tuned.reshape(-1)[block], tuned_dtype, base.reshape(-1)[block], base_dtype)
            self.count_magnitudes(d, high, counts)

    def nth_difference(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, threshold: float, number: int
    ) -> tuple[int, int]:
        """See `Kernels.nth_difference`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        seen = 0
        for block in _flat_blocks(base.size):
            d = self.subtract(tuned.reshape(-1)[block], tuned_dtype, base.reshape(-1)[block], base_dtype)
            equal = np.flatnonzero(np.abs(d) == np.float32(threshold))
            if number <= seen + equal.size:
                return block.start + int(equal[number - seen - 1]), number
            seen += equal.size
        return -1, seen

    def keep_largest(self, values: Float32, threshold: float, last: int) -> Float32:
        """See `Kernels.keep_largest`."""
        check_magnitudes(values)
        magnitude = np.abs(values).reshape(-1)
        keep = magnitude > np.float32(threshold)
        head = max(0, min(magnitude.size, last + 1))
        keep[:head] |= magnitude[:head] == np.float32(threshold)
        return np.where(keep.reshape(values.shape), values, np.float32(0))

    def keep_drawn(self, values: Float32, key: int, start: int, limit: int) -> Float32:
        """See `Kernels.keep_drawn`."""
        check_magnitudes(values)
        flat = values.reshape(-1)
        out = np.zeros_like(flat)
        for first in range(0, flat.size, _ROW_BLOCK):
            block = slice(first, min(flat.size, first + _ROW_BLOCK))
            keep = _random_bits(key, start + first, block.stop - first) < np.uint64(limit)
            out[block] = np.where(keep, flat[block], np.float32(0))
        return out.reshape(values.shape)

    def absorbed(self, base: Words, base_dtype: DType, operand: Operand, out_dtype: DType) -> tuple[int, int]:
        """See `Kernels.absorbed`."""
        check_operands(base, base_dtype, [operand])
        swallowed = nonzero = 0
        for rows in _row_blocks(base.shape):
            with np.errstate(over="ignore"):
                d = _values(base, base_dtype, operand, rows)
                before = to_float32(base[rows], base_dtype)
                same = from_float32(before + d, out_dtype) == from_float32(before, out_dtype)
            swallowed += int(np.count_nonzero(same & (d != 0)))
            nonzero += int(np.count_nonzero(d))
        return swallowed, nonzero

    def moved(self, a: Words, b: Words) -> int:
        """See `Kernels.moved`."""
        check_same_words(a, b)
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        blocks = (slice(start, start + _ROW_BLOCK) for start in range(0, a.size, _ROW_BLOCK))
        return sum(int(np.count_nonzero(flat_a[block] != flat_b[block])) for block in blocks)

    def first_not_finite(self, words: Words, dtype: DType) -> int | None:
        """See `Kernels.first_not_finite`."""
        return first_not_finite(words, dtype)


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = shape[0] if shape[1] else 0
    step = max(1, _ROW_BLOCK // max(1, shape[1]))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def _flat_blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(size, start + _ROW_BLOCK)) for start in range(0, size, _ROW_BLOCK))


def _random_bits(key: int, start: int, size: int) -> npt.NDArray[np.uint64]:
    """53 random bits for each flat place: splitmix64, as a function of the place."""
    z = np.arange(start + 1, start + size + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11))


def _block_sum(values: Float64) -> float:
    """The pinned sum of one block (obm-1 clause 11.3): 16 lanes, ascending, then a fixed tree."""
    padded = np.zeros(-(-values.size // SUM_LANES) * SUM_LANES)
    padded[: values.size] = values
    # accumulate adds strictly one after the other; the zeros that fill the last row change no sum of magnitudes
    lanes = np.add.accumulate(padded.reshape(-1, SUM_LANES), axis=0)[-1]
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def _sign_values(operand: SignOperand, rows: slice) -> Float32:
    """obm-1 clause 6.6: the float32 sum over the planes, in order, of +alpha or -alpha, and +0 where alpha is 0."""
    total: Float32 | None = None
    for bits, alphas in zip(operand.bits, operand.alphas, strict=True):
        is_set = np.unpackbits(bits[rows], axis=1, count=operand.cols, bitorder="little").astype(np.bool_)
        alpha = alphas[rows][:, np.arange(operand.cols) // operand.group]
        value = np.where(is_set | (alpha == 0), np.abs(alpha), -alpha)
        total = value if total is None else total + value
    return np.zeros(operand.shape, np.float32)[rows] if total is None else total


def _values(base: Words, base_dtype: DType, operand: Combined, rows: slice) -> Float32:
    """The task vector values of some rows (obm-1 clause 9.2)."""
    match operand:
        case SignOperand():
            return _sign_values(operand, rows)
        case ExactOperand(words=words, dtype=dtype):
            return np.asarray(to_float32(words[rows], dtype) - to_float32(base[rows], base_dtype))
        case TrimmedOperand(words=words, dtype=dtype, threshold=threshold, last=last):
            d = np.asarray(to_float32(words[rows], dtype) - to_float32(base[rows], base_dtype))
            return ReferenceKernels().keep_largest(d, threshold, last - rows.start * words.shape[1])
        case ValueOperand(values=values):
            return values[rows]
        case ZeroOperand():
            return np.zeros(base[rows].shape, np.float32)


def _rows_of(operand: Operand | None, rows: slice) -> ExactOperand | Float32 | None:
    """The routed operand in some rows: what it replaces the base by, what it adds, or nothing at all."""
    match operand:
        case None:
            return None
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=words[rows], dtype=dtype)
        case SignOperand():
            return _sign_values(operand, rows)
        case ValueOperand(values=values):
            return values[rows]
        case ZeroOperand():
            return None


def _combined(values: Sequence[Float32], combine: Combine) -> Float32:
    """T of the weighted task vectors of the others, in their order."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    if combine is Combine.SUM:
        return total
    if combine is Combine.MEAN:
        return np.asarray(total / np.float32(len(values)))
    positive = total >= 0
    agreed, count = np.zeros_like(total), np.zeros_like(total)
    for value in values:
        agrees = np.where(positive, value > 0, value < 0)
        agreed = np.where(agrees, agreed + value, agreed)
        count += agrees
    return np.asarray(agreed / np.maximum(count, np.float32(1)))


def _result(
    base: Words, base_dtype: DType, routed: ExactOperand | Float32 | None, term: Float32 | None, out_dtype: DType
) -> Words:
    """The merged words of some rows, from the routed operand and the term lam*T of the others."""
    if isinstance(routed, ExactOperand):
        if term is None:
            return cast(routed.words, routed.dtype, out_dtype)
        return from_float32(to_float32(routed.words, routed.dtype) + term, out_dtype)
    if routed is None:
        if term is None:
            return cast(base, base_dtype, out_dtype)
        shift = term
    else:
        shift = routed if term is None else routed + term
    return from_float32(np.asarray(to_float32(base, base_dtype) + shift), out_dtype)
