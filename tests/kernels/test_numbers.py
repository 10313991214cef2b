"""Hand-checkable numbers, for every implementation: the N and T cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from obm_format.kernels import Combine, ExactOperand, Kernels, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Float32, from_float32, to_float32
from obm_format.model import DType


def values(*numbers: float) -> Float32:
    return np.array([numbers], np.float32)


def sign(pattern: str, alpha: float) -> SignOperand:
    bits = np.packbits([[char == "+" for char in pattern]], axis=1, bitorder="little")
    return SignOperand(
        bits=(bits,), alphas=(np.full((1, 1), alpha, np.float32),), group=len(pattern), cols=len(pattern)
    )


def merged(
    kernels: Kernels,
    base: Float32,
    routed: Operand | None,
    others: list[Operand],
    *,
    combine: Combine = Combine.TIES,
    lam: float = 1.0,
    dtype: DType = DType.F32,
    weights: list[float] | None = None,
) -> list[float]:
    words = from_float32(base, dtype)
    out = np.full_like(words, 0xAAAA)
    kernels.merge(
        words,
        dtype,
        routed,
        others,
        combine=combine,
        weights=weights or [1.0] * len(others),
        lam=lam,
        out=out,
        out_dtype=dtype,
    )
    result: list[float] = to_float32(out, dtype)[0].tolist()
    return result


A1, A2 = sign("++--", 0.25), sign("+-+-", 0.5)


def test_n1_signs_and_sums(kernels: Kernels) -> None:
    d = np.array([[0.5, -0.25], [0, -1.25]], np.float32)
    assert kernels.pack_signs(d).tolist() == [[0b01], [0b01]]
    s1, s2 = kernels.group_sums(d.reshape(-1), np.array([0, 4]))
    assert (s1[0], s2[0]) == (2.0, 0.25 + 0.0625 + 1.5625)


def test_n3_both_zeros_are_positive(kernels: Kernels) -> None:
    assert kernels.pack_signs(values(-0.0, 0.0, -1, 1)).tolist() == [[0x0B]]


def test_n4_rows_end_on_bytes_with_clear_pad_bits(kernels: Kernels) -> None:
    assert kernels.pack_signs(np.ones((3, 9), np.float32)).tolist() == [[0xFF, 0x01]] * 3
    assert kernels.pack_signs(np.ones((3, 0), np.float32)).shape == (3, 0)


def test_n12_bf16_difference_is_taken_in_float32(kernels: Kernels) -> None:
    tuned = from_float32(values(0.1015625, 1.0), DType.BF16)
    base = from_float32(values(0.1, 0.003997802734375), DType.BF16)
    d = kernels.subtract(tuned, DType.BF16, base, DType.BF16)
    assert d.tolist() == [[0.00146484375, 0.996002197265625]]


def test_n15_alpha_per_row(kernels: Kernels) -> None:
    operand = SignOperand(
        bits=(np.array([[1], [1]], np.uint8),), alphas=(np.array([[1], [3]], np.float32),), group=2, cols=2
    )
    assert kernels.sign_values(operand).tolist() == [[1, -1], [3, -3]]


def test_n16_small_alphas_in_bf16(kernels: Kernels) -> None:
    base = to_float32(from_float32(values(1, 0.02, 0.06, 0.5, 0.001), DType.BF16), DType.BF16)
    result = merged(kernels, base, sign("+++++", 2e-4), [], dtype=DType.BF16)
    moved = [new - old for new, old in zip(result, base[0].tolist(), strict=True)]
    assert moved == [0, 2.44140625e-4, 2.44140625e-4, 0, 1.983642578125e-4]


def test_n17_one_rounding_for_all_experts(kernels: Kernels) -> None:
    two: list[Operand] = [ValueOperand(values=values(0.003)), ValueOperand(values=values(0.002))]
    assert merged(kernels, values(1), None, two, combine=Combine.SUM, dtype=DType.BF16) == [1.0078125]


def test_two_planes_are_summed_in_order(kernels: Kernels) -> None:
    operand = SignOperand(
        bits=(np.array([[0b0011]], np.uint8), np.array([[0b0101]], np.uint8)),
        alphas=(np.full((1, 1), 1, np.float32), np.full((1, 1), 2.0**-25, np.float32)),
        group=4,
        cols=4,
    )
    below = 1 - 2.0**-24
    assert kernels.sign_values(operand).tolist() == [[1, 1, -1, -1]]
    operand.alphas[1][:] = 2.0**-24
    assert kernels.sign_values(operand).tolist() == [[1, below, -below, -1]]


def test_alpha_zero_gives_positive_zero_whatever_the_bit(kernels: Kernels) -> None:
    decoded = kernels.sign_values(sign("+-+-", 0.0))
    assert not np.signbit(decoded).any()
    assert merged(kernels, values(-0.0, -0.0, 1, 1), sign("+-+-", 0.0), []) == [0, 0, 1, 1]
    assert [math.copysign(1, x) for x in merged(kernels, values(-0.0, -0.0), sign("+-", 0.0), [])] == [1, 1]


def test_t2_ties_with_a_draw_goes_to_plus(kernels: Kernels) -> None:
    others: list[Operand] = [ValueOperand(values=values(1, -2, 3)), ValueOperand(values=values(2, 2, -5))]
    assert merged(kernels, values(0, 0, 0), None, others) == [1.5, 2, -5]


def test_t3_zero_sum_takes_the_positive_ones(kernels: Kernels) -> None:
    others: list[Operand] = [ValueOperand(values=values(3, -3)), ValueOperand(values=values(-3, -1))]
    assert merged(kernels, values(0, 0), None, others) == [3, -2]


def test_t4_weights_come_before_the_election(kernels: Kernels) -> None:
    others: list[Operand] = [ValueOperand(values=values(1.0)), ValueOperand(values=values(0.5))]
    assert merged(kernels, values(0), None, others, weights=[1, -1]) == [1.0]
    assert merged(kernels, values(0), None, others, weights=[1, -4]) == [-2.0]


def test_t9_table_of_two_signs(kernels: Kernels) -> None:
    assert merged(kernels, values(0, 0, 0, 0), None, [A1, A2]) == [0.375, -0.5, 0.5, -0.375]


def test_t10_equal_alphas_tie_to_plus(kernels: Kernels) -> None:
    others: list[Operand] = [sign("++--", 0.25), sign("+-+-", 0.25)]
    assert merged(kernels, values(0, 0, 0, 0), None, others) == [0.25, 0.25, 0.25, -0.25]


@pytest.mark.parametrize(("lam", "expected"), [(1.0, [1.875, 1.0, 2.0, 1.125]), (0.4, [1.65, 1.3, 1.7, 1.35])])
def test_t11_routed_merge_of_three(kernels: Kernels, lam: float, expected: list[float]) -> None:
    result = merged(kernels, values(1, 1, 1, 1), sign("++++", 0.5), [A1, A2], lam=lam)
    assert result == pytest.approx(expected, abs=2e-7)


def test_t13_one_other_is_itself_and_none_is_the_base(kernels: Kernels) -> None:
    assert merged(kernels, values(1, 1, 1, 1), None, [A1]) == [1.25, 1.25, 0.75, 0.75]
    assert merged(kernels, values(1, -0.0), None, []) == [1, 0]
    assert math.copysign(1, merged(kernels, values(-0.0), None, [])[0]) == -1


def test_t14_task_arithmetic(kernels: Kernels) -> None:
    others: list[Operand] = [ValueOperand(values=values(x)) for x in (0.5, -0.25, 0.1)]
    assert merged(kernels, values(1.0), None, others, combine=Combine.SUM, lam=0.4) == pytest.approx([1.14])


def test_mean_divides_by_all_others_zero_ones_too(kernels: Kernels) -> None:
    others: list[Operand] = [ValueOperand(values=values(3.0)), ZeroOperand(), ZeroOperand()]
    assert merged(kernels, values(0.0), None, others, combine=Combine.MEAN) == [1.0]
    assert merged(kernels, values(0.0), None, others) == [3.0]  # a zero is in nobody's majority


def test_routed_exact_bits_are_copied_when_nobody_else_touches_it(kernels: Kernels) -> None:
    tuned = from_float32(values(-0.0, 3.0), DType.BF16)
    exact = ExactOperand(words=tuned, dtype=DType.BF16)
    for others, lam in (([], 1.0), ([ZeroOperand()], 1.0), ([sign("++", 1.0)], 0.0)):
        result = merged(kernels, values(5, 5), exact, [*others], lam=lam, dtype=DType.BF16)
        assert (result, math.copysign(1, result[0])) == ([0.0, 3.0], -1)


def test_routed_exact_is_the_point_that_the_others_shift(kernels: Kernels) -> None:
    exact = ExactOperand(words=from_float32(values(2, 2), DType.F32), dtype=DType.F32)
    assert merged(kernels, values(100, 100), exact, [sign("+-", 1.0)], lam=0.5) == [2.5, 1.5]


def test_an_exact_other_counts_by_its_difference(kernels: Kernels) -> None:
    exact = ExactOperand(words=from_float32(values(3, 3), DType.F16), dtype=DType.F16)
    # d = 2 and 2; the sign expert has 1 and -1: mean of both, then the larger alone
    assert merged(kernels, values(1, 1), None, [exact, sign("+-", 1.0)]) == [2.5, 3]


def test_absorbed_counts_what_rounding_swallows(kernels: Kernels) -> None:
    base = from_float32(values(1, 0.02, 0.06, 0.5, 0.001), DType.BF16)
    assert kernels.absorbed(base, DType.BF16, sign("+++++", 2e-4), DType.BF16) == (2, 5)
    assert kernels.absorbed(base, DType.BF16, sign("+++++", 2e-4), DType.F32) == (0, 5)
    some = ValueOperand(values=values(0, -0.0, 1e-9, 1, 1))
    assert kernels.absorbed(base, DType.BF16, some, DType.BF16) == (1, 3)
    assert kernels.absorbed(base, DType.BF16, ZeroOperand(), DType.BF16) == (0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_moved_counts_words_that_differ(kernels: Kernels, dtype: type[np.unsignedinteger]) -> None:
    a = np.arange(300_000, dtype=np.uint64).astype(dtype).reshape(3, -1)
    b = a.copy()
    b[0, 0] ^= dtype(1)
    b[2, 99_999] ^= dtype(64)
    assert kernels.moved(a, b) == 2
    assert kernels.moved(a[:0], b[:0]) == 0


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_the_first_element_that_is_not_finite_is_found(kernels: Kernels, dtype: DType) -> None:
    words = from_float32(np.array([[1, -0.0], [1e-45, 2]], np.float32), dtype)
    assert kernels.first_not_finite(words, dtype) is None
    for bad in (np.inf, -np.inf, np.nan):
        words[1] = from_float32(np.array([bad, bad], np.float32), dtype)
        assert kernels.first_not_finite(words, dtype) == 2
