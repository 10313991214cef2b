"""What every set of kernels offers: operands, ways to combine, and the `Kernels` protocol with its pinned arithmetic.

All implementations give the same bits for the same arguments, on every machine and with every number of threads; the
NumPy one in `reference` is normative. Never computes. Source: obm-1 clauses 6.6, 9.2, 9.3 and 11.

Matrices are the views of obm-1 clause 6.1: words or values of shape [rows, cols], C-contiguous.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from obm_format.errors import ObmError, UsageError
from obm_format.kernels.words import Float32, Words, words_dtype
from obm_format.model import DType

Bits = npt.NDArray[np.uint8]
Bounds = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignOperand:
    """A task vector of sign bits and alphas (obm-1 clause 6.6, `sign1`).

    The value of an element is the float32 sum, over the planes in order, of +alpha for a set bit and -alpha for a
    clear one; an alpha of 0 gives +0 whatever the bit.

    Args:
        bits: per plane, uint8[rows, ceil(cols / 8)]; element c of a row is bit c % 8 of byte c // 8.
        alphas: per plane, float32[rows, groups], finite and >= 0; may be a broadcast view. Element (r, c) has
            `alphas[plane][r, c // group]`.
        group: columns per alpha: a multiple of 8, or at least `cols`.
        cols: elements of a row.
    """

    bits: tuple[Bits, ...]
    alphas: tuple[Float32, ...]
    group: int
    cols: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.bits[0].shape[0], self.cols


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactOperand:
    """The fine-tune's own words; its task vector is f32(f32(fine-tune) - f32(backbone)) (obm-1 clause 9.2).

    Args:
        words: [rows, cols].
        dtype: F16, BF16 or F32.
    """

    words: Words
    dtype: DType

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.words.shape[0], self.words.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValueOperand:
    """A task vector as float32 values [rows, cols]."""

    values: Float32

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.values.shape[0], self.values.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroOperand:
    """A task vector that is +0 everywhere, of any shape."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimmedOperand:
    """An `ExactOperand` of whose task vector only the largest magnitudes are kept, as by `Kernels.keep_largest`.

    Args:
        words: [rows, cols].
        dtype: F16, BF16 or F32.
        threshold: a float32 magnitude.
        last: the last flat place at which a magnitude of `threshold` is kept; negative for none.
    """

    words: Words
    dtype: DType
    threshold: float
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.words.shape[0], self.words.shape[1]


Operand = SignOperand | ExactOperand | ValueOperand | ZeroOperand
Combined = Operand | TrimmedOperand
"""What can be combined: the routed operand is never trimmed."""


MAGNITUDE_BINS = 1 << 15  # of a float32 magnitude's upper bits: exponent and 7 bits of fraction
MAGNITUDE_LOW_BINS = 1 << 16


class Combine(enum.Enum):
    """How the task vectors of the other experts become one."""

    SUM = "sum"
    MEAN = "mean"
    TIES = "ties"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a merge saw of the words that it read and wrote.

    Args:
        is_finite: no word of the backbone, of an exact or trimmed operand, or of the output is NaN or infinite. False
            says less: one of them is, or is so large that nobody looked twice.
        moved: words of the output that are not the backbone's.
    """

    is_finite: bool
    moved: int


class Kernels(Protocol):
    """The arithmetic of obm on arrays."""

    @property
    def name(self) -> str:
        """Which implementation this is, as reports name it."""
        ...

    @property
    def threads(self) -> int:
        """Most threads that one call uses; results do not depend on it."""
        ...

    def subtract(self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType) -> Float32:
        """f32(f32(tuned) - f32(base)) for words of one shape (obm-1 clause 11.2).

        Returns:
            float32 array of that shape.

        Raises:
            UsageError: shapes differ (`bad_shape`) or a dtype is not F16, BF16 or F32 (`unsupported_dtype`).
        """
        ...

    def group_sums(self, d: Float32, bounds: Bounds) -> tuple[Float64, Float64]:
        """S1 = sum of |d| and S2 = sum of d*d of contiguous groups, in the pinned order (obm-1 clause 11.3).

        Args:
            d: flat float32.
            bounds: int64[G + 1], ascending; group g is d[bounds[g] : bounds[g + 1]].

        Returns:
            (S1, S2), float64[G] each.
        """
        ...

    def pack_signs(self, d: Float32) -> Bits:
        """uint8[rows, ceil(cols / 8)] with a set bit where d[rows, cols] >= 0, pad bits 0 (obm-1 clause 11.2)."""
        ...

    def pack(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, bounds: Bounds
    ) -> tuple[Bits, Float64, Float64]:
        """`subtract`, then `group_sums` and `pack_signs` of its result, without keeping it.

        Args:
            tuned: words [rows, cols].
            tuned_dtype: F16, BF16 or F32.
            base: words of the same shape.
            base_dtype: F16, BF16 or F32.
            bounds: int64[G + 1], ascending from 0 to rows * cols; the groups as in `group_sums`.

        Returns:
            (bits, S1, S2): uint8[rows, ceil(cols / 8)], float64[G], float64[G].

        Raises:
            UsageError: shapes differ or are not 2-D, or `bounds` are of another shape or type (`bad_shape`); they do
                not cover the matrix (`usage`); a dtype is not F16, BF16 or F32 (`unsupported_dtype`).
        """
        ...

    def sign_values(self, operand: SignOperand, out: Float32 | None = None) -> Float32:
        """The decoded values of a sign operand (obm-1 clause 6.6).

        Args:
            operand: bits and alphas.
            out: C-contiguous float32[rows, cols], which is written and returned; None: a new array.

        Raises:
            UsageError: operand or output do not fit (`bad_shape`).
        """
        ...

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
    ) -> Sight | None:
        """Merge one matrix into `out`; a result that is not finite is written as such.

        float32 throughout, one rounding per operation, no fused multiply-add.
        v_j = w_j * d_j for the others in the given order, with w_j rounded to float32. SUM: T = (v_0 + v_1) + ..;
        MEAN: SUM / number of others; TIES: the elected sign is + where SUM >= 0, else -; T = (sum in order of the
        non-zero v_j of that sign) / (their number), 0 if there are none. T is absent if `lam` rounds to 0 in float32
        or all others are `ZeroOperand`s. Then, with lam in float32 and RNE to `out_dtype`:

        - routed exact: RNE(f32(fine-tune) + lam*T); T absent: RNE of the fine-tune, its words if dtypes agree;
        - routed sign or value: RNE(f32(base) + (d + lam*T)); T absent: RNE(f32(base) + d);
        - routed None or zero: RNE(f32(base) + lam*T); T absent: RNE of the base, its words if dtypes agree.

        Args:
            base: words [rows, cols] of `base_dtype`.
            base_dtype: F16, BF16 or F32.
            routed: the expert that is applied whole, or None.
            others: the experts under `combine`.
            combine: SUM, MEAN or TIES.
            weights: one number per other.
            lam: what T is multiplied by.
            out: words [rows, cols] of `out_dtype`, written; it must not overlap any input but `base`.
            out_dtype: F16, BF16 or F32.

        Returns:
            what was seen on the way, where looking cost nothing; None where somebody else has to look.

        Raises:
            UsageError: operands, weights and shapes do not fit (`bad_shape`, `usage`), or a dtype is not F16, BF16 or
                F32 (`unsupported_dtype`).
        """
        ...

    def count_magnitudes(self, values: Float32, high: int | None, counts: Counts) -> None:
        """Count magnitudes by half of their 31 bits.

        Args:
            values: float32 of any shape, finite, C-contiguous.
            high: None: count by the upper 15 bits; else those magnitudes whose upper 15 bits these are, by the
                lower 16.
            counts: int64[32768] or int64[65536], added to.
        """
        ...

    def count_differences(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, high: int | None, counts: Counts
    ) -> None:
        """`count_magnitudes` of `subtract`'s result, without keeping it; arguments and errors as of both."""
        ...

    def nth_difference(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, threshold: float, number: int
    ) -> tuple[int, int]:
        """Find an element of `subtract`'s result by its magnitude, without keeping the result.

        Args:
            tuned: words of any shape.
            tuned_dtype: F16, BF16 or F32.
            base: words of the same shape.
            base_dtype: F16, BF16 or F32.
            threshold: a float32 magnitude.
            number: at least 1.

        Returns:
            (flat place of the `number`-th element whose magnitude is `threshold`, `number`); where there are fewer,
            (-1, how many there are).
        """
        ...

    def keep_largest(self, values: Float32, threshold: float, last: int) -> Float32:
        """The values whose magnitude is above a threshold, or equal to it up to a place, and +0 for the others.

        Args:
            values: float32 of any shape, finite, C-contiguous.
            threshold: a float32 magnitude.
            last: the last flat place at which a magnitude of `threshold` is kept; -1 for none.

        Returns:
            a new float32 array of that shape.
        """
        ...

    def keep_drawn(self, values: Float32, key: int, start: int, limit: int) -> Float32:
        """The values that chance keeps, and +0 for the others.

        Element i is kept where the top 53 bits of splitmix64(key + (start + i + 1) * 0x9E3779B97F4A7C15) are below
        `limit`.

        Args:
            values: float32 of any shape, C-contiguous.
            key: 0 to 2^64-1.
            start: 0 to 2^63-1.
            limit: 0 to 2^53.

        Returns:
            a new float32 array of that shape.
        """
        ...

    def absorbed(self, base: Words, base_dtype: DType, operand: Operand, out_dtype: DType) -> tuple[int, int]:
        """(elements with d != 0 that rounding to `out_dtype` swallows, elements with d != 0).

        An element is swallowed where RNE(f32(base) + d) and RNE(f32(base)) have the same bits.
        """
        ...

    def moved(self, a: Words, b: Words) -> int:
        """Elements whose words differ between two arrays of one shape and word width."""
        ...

    def first_not_finite(self, words: Words, dtype: DType) -> int | None:
        """Flat index of the first element that is NaN or infinite, or None."""
        ...


def check_operands(base: Words, base_dtype: DType, operands: Sequence[Combined]) -> None:
    """Refuse a backbone matrix and operands that do not fit together.

    Raises:
        UsageError: `bad_shape`, `usage` or `unsupported_dtype`.
    """
    check_words(base, base_dtype, "base")
    if base.ndim != 2:
        raise _shape("base", "[rows, cols]", base.shape)
    for place, operand in enumerate(operands):
        check_operand(operand, base.shape, f"operand {place}")


def check_output(out: Words, out_dtype: DType, shape: tuple[int, ...]) -> None:
    """Refuse an output that is not words of `out_dtype` in `shape`, or that cannot be written."""
    check_words(out, out_dtype, "out")
    if out.shape != tuple(shape) or not out.flags.writeable:
        raise _shape("out", f"writable {shape}", out.shape)


def check_values_output(out: Float32, shape: tuple[int, ...]) -> None:
    """Refuse an output that is not C-contiguous float32 in `shape`, or that cannot be written."""
    fits = out.dtype == np.float32 and out.shape == tuple(shape)
    if not (fits and out.flags.c_contiguous and out.flags.writeable):
        raise _shape("out", f"writable C-contiguous float32{shape}", f"{out.dtype}{out.shape}")


def check_weights(others: Sequence[Combined], weights: Sequence[float]) -> None:
    """Refuse any number of weights but one for each of the other experts."""
    if len(weights) != len(others):
        raise UsageError("usage", "each of the other experts needs one weight", expected=len(others), got=len(weights))


def check_magnitudes(values: Float32) -> None:
    """Refuse what is not C-contiguous float32."""
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise _shape("values", "C-contiguous float32", f"{values.dtype}{values.shape}")


def check_counts(high: int | None, counts: Counts) -> None:
    """Refuse counts that are not one for each half of a magnitude."""
    size = MAGNITUDE_BINS if high is None else MAGNITUDE_LOW_BINS
    if counts.dtype != np.int64 or counts.shape != (size,) or not counts.flags.c_contiguous:
        raise _shape("counts", f"int64[{size}]", f"{counts.dtype}{counts.shape}")


def check_same_words(a: Words, b: Words) -> None:
    """Refuse two arrays of different shape or word width, or that are not C-contiguous."""
    if a.shape != b.shape or a.dtype != b.dtype or not (a.flags.c_contiguous and b.flags.c_contiguous):
        raise _shape("words", f"{a.dtype}{a.shape}", f"{b.dtype}{b.shape}")


def check_pair(tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType) -> None:
    """Refuse two tensors that cannot be subtracted."""
    check_words(tuned, tuned_dtype, "tuned")
    check_words(base, base_dtype, "base")
    if tuned.shape != base.shape:
        raise _shape("tuned", base.shape, tuned.shape)


def check_groups(d: Float32, bounds: Bounds) -> None:
    """Refuse values that are not flat float32, and bounds that are not ascending places in them."""
    if d.dtype != np.float32 or d.ndim != 1 or not d.flags.c_contiguous:
        raise _shape("d", "flat C-contiguous float32", f"{d.dtype}{d.shape}")
    _check_bounds(bounds, d.size)


def check_pack(tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, bounds: Bounds) -> None:
    """Refuse two tensors that are not matrices to subtract, and groups that do not cover them."""
    check_pair(tuned, tuned_dtype, base, base_dtype)
    if base.ndim != 2:
        raise _shape("base", "[rows, cols]", base.shape)
    _check_bounds(bounds, base.size)
    if bounds[0] != 0 or bounds[-1] != base.size:
        raise UsageError(
            "usage",
            "the groups do not cover the matrix",
            where="bounds",
            expected=(0, base.size),
            got=tuple(bounds[[0, -1]]),
        )


def combined_is_absent(others: Sequence[Combined], lam: float) -> bool:
    """Whether lam*T is left out: lam rounds to 0 in float32, or every other expert is zero here."""
    return bool(np.float32(lam) == 0) or all(isinstance(other, ZeroOperand) for other in others)


def check_operand(operand: Combined, shape: tuple[int, ...], where: str) -> None:
    """Refuse an operand whose arrays are not those of a [rows, cols] matrix of `shape`."""
    if isinstance(operand, ZeroOperand):
        return
    if isinstance(operand, SignOperand):
        _check_sign(operand, where)
    elif isinstance(operand, ExactOperand | TrimmedOperand):
        check_words(operand.words, operand.dtype, where)
    elif operand.values.dtype != np.float32 or operand.values.ndim != 2:
        raise _shape(where, "float32[rows, cols]", f"{operand.values.dtype}{operand.values.shape}")
    if operand.shape != tuple(shape):
        raise _shape(where, shape, operand.shape)


def check_words(words: Words, dtype: DType, where: str) -> None:
    """Refuse words that are not C-contiguous words of a dtype that obm computes with."""
    if not dtype.is_float:
        raise UsageError(
            "unsupported_dtype",
            "obm computes with F16, BF16 and F32 only",
            where=where,
            expected="F16, BF16, F32",
            got=dtype.name,
        )
    if words.dtype != words_dtype(dtype) or not words.flags.c_contiguous:
        raise _shape(where, f"C-contiguous {words_dtype(dtype)}", words.dtype)


def _check_bounds(bounds: Bounds, size: int) -> None:
    if bounds.dtype != np.int64 or bounds.ndim != 1 or not bounds.size:
        raise _shape("bounds", "int64[G + 1]", f"{bounds.dtype}{bounds.shape}")
    if bounds[0] < 0 or bounds[-1] > size or (np.diff(bounds) < 0).any():
        raise UsageError("usage", "group bounds are not ascending places in the values", where="bounds")


def _check_sign(operand: SignOperand, where: str) -> None:
    if not operand.bits or len(operand.alphas) != len(operand.bits):
        raise UsageError("usage", "a sign operand needs at least one plane, and alphas for each", where=where)
    if operand.group < 1 or (operand.group % 8 and operand.group < operand.cols):
        raise UsageError(
            "usage", "alpha groups do not end on bytes", where=where, expected="a multiple of 8", got=operand.group
        )
    rows, cols = operand.shape
    planes = (rows, -(-cols // 8))
    groups = (rows, -(-cols // operand.group))
    for bits, alphas in zip(operand.bits, operand.alphas, strict=True):
        if bits.dtype != np.uint8 or bits.shape != planes:
            raise _shape(where, f"uint8{planes}", f"{bits.dtype}{bits.shape}")
        if alphas.dtype != np.float32 or alphas.shape != groups:
            raise _shape(where, f"float32{groups}", f"{alphas.dtype}{alphas.shape}")


def _shape(where: str, expected: object, got: object) -> ObmError:
    return UsageError("bad_shape", "an array has the wrong shape or type", where=where, expected=expected, got=got)
